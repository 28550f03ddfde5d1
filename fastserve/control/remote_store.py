"""One base path in a remote store, by fsspec: its versions, their files, and fetching a file.

Used by source_remote.py on the control process's event loop. The work is done on fsspec's own thread where
the file system has coroutines, elsewhere on daemon threads: nothing that hangs can hold up an exit. fsspec is
imported when a store is opened, and what belongs to a protocol with it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hashlib
import importlib.util
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from fastserve.control.source import version_number
from fastserve.errors import ConfigError, FastServeError

T = TypeVar("T")

INSTALL = "pip install 'fastserve[remote]'"

# No model has more; a listing that goes on is no model.
_DEPTH_MAX = 8
_FILES_MAX = 100_000
_BLOCK_BYTES = 8 << 20  # of one request, for stores that are asked for ranges
_HEX_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
# Of what a store says of a file, what changes with its content: the first that there is,
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "generation", "crc32c")
# and what at least changes when it is written.
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")


class StoreError(FastServeError):
    """The store did not do what it was asked. The text says what and where."""


class Gone(StoreError):
    """There is no such directory or file."""


class Damaged(StoreError):
    """What arrived is not what the store has."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a version. size: None where the store does not say. mark: changes with the content, or "".
    md5: of the content in hex, where the store says, or ""."""

    path: str
    size: int | None
    mark: str
    md5: str = ""


def protocol_of(url: str) -> str:
    """The protocol of a base path that is a URL; "" of one that is a directory."""
    found = re.match(r"([a-z][a-z0-9+.-]*)(://|::)", url)
    return found[1] if found else ""


def require_packages(url: str, where: str) -> None:
    """ConfigError when what `url`, of the key `where`, needs is not installed. Imports no file system."""
    try:
        from fsspec.registry import available_protocols, known_implementations
    except ImportError:
        raise ConfigError([f'{where} = "{url}": remote stores need fsspec: {INSTALL}']) from None
    for protocol in re.findall(r"([a-z][a-z0-9+.-]*)(?=://|::)", url):
        if protocol not in available_protocols():
            raise ConfigError([f'{where} = "{url}": no file system of fsspec is called "{protocol}"'])
        module = known_implementations.get(protocol, {}).get("class", "fsspec.")
        package = "aiohttp" if protocol in ("http", "https") else module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            remedy = f"{INSTALL}, or pip install {package}"
            raise ConfigError([f'{where} = "{url}": {protocol} needs the package {package}: {remedy}'])


class Store:
    """The versions below `url`. `options` go to fsspec's file system.

    answer_s: how long it may take to answer a question; stall_s: how long a file that is being fetched may
    not grow. Every method raises StoreError, cancels what it started when it is cancelled, and is called
    after `open` only.
    """

    def __init__(self, url: str, options: Mapping[str, Any], *, answer_s: float, stall_s: float) -> None:
        self.url = url.rstrip("/")
        self._protocol = protocol_of(url)
        self._web = self._protocol in ("http", "https")
        self._options = dict(options)
        self._answer_s = answer_s
        self._stall_s = stall_s
        self._fs: Any = None
        self._path = ""

    async def open(self) -> None:
        """Imports and makes the file system."""
        if self._fs is None:
            # Without a limit: it imports, and asks nobody.
            opened = asyncio.ensure_future(in_thread(self._make))
            self._fs, self._path = await self._asked(self.url, opened)

    def _make(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        options = dict(self._options)
        if self._protocol in ("s3", "s3a"):
            options.setdefault("default_block_size", _BLOCK_BYTES)
            # Whoever called tries again, too.
            options.setdefault("config_kwargs", {"retries": {"mode": "standard", "max_attempts": 1}})
        if self._web:
            import aiohttp

            # Its own limit is on a whole file. A size that is not that of the file would be of no use.
            client = {"headers": {"Accept-Encoding": "identity"}, **options.get("client_kwargs", {})}
            client.setdefault(
                "timeout",
                aiohttp.ClientTimeout(total=None, sock_connect=self._answer_s, sock_read=self._stall_s),
            )
            options = {"simple_links": False, **options, "client_kwargs": client}
        fs, path = url_to_fs(self.url, skip_instance_cache=True, **options)
        return fs, path

    async def versions(self) -> dict[int, str]:
        """Every version that there is, and its path in the store."""
        entries = await self._list(self._path, self.url)
        # "3" before "03" before "003", when they are there side by side.
        names = sorted(
            (name for name, entry in entries.items() if self._may_be_directory(entry)), key=len, reverse=True
        )
        found = {number: name for name in names if (number := version_number(name)) is not None}
        return {number: entries[found[number]]["name"].rstrip("/") for number in sorted(found)}

    async def files(self, path: str, where: str) -> dict[str, RemoteFile]:
        """The files below `path`, by their path relative to it. `where`: the same for people."""
        found: dict[str, RemoteFile] = {}
        below = [("", path)]
        for _ in range(_DEPTH_MAX):
            next_below = []
            for prefix, directory in below:
                for name, entry in (await self._list(directory, f"{where}/{prefix}".rstrip("/"))).items():
                    if entry["type"] == "directory":
                        next_below.append((f"{prefix}{name}/", entry["name"].rstrip("/")))
                    else:
                        found[prefix + name] = await self._file(entry, f"{where}/{prefix}{name}")
                if len(found) > _FILES_MAX:
                    raise StoreError(f"{where}: more than {_FILES_MAX} files; no model has so many")
            below = next_below
            if not below:
                break
        return found

    async def fetch(self, file: RemoteFile, target: Path, where: str, grown: Callable[[int], None]) -> None:
        """Writes `file` as `target`, synced, and checks size and checksum as far as the store says them.

        grown: called with how many bytes were added, also on another thread. OSError: the local disk's.
        """
        from fsspec.callbacks import Callback

        stop = threading.Event()
        arrived = 0

        class Progress(Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                nonlocal arrived
                if stop.is_set():
                    raise TimeoutError
                arrived += inc
                grown(inc)

            def absolute_update(self, value: int) -> None:
                self.relative_update(value - arrived)

        await in_thread(lambda: target.unlink(missing_ok=True))  # an old fetch that hangs keeps its own file
        task = asyncio.ensure_future(self._call("get_file", file.path, str(target), callback=Progress()))
        try:
            while not task.done():
                before = arrived
                await asyncio.wait({task}, timeout=self._stall_s)
                if not task.done() and arrived == before:
                    raise StoreError(
                        f"{where}: nothing has arrived for {self._stall_s:g} s, after {arrived} bytes"
                    )
            await self._asked(where, task)
        finally:
            stop.set()
            task.cancel()
        size, md5 = await in_thread(lambda: _sync_and_sum(target, bool(file.md5)))
        if file.size is not None and size != file.size:
            raise Damaged(f"{where}: {size} bytes arrived of {file.size}")
        if md5 != file.md5 and await self._is_md5(file):
            raise Damaged(f"{where}: the MD5 of what arrived is {md5}, the store says {file.md5}")

    async def _list(self, path: str, where: str) -> dict[str, dict[str, Any]]:
        """What is in directory `path`, by name."""
        self._fs.invalidate_cache()
        # A trailing slash: web servers redirect without it, and links are relative to it.
        asked = path + "/" if self._web else path
        entries = await self._asked(where, self._call("ls", asked, detail=True))
        found = {}
        prefix = path.rstrip("/") + "/"
        for entry in entries:
            full = (
                entry["name"].removeprefix(prefix)
                if entry["name"].startswith(prefix)
                else _last(entry["name"])
            )
            if self._web and ("?" in full or "#" in full):
                continue  # the links that sort an index
            name = unquote(full.rstrip("/")) if self._web else full.rstrip("/")
            # Not what stands for the directory itself, nor what is deeper, nor what would lead elsewhere.
            if (
                name not in ("", ".", "..")
                and "/" not in name
                and "\0" not in name
                and not full.endswith("//")
            ):
                found[name] = entry
        return found

    def _may_be_directory(self, entry: Mapping[str, Any]) -> bool:
        return self._web or entry["type"] == "directory"

    async def _file(self, entry: Mapping[str, Any], where: str) -> RemoteFile:
        info = entry
        if self._web:  # an index has names only
            info = {**entry, **await self._asked(where, self._call("info", entry["name"]))}
        size = info.get("size")
        mark = next((str(info[key]) for key in (*_MARKS, *_TIMES) if info.get(key)), "")
        return RemoteFile(info["name"], None if size is None else int(size), mark, self._md5(info))

    def _md5(self, info: Mapping[str, Any]) -> str:
        if self._protocol in ("s3", "s3a"):  # of an object that was not uploaded in parts
            found = _HEX_MD5.fullmatch(str(info.get("ETag", "")))
            return found[1] if found else ""
        for key in ("md5Hash", "Content-MD5"):
            try:
                digest = base64.b64decode(info.get(key) or "", validate=True)
            except (binascii.Error, ValueError):
                continue
            if len(digest) == 16:
                return digest.hex()
        return ""

    async def _is_md5(self, file: RemoteFile) -> bool:
        """Whether what looks like an MD5 is one: of an object of S3 that has a key of its own it is not."""
        if self._protocol not in ("s3", "s3a"):
            return True
        bucket, key, _ = self._fs.split_path(file.path)
        head = await self._asked(file.path, self._call("call_s3", "head_object", Bucket=bucket, Key=key))
        return not (
            str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
            or head.get("SSECustomerAlgorithm")
        )

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the file system, where its blocking is nobody's."""
        if getattr(self._fs, "async_impl", False):
            coroutine = getattr(self._fs, f"_{method}")(*args, **kwargs)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop))
        return await in_thread(lambda: getattr(self._fs, method)(*args, **kwargs))

    async def _asked(self, where: str, answer: Any) -> Any:
        """The answer, within the time for one; whatever fails becomes a StoreError."""
        try:
            if isinstance(answer, asyncio.Task):
                return await answer
            async with asyncio.timeout(self._answer_s):
                return await answer
        except (StoreError, ConfigError):
            raise
        except Exception as error:  # each file system has its own
            raise self._explained(error, where) from error

    def _explained(self, error: BaseException, where: str) -> Exception:
        if self._web and isinstance(error, FileNotFoundError) and error.__cause__ is not None:
            return self._explained(error.__cause__, where)  # what fsspec makes of any error of HTTP's
        if isinstance(error, OSError) and (error.filename or error.errno in _DISK_ERRORS):
            return error  # the local disk's
        status = getattr(error, "status", None)
        # s3fs makes OSErrors of what botocore said.
        told = error.__cause__ if hasattr(error.__cause__, "response") else error
        said = " ".join(str(told).split())[:300] or type(error).__name__
        if isinstance(error, TimeoutError):
            return StoreError(f"{where}: no answer within {self._answer_s:g} s")
        if isinstance(error, FileNotFoundError) or status == 404:
            return Gone(f"{where}: there is nothing")
        if isinstance(error, PermissionError) or status in (401, 403):
            return StoreError(
                f"{where}: access is denied ({said}); fastserve needs credentials that may list and read it, "
                "from the store's usual environment or [models.options]"
            )
        if "Credentials" in type(error).__name__:  # of botocore and google.auth
            return StoreError(
                f"{where}: there are no credentials ({said}); set the store's usual environment or "
                '[models.options]: for what anyone may read anon = true (S3) or token = "anon" (GCS)'
            )
        if status is not None:
            return StoreError(
                f"{where}: the server answered {status} {getattr(error, 'message', '')}".rstrip()
            )
        return StoreError(f"{where}: {type(told).__name__}: {said}")


# Errors without a file's name: from writing.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _last(name: str) -> str:
    slash = "/" if name.endswith("/") else ""
    return name.rstrip("/").rsplit("/", 1)[-1] + slash


def _sync_and_sum(path: Path, md5: bool) -> tuple[int, str]:
    """Syncs a file to disk; its size and, where asked for, its MD5."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        if not md5:
            return size, ""
        return size, hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` on a daemon thread of its own. Cancelled, or at exit, nobody waits for it."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # whoever waits gets it
            future.set_exception(error)

    threading.Thread(target=run, name="fastserve-store", daemon=True).start()
    return await asyncio.wrap_future(future)
