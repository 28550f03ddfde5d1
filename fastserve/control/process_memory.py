"""What a process holds in memory, as Linux counts it. Used by trials, by who watches them, and by the
memory budget.
"""

from __future__ import annotations

import ctypes
from pathlib import Path


def held_bytes(pid: int | str = "self") -> int:
    """Memory that a process holds and no file backs: what counts when memory runs out. 0 for one that has
    ended."""
    return _status_bytes(pid, "RssAnon", "RssShmem")


def resident_bytes(pid: int) -> int:
    """All that a process has in memory, libraries included. 0 for one that has ended."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes() -> int:
    """The most that this process has ever had in memory, with what it has touched of its libraries."""
    return _status_bytes("self", "VmHWM")


def settled_bytes() -> int:
    """What this process holds once what it has freed is given back: what work left behind for a moment is no
    part of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return held_bytes()


def _status_bytes(pid: int | str, *names: str) -> int:
    """The sum of some sizes in /proc/PID/status; those that are not there count nothing."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.partition(":")[0] in names)
