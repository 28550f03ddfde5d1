"""The memories that a core writes to and this process reads from, without the core noticing: what it counts,
and what its threads tell of themselves.

Each is a memfd of a fixed size, of which only the pages that were touched take memory. Made here, so that
what a core has counted can still be read when it has died; a core inherits the descriptors and learns their
numbers by `configure` (`"shared": {"metrics": 7}`). Every core gets its own set, all zeros. An adopted core
brings its own along. Used by the supervisor, and by whoever reads; on the event loop.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping

METRICS = "metrics"
TRACE = "trace"
# Their names in `configure`, and their sizes. Beyond tests nothing else need be told of one more.
SIZES: Mapping[str, int] = {METRICS: 1 << 30, TRACE: 512 << 20}

# Who maps one must be able to trust its size.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make_memory(name: str, size: int) -> int:
    """A new one, all zeros; its descriptor, which children do not inherit by themselves. OSError."""
    fd = os.memfd_create(f"fastserve-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedMemory:
    """The memories of the core of now; none before the first."""

    def __init__(self, sizes: Mapping[str, int] = SIZES) -> None:
        self._sizes = dict(sizes)
        self._fds: dict[str, int] = {}
        # Counts the sets that there were: readers see by it that there is another core.
        self.generation = 0

    def current(self, name: str) -> int | None:
        """The descriptor of a memory of the core of now. It is closed when the next core comes: who reads for
        longer duplicates it. None when there is none, as before the first core and with one that has brought
        none."""
        return self._fds.get(name)

    def renew(self) -> Mapping[str, int]:
        """A fresh set, for a core that is about to be started. OSError when it cannot be had; then all is as
        before."""
        made: dict[str, int] = {}
        try:
            for name, size in self._sizes.items():
                made[name] = make_memory(name, size)
        except OSError:
            _close(made)
            raise
        self.adopt(made)
        return made

    def adopt(self, fds: Mapping[str, int]) -> None:
        """Takes over the set of a core that another control process has started."""
        self.close()
        self._fds = dict(fds)
        self.generation += 1

    def close(self) -> None:
        """There is no core any more."""
        _close(self._fds)
        self._fds = {}


def _close(fds: Mapping[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)
