"""The load generator against a server that is frozen: what each kind of loop sees of it."""

from __future__ import annotations

import os
import signal
import struct
import time
from concurrent import futures
from typing import Any

from core_driver import PREDICT, Core, predict_request, servable

from fastserve._native.load import LoadResult, run

BODY = predict_request("m", struct.pack("<f", 2.0), [1, 1])
FROZEN_S = 0.2
RATE = 500.0
IN_FLIGHT = 2


def frozen_run(core: Core, **how: Any) -> LoadResult:
    """A second of load, in the middle of which the server stands still for FROZEN_S."""
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            run,
            ("127.0.0.1", core.port),
            [BODY],
            path=PREDICT,
            authority=core.address,
            warmup_s=0.1,
            duration_s=1.0,
            interval_s=0.05,
            **how,
        )
        time.sleep(0.5)
        os.kill(core.process.pid, signal.SIGSTOP)
        try:
            time.sleep(FROZEN_S)
        finally:
            os.kill(core.process.pid, signal.SIGCONT)
        return running.result(30)


def slower_than(result: LoadResult, seconds: float) -> int:
    """How many answers took longer."""
    below = max((share for value, share in result.latency.cdf() if value <= seconds * 1e9), default=0.0)
    return round(result.latency.total * (1.0 - below))


def test_a_frozen_server_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    with Core(server={"io_threads": 1}) as core:
        core.serve(servable())
        open_loop = frozen_run(core, rate=RATE, arrivals="constant")
        closed_loop = frozen_run(core, in_flight=IN_FLIGHT)
    for result in (open_loop, closed_loop):
        assert (result.failed, result.unanswered) == ({}, 0)
        assert result.latency.max >= (FROZEN_S - 0.02) * 1e9
        assert result.latency.value_at(0.5) < 0.05 * 1e9
        # While it stood still nothing came: three of the four intervals inside at least.
        assert sum(interval.done == 0 for interval in result.intervals) >= 3

    # Open loop: all that was due meanwhile waited, the first for the whole time, the last hardly.
    assert open_loop.sent == RATE
    expected = RATE * FROZEN_S
    assert slower_than(open_loop, FROZEN_S * 0.5) >= 0.4 * expected
    assert open_loop.latency.value_at(0.99) >= 0.8 * FROZEN_S * 1e9
    assert open_loop.behind_ns.value_at(0.9) < 0.05 * 1e9  # it was not the generator that stood still

    # Closed loop: only what was under way did, and the percentiles know nothing of it.
    assert slower_than(closed_loop, FROZEN_S * 0.5) <= 2 * IN_FLIGHT  # a busy machine may stall once more
    assert closed_loop.latency.value_at(0.99) < 0.25 * FROZEN_S * 1e9
