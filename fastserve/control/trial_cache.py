"""Which entries of the compile cache a trial has made and which it has used, as the kernel tells it.

TensorFlow says neither, and a run that fails because of an entry is told from a model that XLA cannot compile
by one thing: the cache was touched. In the trial's process, on its one thread. Knows Linux's inotify.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from fastserve._native.runtime import RuntimeFailure

_SUFFIX = ".pb"
_IN_CLOSE_NOWRITE, _IN_MOVED_TO, _IN_CREATE = 0x10, 0x80, 0x100
_IN_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16


class CacheFailed(Exception):
    """A run failed, and the cache had its part in it. `entries`: those that were used; none when it is the
    directory that fails."""

    def __init__(self, why: str, entries: list[str]) -> None:
        super().__init__(why)
        self.why = why
        self.entries = entries


@dataclass
class Seen:
    """Names of entries. A trial that compiles twice sees none twice: TensorFlow keeps what it has loaded."""

    made: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    # Something was begun that may not have been finished.
    begun: bool = False


class CacheWatch:
    """Watches one directory, from now on. OSError where the kernel cannot."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        mask = _IN_CLOSE_NOWRITE | _IN_MOVED_TO | _IN_CREATE
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number))
        self.hits = 0
        self.compiled = 0
        # Every entry made or used so far, with its SHA-256.
        self.entries: dict[str, str] = {}

    def close(self) -> None:
        os.close(self._fd)

    def take(self) -> dict[str, str]:
        """What was made or used since the last call, with checksums; counted."""
        seen = self._seen()
        fresh = {
            name: hashlib.sha256((self.directory / name).read_bytes()).hexdigest()
            for name in sorted(seen.made | seen.used)
            if name not in self.entries and (self.directory / name).is_file()
        }
        self.compiled += len(seen.made)
        self.hits += len(fresh.keys() - seen.made)
        self.entries |= fresh
        # That was us.
        self._seen()
        return fresh

    def blame(self, error: RuntimeFailure) -> None:
        """CacheFailed when the run that ended with `error` has touched the cache, or says so."""
        seen = self._seen()
        if seen.used and not seen.begun:
            raise CacheFailed(error.message, sorted(seen.used))
        if seen.begun or str(self.directory) in error.message:
            raise CacheFailed(error.message, [])

    def _seen(self) -> Seen:
        seen = Seen()
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return seen
            position = 0
            while position < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, position)
                name = os.fsdecode(data[position + _EVENT.size :][:length].rstrip(b"\0"))
                position += _EVENT.size + length
                if mask & (_IN_CREATE | _IN_Q_OVERFLOW):
                    seen.begun = True
                if name.endswith(_SUFFIX) and mask & _IN_MOVED_TO:
                    seen.made.add(name)
                elif name.endswith(_SUFFIX) and mask & _IN_CLOSE_NOWRITE:
                    seen.used.add(name)
