"""The local copies of one model's remote versions: [loading] cache_dir/MODEL.

Used by source_remote.py, which alone decides what is copied and served; this knows files only. Every method
blocks and runs in a thread, one at a time.

    MODEL/.lock                      held while a process uses the directory
    MODEL/3                          version 3, whole: it appears by one rename
    MODEL/3.9f86d081884c             another content of version 3, from after it had changed in the store
    MODEL/3.*/.fastserve-remote.json what it is a copy of
    MODEL/4.part/files.json          a copy that is being made: what is in whole/ are these,
    MODEL/4.part/whole/...           each fetched, checked and synced before it got its name;
    MODEL/4.part/coming/             and what is being fetched

So a crash leaves at worst a .part, which the next start goes on with. A directory without a manifest is not
ours, and stays as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastserve.control.remote_store import RemoteFile
from fastserve.errors import ModelError

MANIFEST = ".fastserve-remote.json"
_COPY = re.compile(r"(\d+)(\.[0-9a-f]{12})?")
_PART = re.compile(r"\d+\.part")


class InUse(ModelError):
    """Another process, or another source of this one, has the directory."""


@dataclass(frozen=True)
class Copy:
    """A whole version in the cache. fingerprint: of the remote version that it is a copy of."""

    version: int
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Part:
    """A version that is being copied."""

    version: int
    path: Path
    # Files that are there already, from an attempt before this one.
    there: frozenset[str]

    @property
    def whole(self) -> Path:
        return self.path / "whole"

    @property
    def coming(self) -> Path:
        return self.path / "coming"


def fingerprint(files: Mapping[str, RemoteFile]) -> str:
    """Changes when a remote version does: when a file's name, size or mark does."""
    lines = sorted(f"{name}\0{file.size}\0{file.mark}" for name, file in files.items())
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Mirror:
    """Copies of the versions of `url` in `directory`. Every method may raise OSError."""

    def __init__(self, cache_dir: str, model: str, url: str) -> None:
        name = quote(model, safe=" +@,=")
        self.directory = Path(cache_dir) / (name if name.strip(".") else name.replace(".", "%2E"))
        self._url = url
        self._lock: int | None = None
        # Copies from another URL, which may still be served while a new configuration takes over.
        self.leftovers: list[Copy] = []

    def open(self) -> list[Copy]:
        """Takes the directory, removes what an earlier run left of no use, and says what is whole in it: the
        copies of our URL, in the order in which they were made.

        InUse when another process has the directory.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                remedy = "each needs a [loading] cache_dir of its own"
                raise InUse(f"{self.directory} is in use by another process; {remedy}") from None
            self._lock = lock
        found = []
        self.leftovers = []
        for entry in sorted(self.directory.iterdir()):
            if _PART.fullmatch(entry.name) and _read(entry / "files.json").get("url") != self._url:
                shutil.rmtree(entry, ignore_errors=True)
            elif (named := _COPY.fullmatch(entry.name)) and (manifest := _read(entry / MANIFEST)):
                copy = Copy(int(named[1]), str(entry), str(manifest.get("fingerprint")))
                if not _is_whole(entry, manifest):
                    shutil.rmtree(entry, ignore_errors=True)
                elif manifest.get("url") != self._url:
                    self.leftovers.append(copy)
                else:
                    found.append((manifest.get("copied", 0), copy))
        return [copy for _, copy in sorted(found, key=lambda item: item[0])]

    def close(self) -> None:
        """Lets go of the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(self, version: int, files: Mapping[str, RemoteFile]) -> Part:
        """A place for the copy of `version`, whose remote files are these. What an earlier attempt fetched of
        them stays; of others it goes."""
        path = self.directory / f"{version}.part"
        part = Part(version, path, frozenset())
        listed = {name: [file.size, file.mark] for name, file in files.items()}
        before = _read(path / "files.json").get("files", {})
        there = set()
        if part.whole.is_dir():
            for name in _files_below(part.whole):
                # Without a mark, nobody can say that it is still the same.
                if name in listed and listed[name][1] and before.get(name) == listed[name]:
                    there.add(name)
                else:
                    (part.whole / name).unlink()
        shutil.rmtree(part.coming, ignore_errors=True)
        part.coming.mkdir(parents=True)
        part.whole.mkdir(exist_ok=True)
        _write(path / "files.json", {"url": self._url, "files": listed})
        return Part(version, path, frozenset(there))

    def keep(self, part: Part, fetched: Path, name: str) -> None:
        """Moves a file of `part` that was fetched, checked and synced to its place."""
        target = part.whole / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(target)

    def commit(self, part: Part, print_: str, copied: float) -> Copy:
        """Makes a version of `part`, by one rename. `copied`: when, for the order of copies."""
        sizes = {name: (part.whole / name).stat().st_size for name in _files_below(part.whole)}
        manifest = {"url": self._url, "fingerprint": print_, "copied": copied, "files": sizes}
        _write(part.whole / MANIFEST, manifest)
        for directory, _, _ in os.walk(part.whole):
            _sync_directory(directory)
        target = self.directory / str(part.version)
        if os.path.lexists(target):
            target = self.directory / f"{part.version}.{print_[:12]}"
            shutil.rmtree(target, ignore_errors=True)
        part.whole.rename(target)
        _sync_directory(self.directory)
        shutil.rmtree(part.path, ignore_errors=True)
        return Copy(part.version, str(target), print_)

    def has(self, copy: Copy) -> bool:
        """Whether nobody else has removed it."""
        return os.path.exists(os.path.join(copy.path, MANIFEST))

    def remove(self, copy: Copy) -> None:
        """Removes a copy; the manifest last, so that an interrupted removal is gone on with."""
        if not os.path.isdir(copy.path):
            return
        for entry in Path(copy.path).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != MANIFEST:
                entry.unlink(missing_ok=True)
        shutil.rmtree(copy.path, ignore_errors=True)

    def drop(self, part: Part) -> None:
        """Gives a copy up."""
        shutil.rmtree(part.path, ignore_errors=True)

    def remove_parts(self, keep: Collection[int] = ()) -> None:
        """Removes what was begun, but for the versions in `keep`."""
        for entry in self.directory.iterdir():
            if _PART.fullmatch(entry.name) and int(entry.name.removesuffix(".part")) not in keep:
                shutil.rmtree(entry, ignore_errors=True)

    def free_bytes(self) -> int:
        """What the disk has room for."""
        return shutil.disk_usage(self.directory).free


def _is_whole(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a copy has all its files at their sizes."""
    try:
        return all((path / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, KeyError, AttributeError):
        return False


def _files_below(directory: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(root, name), directory)
        for root, _, names in os.walk(directory)
        for name in names
        if name != MANIFEST
    ]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _sync_directory(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
