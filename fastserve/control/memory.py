"""Whether a version fits: what is free, what the core has, and what loads under way will take.

A load that cannot fit is refused with figures instead of ending in the kernel's out-of-memory killer, which
would take the core. Asked by the work on versions, on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastserve.cgroup import available_memory_bytes, free_memory_bytes
from fastserve.control.process_memory import resident_bytes
from fastserve.errors import ModelError

# An estimate is a measurement of another process: what a version takes in the core may be so much more.
_MARGIN = 1.1


class MemoryBudget:
    """The memory that versions may fill."""

    def __init__(
        self,
        limit_bytes: int,
        core_pid: Callable[[], int | None],
        *,
        free_bytes: Callable[[], int] = free_memory_bytes,
    ) -> None:
        """`limit_bytes`: for the core in all; 0: what machine and cgroup give."""
        self.limit_bytes = limit_bytes or available_memory_bytes()
        self._core_pid = core_pid
        self._free_bytes = free_bytes
        self._reserved = 0

    def core_bytes(self) -> int:
        """What the core has in memory now; 0 when there is none."""
        pid = self._core_pid()
        return 0 if pid is None else resident_bytes(pid)

    def room_bytes(self) -> int:
        """What one more version may take."""
        below_limit = self.limit_bytes - self.core_bytes()
        return max(0, min(below_limit, self._free_bytes()) - self._reserved)

    def check(self, needed_bytes: int, what: str) -> None:
        """ModelError, with the figures and the remedy, when there is no room for so much."""
        room = self.room_bytes()
        if needed_bytes > room:
            raise ModelError(
                f"it does not fit: {what} {mib(needed_bytes)}, and of {mib(self.limit_bytes)} there are "
                f"{mib(room)} left; the core has {mib(self.core_bytes())}. Raise the limit "
                "([loading] memory_limit_bytes, or the container's), serve fewer versions, or unload the old "
                'one first: [models.versions] transition = "resource"'
            )

    @contextmanager
    def taking(self, bytes_: int) -> Iterator[None]:
        """Room for a version of that size while it is loaded. ModelError when there is none."""
        needed = int(bytes_ * _MARGIN)
        self.check(needed, "it takes about")
        self._reserved += needed
        try:
            yield
        finally:
            self._reserved -= needed


def mib(bytes_: int) -> str:
    return f"{bytes_ / (1 << 20):,.0f} MiB"
