"""A slow model that keeps its executors busy, beside the ranker with an executor of its own."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import bare
from case import CONNECTIONS, STREAMS, Bench, saturate, turn_ratio
from drive import Body, drive
from report import Row, spread
from servers import Daemon, serving


def slow_neighbour(bench: Bench) -> list[Row]:
    """A model that takes 50 ms a batch, kept saturated, beside the ranker with an executor of its own.

    The ranker is saturated in closed loop, alone and beside it, which the bar is on. Half of the rate that it
    had beside it is then offered both ways in open loop: where there is room, its own queue does not hide the
    neighbour.
    """
    ranker = bench.bodies("ranker")[:CONNECTIONS]
    slow = bench.bodies("slow")[:1]
    pause_s = 1.0
    window_s = 2.0 if bench.quick else 5.0
    rounds = 1 if bench.quick else 3
    # An open loop does not wait: what piles up in a hiccup is to be seen as latency, not to be refused.
    ranker_options = {"reserved_executors": 1, "batching": {"max_enqueued_batches": 1000}}
    models = [bench.served("ranker", ranker_options), bench.served("slow")]
    slow_ms = bare.loop(bench.model("slow"), 1, 1.0, bench.session_config).run_us_median / 1000.0
    keys = ("saturated alone", "saturated beside", "half alone", "half beside")
    p99: dict[str, list[float]] = {key: [] for key in keys}
    rates: dict[str, list[float]] = {key: [] for key in keys}
    slow_batches: list[float] = []

    with serving(models) as daemon:

        def ranker_run(key: str, rate: float | None, beside: bool) -> float:
            bench.say(f"{key}, rate {'as it comes' if rate is None else f'{rate:,.0f}/s'}")
            with _slow_load(daemon, slow, window_s + 2 * pause_s) if beside else _nothing():
                time.sleep(pause_s if beside else 0.0)
                before, slow_before = daemon.counters("ranker"), daemon.counters("slow")
                began = time.monotonic()
                if rate is None:
                    got = saturate(daemon.port, ranker, window_s)
                else:
                    got = drive(daemon.port, ranker, connections=CONNECTIONS, rate=rate, seconds=window_s)
                (daemon.counters("ranker") - before).check(got.done)
                if beside:
                    ran = (daemon.counters("slow") - slow_before).batches
                    slow_batches.append(ran / (time.monotonic() - began))
            p99[key].append(got.quantile_us(0.99))
            rates[key].append(got.per_s)
            return got.per_s

        for _ in range(rounds):
            ranker_run("saturated alone", None, beside=False)
            rate = ranker_run("saturated beside", None, beside=True)
            ranker_run("half alone", rate / 2, beside=False)
            ranker_run("half beside", rate / 2, beside=True)

    samples = {"p99_us": p99, "requests_per_s": rates, "slow_ms": slow_ms, "slow_batches_per_s": slow_batches}
    parameters = {"spin_us": 0, "io_threads": 0, "connections": CONNECTIONS, "streams": STREAMS}
    rows = []
    for title, beside, alone, bar in (
        ("both saturated", "saturated beside", "saturated alone", True),
        ("half of that rate", "half beside", "half alone", False),
    ):
        ratio = turn_ratio(p99[beside], p99[alone])
        rows.append(
            Row(
                f"ranker beside a model of {slow_ms:.0f} ms, {title}",
                parameters,
                f"p99 {spread(p99[beside])} us at {statistics.median(rates[beside]):,.0f} req/s",
                f"alone {spread(p99[alone])} us at {statistics.median(rates[alone]):,.0f} req/s",
                ratio,
                "<= 2" if bar else "",
                ratio <= 2.0 if bar else None,
                samples,
            )
        )
    return rows


@contextmanager
def _slow_load(daemon: Daemon, bodies: list[Body], seconds: float) -> Iterator[None]:
    """Keeps `slow` saturated from a generator of its own; its failure is the case's failure."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            drive(daemon.port, bodies, connections=1, in_flight=64, seconds=seconds, warmup_s=0.1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="slow-load")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _nothing() -> Iterator[None]:
    yield
