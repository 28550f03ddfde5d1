"""Models that cost nothing: what the front end can do, and what a request costs it."""

from __future__ import annotations

import statistics

import process
from case import CONNECTIONS, STREAMS, Bench, saturate, verify
from report import Row, spread
from servers import serving

FRONT_END = ("main", "fs-io", "fs-unpack")  # the core's threads that do not run models


def half_plus_two(bench: Bench) -> list[Row]:
    """A model that costs nothing: what the front end can do and what a request costs it."""
    rows = []
    names = ("half_plus_two", "half_plus_two_simple")
    with (
        serving([bench.served(name) for name in names], server={"io_threads": 0}) as on_loop,
        serving([bench.served(name) for name in names], server={"io_threads": 1}) as on_epoll,
    ):
        for name in names:
            bodies = bench.bodies(name)
            daemons = {0: on_loop, 1: on_epoll}
            for daemon in daemons.values():
                verify(daemon, name)
            rates: dict[int, list[float]] = {0: [], 1: []}
            costs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
            for number in range(bench.rounds):
                for io_threads, daemon in daemons.items():
                    bench.say(f"{name}, io_threads {io_threads}, round {number + 1} of {bench.rounds}")
                    pid = daemon.core_pid()
                    before, cpu_before = daemon.counters(name), process.thread_cpu_us(pid)
                    got = saturate(daemon.port, bodies, bench.window_s)
                    cpu_after, counted = process.thread_cpu_us(pid), daemon.counters(name) - before
                    counted.check(got.done)
                    rates[io_threads].append(got.per_s)
                    costs[io_threads].append(
                        {
                            thread: (cpu_after[thread] - cpu_before.get(thread, 0.0)) / counted.ok
                            for thread in cpu_after
                        }
                    )
            for io_threads in daemons:
                front = [
                    sum(value for thread, value in cost.items() if thread in FRONT_END)
                    for cost in costs[io_threads]
                ]
                total = [sum(cost.values()) for cost in costs[io_threads]]
                rows.append(
                    Row(
                        f"{name}, 8 x 16, io_threads {io_threads}",
                        {
                            "spin_us": 0,
                            "io_threads": io_threads,
                            "connections": CONNECTIONS,
                            "streams": STREAMS,
                        },
                        f"{spread(rates[io_threads])} req/s",
                        f"front end {statistics.median(front):.1f} us CPU a request, "
                        f"whole core {statistics.median(total):.1f}",
                        samples={
                            "requests_per_s": rates[io_threads],
                            "cpu_us_per_request": costs[io_threads],
                        },
                    )
                )
    return rows
