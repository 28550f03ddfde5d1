"""Breaks from Python: a thread that gives way leaves its processor again and again, and only then."""

from __future__ import annotations

import os
import resource
import threading
import time

from fastserve._native.breaks import Breaks

PATIENCE_S = 60.0


def stops() -> int:
    """How often this thread has left its processor of its own accord."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def work(wanted: int, seconds: float) -> int:
    """Until there were so many, or for so long."""
    before, end = stops(), time.monotonic() + seconds
    while stops() - before < wanted and time.monotonic() < end:
        pass
    return stops() - before


def test_a_thread_that_gives_way_takes_breaks() -> None:
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    found: list[int] = []

    def give_way() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), normal + 3)
        with Breaks(normal):
            found.append(work(5, PATIENCE_S))

    thread = threading.Thread(target=give_way)
    thread.start()
    thread.join()
    assert found[0] >= 5
