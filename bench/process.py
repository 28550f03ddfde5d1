"""What the kernel says about a running process: memory, CPU time per thread. Linux, from /proc."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from fastserve.bench.processes import busy_fraction


def rss_bytes(pid: int) -> int:
    """Resident memory, pages shared with other processes included."""
    return _status_kib(pid, "VmRSS") * 1024


def peak_rss_bytes(pid: int) -> int:
    """The most that was resident at once since the process started, or since `reset_peak_rss`."""
    return _status_kib(pid, "VmHWM") * 1024


def reset_peak_rss(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_kib(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise ValueError(f"/proc/{pid}/status has no {key}")


def thread_cpu_us(pid: int) -> dict[str, float]:
    """CPU microseconds by thread name; threads whose names differ in a trailing number are summed.

    The main thread is called "main", whatever the process is called.
    """
    totals: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while we looked.
        name = "main" if int(task.name) == pid else re.sub(r"[-_/:]?\d+$", "", name)
        totals[name] = totals.get(name, 0.0) + nanoseconds / 1000.0
    return totals


def settled(read: Callable[[], float], limit: float, timeout_s: float) -> float:
    """Reads until the value is at most `limit` or `timeout_s` have passed; the last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if value <= limit or time.monotonic() > deadline:
            return value
        time.sleep(0.1)


def wait_quiet(limit: float, patience_s: float) -> float:
    """Waits until others use at most `limit` of the machine, for `patience_s` at most; what they use."""
    deadline = time.monotonic() + patience_s
    while True:
        busy = busy_fraction(1.0)
        if busy <= limit or time.monotonic() > deadline:
            return busy
