"""Breaks from Python: a thread that gives way leaves its processor again and again, and only then."""

from __future__ import annotations

import subprocess
import sys

# Prints how often its thread has left its processor of its own accord: until it has done so a few times, or
# for so many seconds. A process of its own: where another module has had breaks, the signal is that one's.
WORK = """
import os, resource, sys, time
from fastserve._native.breaks import Breaks
def stops():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
lower, seconds = map(float, sys.argv[1:])
normal = os.getpriority(os.PRIO_PROCESS, 0)
os.setpriority(os.PRIO_PROCESS, 0, normal + int(lower))
with Breaks(normal):
    before, end = stops(), time.monotonic() + seconds
    while stops() - before < 5 and time.monotonic() < end:
        pass
    print(stops() - before)
"""


def stops(lower: int, seconds: float) -> int:
    command = [sys.executable, "-c", WORK, str(lower), str(seconds)]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)


def test_a_thread_that_gives_way_takes_breaks() -> None:
    assert stops(3, 60) >= 5


def test_one_that_does_not_give_way_takes_none() -> None:
    assert stops(0, 0.3) < 5  # of which breaks would make 75; a page of the interpreter's may be waited for
