"""The source for remote stores: polls a URL for versions, copies the chosen ones, says that they are here.

Runs in the control process. A version counts when its files in the store are complete (complete.py) and were
the same one look ago; it is aspired when it is on this machine's disk, whole. What cannot be looked at, or
fetched, is a problem that is shown, and takes nothing out of service: copies that are there stay aspired,
also at a start while the store does not answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastserve.config import Model
from fastserve.control.complete import HEADS, MODEL, why_listing_incomplete
from fastserve.control.remote_mirror import MANIFEST, Copy, InUse, Mirror, Part, fingerprint
from fastserve.control.remote_store import (
    Gone,
    RemoteFile,
    Store,
    StoreError,
    in_thread,
    require_packages,
)
from fastserve.control.version_format import BUILT_IN_PLATFORMS, rule_of
from fastserve.errors import ConfigError, ModelError
from fastserve.extensions import Aspire, Aspired, SourceContext, VersionPath

# Copies beside those wanted, for when all of these fail.
_SPARES = 3
_DISK_RESERVE_BYTES = 16 << 20
_LOCK_ATTEMPTS = 50
_LOCK_RETRY_S = 0.1


@dataclass(frozen=True)
class Timing:
    """How often and how long; seconds."""

    # Looks are not closer than this, unless options.poll_s says so, and not farther apart when they fail.
    poll_min_s: float = 5.0
    poll_max_s: float = 60.0
    # After the first look, whatever has to be seen twice is looked at again soon.
    settle_s: float = 1.0
    # For a question to the store, and for a file that is fetched to grow; options.timeout_s sets both.
    answer_s: float = 30.0
    stall_s: float = 60.0
    # Attempts for each file, the wait before the second, doubled each time, and files at once.
    attempts: int = 3
    retry_s: float = 0.5
    parallel: int = 8
    # A copy stays for so long after it is no longer aspired: it may still be being unloaded.
    linger_s: float = 300.0


def remote_source(context: SourceContext) -> RemoteSource:
    """The source for a base_path that is a URL. ConfigError when what it needs is not installed."""
    return RemoteSource(context)


def list_remote_versions(model: Model) -> dict[int, str]:
    """Every version in a base_path that is a URL and its path there, rising. Blocks; for `fastserve check`.

    ModelError or ConfigError, in words for the user, when there is none or nobody can tell.
    """
    timing, options = _told(Timing(), 0, model.options, model.name)
    store = Store(model.base_path, options, answer_s=timing.answer_s, stall_s=timing.stall_s)

    async def versions() -> dict[int, str]:
        await store.open()
        return await store.versions()

    try:
        there = asyncio.run(versions())
    except (StoreError, OSError) as error:
        raise ModelError(str(error)) from error
    if not there:
        raise ModelError(_none(store.url))
    return {version: f"{store.url}/{os.path.basename(path)}" for version, path in there.items()}


class RemoteSource:
    """Finds and copies the versions below [[models]] base_path, a URL."""

    def __init__(
        self,
        context: SourceContext,
        timing: Timing = Timing(),
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        model = context.model
        require_packages(model.base_path, f"[[models]] {model.name}, base_path")
        timing, options = _told(timing, context.poll_s, model.options, model.name)
        self._name = model.name
        self._url = model.base_path.rstrip("/")
        self._marker = model.versions.complete_marker
        # What other platforms' versions consist of is not known here.
        self._known = model.platform in BUILT_IN_PLATFORMS
        self._tflite = rule_of(model)
        self._choose = context.choose
        self._once = not context.poll_s and "poll_s" not in model.options
        self._log = context.log
        self._timing = timing
        self._sleep = sleep
        self._clock = clock
        self._store = Store(self._url, options, answer_s=timing.answer_s, stall_s=timing.stall_s)
        self._mirror = Mirror(context.cache_dir, model.name, self._url)
        # Fingerprints of the last look, for what must be seen twice.
        self._seen: dict[int, str] = {}
        # The newest copy of each version, and every other there is, with the time since when nobody wants it.
        self._copies: dict[int, Copy] = {}
        self._unwanted: dict[Copy, float] = {}
        # What was said last; `fresh`: in an earlier run.
        self._aspired: Aspired | None = None
        self._fresh = True
        self._running = asyncio.Lock()
        self._fetching: _Fetching | None = None

    async def run(self, aspire: Aspire) -> None:
        """Says what is aspired at every change, until it is cancelled."""
        async with self._running:  # a run that was cancelled may not be over yet
            self._fresh = True
            try:
                await self._run(aspire)
            finally:
                self._mirror.close()

    @property
    def progress(self) -> str:
        """What is being copied, for people; "" when nothing is."""
        fetching = self._fetching
        if fetching is None:
            return ""
        seconds = self._clock() - fetching.began
        return (
            f"copying version {fetching.version}: {_mib(fetching.arrived)} of {_mib(fetching.total)} "
            f"in {seconds:.0f} s"
        )

    async def _run(self, aspire: Aspire) -> None:
        for copy in await self._open_mirror():
            self._hold(copy)
        for copy in self._mirror.leftovers:
            self._unwanted.setdefault(copy, self._clock())
        failures, looks = 0, 0
        while True:
            look = _Look()
            try:
                await self._store.open()
                await self._look(look, aspire)
                looks += 1
            except (StoreError, OSError) as error:
                look.problems.append(self._words(error))
                look.failed = True
            self._tell(aspire, look)
            await self._tidy(look)
            failures = failures + 1 if look.failed else 0
            if self._once and not failures and not look.young:
                await asyncio.Event().wait()
            await self._sleep(self._wait(failures, soon=bool(look.young) and looks == 1))

    async def _open_mirror(self) -> list[Copy]:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                return await in_thread(self._mirror.open)
            except InUse:  # by the source that this one takes over from, perhaps
                await self._sleep(_LOCK_RETRY_S)
            except OSError as error:
                raise ModelError(self._words(error)) from error
        return await in_thread(self._mirror.open)

    def _wait(self, failures: int, *, soon: bool) -> float:
        timing = self._timing
        if soon:
            return min(timing.poll_min_s, timing.settle_s)
        wait = min(timing.poll_min_s * 2.0 ** min(failures, 16), max(timing.poll_max_s, timing.poll_min_s))
        return wait * random.uniform(0.8, 1.2)  # so that many machines do not ask at once

    # ---- one look -----------------------------------------------------------------------------

    async def _look(self, look: _Look, aspire: Aspire) -> None:
        """Looks at the store and copies what is missing; `look` has what was found, also when this raises."""
        there = await self._store.versions()
        if not there:
            raise StoreError(_none(self._url))
        self._seen = {version: seen for version, seen in self._seen.items() if version in there}
        usable, again = set(there), True
        look.hopes = bool(self._choose(there))
        while again:
            chosen = list(self._choose(usable))
            while unusable := {v for v in chosen if not await self._is_usable(look, v, there[v])}:
                usable -= unusable
                chosen = list(self._choose(usable))
            look.usable = frozenset(usable)
            look.wanted = {version for version in chosen if version in look.to_copy}
            failed = await self._copy_wanted(look, there, aspire)
            usable -= failed
            # An older version is better than none.
            again = bool(failed) and not self._choose(usable & self._copies.keys())
        await in_thread(lambda: self._mirror.remove_parts(keep=look.judged))

    async def _copy_wanted(self, look: _Look, there: Mapping[int, str], aspire: Aspire) -> set[int]:
        """Copies what is wanted, the newest first; those that failed and of which there is no older copy."""
        failed = set()
        self._tell(aspire, look)
        for version in sorted(look.wanted, reverse=True):
            try:
                await self._copy(version, there[version], look.to_copy.pop(version))
            except (StoreError, OSError) as error:
                look.failed = True
                look.problems.append(f"version {version} could not be copied: {self._words(error)}")
                look.judged[version] = version in self._copies
                failed |= {version} - self._copies.keys()
            look.wanted.discard(version)
            self._tell(aspire, look)
        return failed

    async def _is_usable(self, look: _Look, version: int, path: str) -> bool:
        """Whether there is a copy of `version`, or something complete to copy."""
        if version in look.judged:
            return look.judged[version]
        where = f"{self._url}/{version}"
        try:
            why = await self._why_not(look, version, path, where)
        except (StoreError, OSError) as error:
            look.failed = True
            why = self._words(error)
        if why:
            look.problems.append(f"version {version} does not count: {why}")
        # An old copy of a version that is being replaced in the store serves until that is over.
        look.judged[version] = version in self._copies or version in look.to_copy
        return look.judged[version]

    async def _why_not(self, look: _Look, version: int, path: str, where: str) -> str:
        files = await self._files(path, where)
        print_ = fingerprint(files)
        before, self._seen[version] = self._seen.get(version), print_
        copy = self._copies.get(version)
        if copy is not None and not await in_thread(partial(self._mirror.has, copy)):
            copy = None
            del self._copies[version]  # somebody has emptied the cache
        if copy is not None and copy.fingerprint == print_:
            return ""
        if self._marker:
            if self._marker not in files:
                return f"{where}/{self._marker} is not there yet"
        elif self._known and MODEL not in files:
            sizes = {name: file.size for name, file in files.items()}
            why = why_listing_incomplete(where, sizes, "", tflite=self._tflite)
            if why:
                return why
        elif not files:
            return f"{where} is empty"
        if before != print_ and not self._marker:
            look.young.add(version)
            return ""
        if self._known and not self._marker:
            part = await in_thread(lambda: self._mirror.begin(version, files))
            heads = {name: files[name] for name in HEADS if name in files}
            await self._fetch(part, heads, where)
            sizes = {name: file.size for name, file in files.items()}
            why = await in_thread(
                lambda: why_listing_incomplete(where, sizes, part.whole, tflite=self._tflite)
            )
            if why:
                return why
        look.to_copy[version] = files
        return ""

    async def _files(self, path: str, where: str) -> dict[str, RemoteFile]:
        try:
            files = await self._store.files(path, where)
        except Gone as error:  # between two questions
            raise StoreError(f"{error}, though it was listed") from error
        files.pop(MANIFEST, None)
        return files

    # ---- copying ------------------------------------------------------------------------------

    async def _copy(self, version: int, path: str, files: Mapping[str, RemoteFile]) -> None:
        where = f"{self._url}/{version}"
        began = self._clock()
        part = await in_thread(lambda: self._mirror.begin(version, files))
        missing = {name: file for name, file in files.items() if name not in part.there}
        size = sum(file.size or 0 for file in missing.values())
        self._log.info(
            "download starts", model=self._name, version=version, url=where, files=len(missing), bytes=size
        )
        try:
            free = await in_thread(self._mirror.free_bytes)
            if free < size + _DISK_RESERVE_BYTES:
                raise StoreError(self._full(f"it needs {_mib(size)}, {_mib(free)} are free"))
            self._fetching = _Fetching(version, size, began)
            await self._fetch(part, missing, where)
            # What was replaced meanwhile may be half of one version and half of another.
            print_ = fingerprint(await self._files(path, where))
            if print_ != fingerprint(files):
                raise StoreError(
                    f"{where} changed while it was copied; it is copied again when it is at rest"
                )
            copy = await in_thread(lambda: self._mirror.commit(part, print_, time.time()))
        except (StoreError, OSError) as error:
            if isinstance(error, OSError):  # the disk's: half a version is only in the way
                await in_thread(lambda: self._mirror.drop(part))
            self._log.warning("download failed", model=self._name, version=version, why=self._words(error))
            raise
        finally:
            self._fetching = None
        seconds = self._clock() - began
        self._log.info(
            "download ended", model=self._name, version=version, path=copy.path, bytes=size, seconds=seconds
        )
        self._hold(copy)

    async def _fetch(self, part: Part, files: Mapping[str, RemoteFile], where: str) -> None:
        """Fetches those of `files` into `part` that are not there."""
        slots = asyncio.Semaphore(self._timing.parallel)
        missing = {name: file for name, file in files.items() if name not in part.there}
        fetching = self._fetching

        def grown(count: int) -> None:
            if fetching is not None:
                fetching.arrived += count

        async def fetch(number: int, name: str, file: RemoteFile) -> None:
            async with slots:
                coming = part.coming / str(number)
                for attempt in range(1, self._timing.attempts + 1):
                    try:
                        await self._store.fetch(file, coming, f"{where}/{name}", grown)
                        break
                    except Gone:
                        raise
                    except StoreError:
                        if attempt == self._timing.attempts:
                            raise
                    await self._sleep(self._timing.retry_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
                await in_thread(lambda: self._mirror.keep(part, coming, name))

        try:
            async with asyncio.TaskGroup() as group:
                for number, (name, file) in enumerate(sorted(missing.items())):
                    group.create_task(fetch(number, name, file), name=f"fetch {name}")
        except ExceptionGroup as errors:
            known, unknown = errors.split((StoreError, OSError))
            if known is None or unknown is not None:
                raise
            raise _first(known) from errors

    # ---- what there is ------------------------------------------------------------------------

    def _hold(self, copy: Copy) -> None:
        """`copy` is the one of its version from now on."""
        before = self._copies.get(copy.version)
        if before is not None and before != copy:
            self._unwanted.setdefault(before, self._clock())
        self._copies[copy.version] = copy

    def _tell(self, aspire: Aspire, look: _Look) -> None:
        """Says what is aspired, if that is news."""
        told = self._aspired or Aspired(())
        if look.usable is not None:
            usable = {v: copy for v, copy in self._copies.items() if v in look.usable}
        elif self._aspired:  # the last look that was one still holds: not what it found gone
            known = {path.version for path in (*told.versions, *told.spares)}
            usable = {v: copy for v, copy in self._copies.items() if v in known}
        else:
            usable = self._copies
        chosen = self._choose(usable)
        versions = [_version_path(usable[version]) for version in chosen]
        if not versions and look.hopes:
            versions = list(told.versions)  # until there is what takes their place
        if not versions and (look.wanted or look.young) and not look.problems:
            return  # nothing to say yet
        below = sorted(v for v in usable if chosen and v < max(chosen) and v not in chosen)
        spares = tuple(_version_path(usable[version]) for version in below[-_SPARES:])
        aspired = Aspired(tuple(versions), "; ".join(look.problems), spares)
        # Fingerprints are not compared by ==.
        if self._fresh or repr(aspired) != repr(self._aspired):
            self._fresh, self._aspired = False, aspired
            aspire(aspired)

    async def _tidy(self, look: _Look) -> None:
        """Removes copies that nobody has wanted for a while, but for the newest."""
        now = self._clock()
        told = self._aspired.versions if self._aspired else ()
        aspired = {path.path for path in told}
        for copy in self._copies.values():
            self._unwanted.setdefault(copy, now)
        self._unwanted = {copy: since for copy, since in self._unwanted.items() if copy.path not in aspired}
        if look.failed or not aspired:
            return
        by_age = sorted(self._unwanted, key=lambda copy: (self._unwanted[copy], copy.version))
        for copy in by_age[:-1]:
            if self._unwanted[copy] + self._timing.linger_s <= now:
                await in_thread(partial(self._mirror.remove, copy))
                del self._unwanted[copy]
                if self._copies.get(copy.version) == copy:
                    del self._copies[copy.version]
                self._log.info(
                    "removed from the cache", model=self._name, version=copy.version, path=copy.path
                )

    # ---- words --------------------------------------------------------------------------------

    def _words(self, error: Exception) -> str:
        if isinstance(error, OSError):
            name = error.filename or self._mirror.directory
            if error.errno in _FULL:
                return self._full(str(error.strerror))
            return f"{name}: {error.strerror or error}; [loading] cache_dir must be a directory to write to"
        return str(error)

    def _full(self, why: str) -> str:
        return (
            f"{self._mirror.directory} has no room for it: {why}; "
            "make room, or set [loading] cache_dir to a larger disk"
        )


@dataclass
class _Look:
    """What one look found."""

    # The versions that are there and count, once that is known.
    usable: frozenset[int] | None = None
    # Something of what the store has is to be served.
    hopes: bool = False
    # Whether each version that was looked at counts.
    judged: dict[int, bool] = field(default_factory=dict)
    # What is complete in the store and not here; those of it that are to be served, until they are here.
    to_copy: dict[int, dict[str, RemoteFile]] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)
    # Versions seen for the first time as they are.
    young: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    # The store, or the disk, did not do what it should: the next look can wait.
    failed: bool = False


@dataclass
class _Fetching:
    """A version that is being copied."""

    version: int
    total: int
    began: float
    arrived: int = 0


# What a full disk, a quota and a limit on a file's size say.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _told(
    timing: Timing, poll_s: float, options: Mapping[str, Any], model: str
) -> tuple[Timing, dict[str, Any]]:
    """The timing that the configuration asks for, and the options that are for the file system."""
    rest = dict(options)
    for key in ("poll_s", "timeout_s"):
        if key in rest and not (type(rest[key]) in (int, float) and 0 < rest[key] <= 1e9):
            where = f"[[models]] {model}, options.{key} = {rest[key]!r}"
            raise ConfigError([f"{where}: expected a number of seconds, more than 0"])
    poll = rest.pop("poll_s", max(poll_s, timing.poll_min_s))
    timeout = rest.pop("timeout_s", 0)
    timing = replace(timing, poll_min_s=poll)
    return (replace(timing, answer_s=timeout, stall_s=timeout) if timeout else timing), rest


def _version_path(copy: Copy) -> VersionPath:
    return VersionPath(copy.version, copy.path, copy.fingerprint)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _none(url: str) -> str:
    return f"{url} has no version: no directory in it has a number for a name, such as 1"


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
