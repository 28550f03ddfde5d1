"""What the kernel counts: CPU time and memory of a process and all its descendants, how busy the machine is.

Linux, from /proc. Reads only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """cpu_s: of the tree since it began, ended children included. rss_bytes: shared pages count again for
    each process that has them."""

    cpu_s: float
    rss_bytes: int
    processes: int


def usage(pid: int) -> Usage | None:
    """Of process `pid` and its descendants; None when it is gone."""
    stats = _family(pid)
    ticks = sum(sum(map(int, fields[11:15])) for fields in stats.values())
    pages = sum(int(fields[21]) for fields in stats.values())
    return Usage(ticks * _TICK_S, pages * _PAGE_BYTES, len(stats)) if stats else None


def tree(pid: int) -> dict[int, int]:
    """Process `pid` and its descendants, each with when it began, in ticks; empty when it is gone.

    Number and begin together name a process for ever; the number alone is used again.
    """
    return {member: int(fields[19]) for member, fields in _family(pid).items()}


def _family(pid: int) -> dict[int, list[str]]:
    """Fields of /proc/PID/stat from the third on. Zombies are gone."""
    stats = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The name may hold anything, parentheses included; what follows the last one is numbers.
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":
                stats[int(entry)] = fields
    if pid not in stats:
        return {}
    members = {pid}
    grown = True
    while grown:
        more = {child for child, fields in stats.items() if int(fields[1]) in members} - members
        members |= more
        grown = bool(more)
    return {member: stats[member] for member in members}


def busy_fraction(seconds: float) -> float:
    """How much of the machine's processors is in use while this process sleeps: 0 to 1."""
    total, idle = _machine_ticks()
    time.sleep(seconds)
    total_after, idle_after = _machine_ticks()
    return max(0.0, 1.0 - (idle_after - idle) / max(1, total_after - total))


def machine_s() -> tuple[float, float]:
    """Processor seconds since the machine began: all of them, and those in use."""
    total, idle = _machine_ticks()
    return total * _TICK_S, (total - idle) * _TICK_S


def _machine_ticks() -> tuple[int, int]:
    """All; idle and waiting for a disk."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


def stolen_s() -> float:
    """Processor seconds since the machine began that it wanted and its host gave to other machines."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) * _TICK_S
