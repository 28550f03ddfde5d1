"""SIGTERM as Ctrl-C, for commands that end what they have started."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ONE_WISH_S = 1.0


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that what was started is ended first. Either counts once when
    it comes twice, to the process and to its group, as timeout(1) sends it."""
    last_s = -math.inf

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s > _ONE_WISH_S:
            last_s = now_s
            raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    # Where a shell has told a job in the background to ignore Ctrl-C, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
