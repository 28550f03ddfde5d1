"""Memory: of an idle core, over many requests, after a large one, and with many connections."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import bare
import process
from case import CONNECTIONS, MIB, STREAMS, Bench, send, stock_client, verify
from drive import drive
from report import Row
from servers import serving

LARGE_BYTES = 64 << 20


def million(bench: Bench) -> list[Row]:
    """Many requests: memory stays, and the native core allocates nothing for them.

    Once with a model that costs nothing and once with the ranker, whose batches vary in size: TensorFlow's
    allocators take some hundred thousand requests to find their level, hence its longer warm-up.
    """
    total = 100_000 if bench.quick else 1_000_000
    rows = []
    for name, warm_up in (("half_plus_two", total // 5), ("ranker", total)):
        bodies = bench.bodies(name)
        with serving([bench.served(name)]) as daemon:
            pid = daemon.core_pid()
            verify(daemon, name)
            bench.say(f"{name}, {warm_up:,} requests of warm-up")
            warming = [process.rss_bytes(pid)]
            for _ in range(4):
                send(daemon.port, bodies, warm_up // 4)
                warming.append(process.rss_bytes(pid))
            before = daemon.counters(name)
            readings, allocations = [process.rss_bytes(pid)], [0]
            for number in range(4):
                bench.say(f"{name}, {number * total // 4:,} of {total:,} requests")
                send(daemon.port, bodies, total // 4)
                readings.append(process.rss_bytes(pid))
                allocations.append((daemon.counters(name) - before).system_allocs)
            counted = daemon.counters(name) - before
            counted.check(total)
        ratio = max(readings) / readings[0]
        a_request = counted.system_allocs / counted.ok
        parameters = {"spin_us": 0, "io_threads": 0, "connections": CONNECTIONS, "streams": STREAMS}
        samples = {
            "warm_up_requests": warm_up,
            "warm_up_rss_bytes": warming,
            "requests": counted.ok,
            "rss_bytes": readings,
            "system_allocs": allocations,
        }
        rows.append(
            Row(
                f"{name}, {counted.ok:,} requests: memory",
                parameters,
                f"RSS {readings[0] / MIB:.1f} -> {readings[-1] / MIB:.1f} MiB",
                f"{warming[0] / MIB:.1f} before {warm_up:,} requests of warm-up",
                ratio,
                "< 1.02",
                ratio < 1.02,
                samples,
            )
        )
        rows.append(
            Row(
                f"{name}, {counted.ok:,} requests: native allocations",
                parameters,
                f"{counted.system_allocs:,} in all",
                "",
                a_request,
                "0 a request (< 0.001)",
                a_request < 1e-3,
                samples,
            )
        )
    return rows


def large(bench: Bench) -> list[Row]:
    """64 MB to the server and back; memory before, at its peak and afterwards.

    TensorFlow's allocator keeps the memory of its largest tensors for the next run, in any process; what
    it keeps is measured in the bare one and belongs to "before".
    """
    limits = {"max_message_bytes": "256MiB", "max_compressed_bytes": "256MiB"}
    with serving([bench.served("wide")], limits=limits) as daemon:
        pid = daemon.core_pid()
        stock_client("large", daemon.port, str(4096))
        before = process.rss_bytes(pid)
        process.reset_peak_rss(pid)
        bench.say("64 MB there and back")
        outcome = stock_client("large", daemon.port, str(LARGE_BYTES))
        peak = process.peak_rss_bytes(pid)
        kept = _kept_by_tensorflow(bench)
        expected = before + kept
        after = process.settled(lambda: process.rss_bytes(pid), expected * 1.02, 10.0)
    median_s = statistics.median(outcome["seconds"])
    return [
        Row(
            "64 MB request and reply",
            {"spin_us": 0, "io_threads": 0, "connections": 1, "streams": 1},
            f"served {outcome['rounds']} times, median {median_s * 1000:.0f} ms; "
            f"RSS {before / MIB:.0f} MiB, peak {peak / MIB:.0f}, afterwards {after / MIB:.0f}",
            f"before and what TensorFlow keeps: {expected / MIB:.0f} MiB",
            after / expected,
            "<= 1.05",
            after <= expected * 1.05,
            {"rss_before": before, "rss_peak": peak, "rss_after": after, "kept": kept, **outcome},
        )
    ]


def _kept_by_tensorflow(bench: Bench) -> int:
    """How much larger the bare process is after one run of LARGE_BYTES than after a small one."""
    resident = []
    for size in (4096, LARGE_BYTES):
        with tempfile.NamedTemporaryFile(prefix="fastserve-bench-") as file:
            file.truncate(size)
            model = bench.model("wide")
            feed = model["feeds"][0] | {"row_bytes": size, "row_dim": size // 4, "file": file.name}
            with bare.IdleProcess(model | {"feeds": [feed]}, bench.session_config) as pid:
                resident.append(process.rss_bytes(pid))
    return max(0, resident[1] - resident[0])


def many_connections(bench: Bench) -> list[Row]:
    """1,000 connections at once, each with a request in flight; memory back when they are gone."""
    connections = 1000
    requests = 20_000 if bench.quick else 200_000
    bodies = bench.bodies("half_plus_two")
    with serving([bench.served("half_plus_two")]) as daemon:
        pid = daemon.core_pid()
        drive(daemon.port, bodies, connections=8, in_flight=connections // 8, requests=requests)
        before, rss_before = daemon.counters("half_plus_two"), process.rss_bytes(pid)
        process.reset_peak_rss(pid)
        bench.say(f"{connections} connections")
        with watched(lambda: float(daemon.stats()["connections"])) as seen:
            got = drive(
                daemon.port, bodies, connections=connections, in_flight=1, requests=requests, warmup_s=0.0
            )
        (daemon.counters("half_plus_two") - before).check(got.done)
        peak_rss = process.peak_rss_bytes(pid)
        open_after = process.settled(lambda: float(daemon.stats()["connections"]), 0.0, 10.0)
        rss_after = process.settled(lambda: process.rss_bytes(pid), rss_before * 1.02, 10.0)
    peak = max(seen, default=0.0)
    served = got.done == requests and peak >= connections and open_after == 0
    return [
        Row(
            "half_plus_two, 1,000 connections",
            {"spin_us": 0, "io_threads": 0, "connections": connections, "streams": 1, "requests": requests},
            f"{got.done:,} of {requests:,} served at {got.per_s:,.0f} req/s; "
            f"{peak:.0f} connections at once, then {open_after:.0f}",
            f"RSS {rss_before / MIB:.0f} MiB, peak {peak_rss / MIB:.0f}, afterwards {rss_after / MIB:.0f}",
            rss_after / rss_before,
            "<= 1.1",
            served and rss_after <= rss_before * 1.1,
            {
                "rss_before": rss_before,
                "rss_peak": peak_rss,
                "rss_after": rss_after,
                "requests_per_s": got.per_s,
            },
        )
    ]


@contextmanager
def watched(read: Callable[[], float]) -> Iterator[list[float]]:
    """Reads a value every 50 ms while the block runs."""
    seen: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.append(read())

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def idle_memory(bench: Bench) -> list[Row]:
    """The core with half_plus_two and nothing to do, beside a process that only has TensorFlow open."""
    with (
        serving([bench.served("half_plus_two")]) as daemon,
        bare.IdleProcess(bench.model("half_plus_two"), bench.session_config) as bare_pid,
    ):
        bench.say("both idle")
        time.sleep(1.0 if bench.quick else 3.0)
        core, control = process.rss_bytes(daemon.core_pid()), process.rss_bytes(daemon.control_pid)
        least = process.rss_bytes(bare_pid)
    ratio = core / least
    return [
        Row(
            "idle core with half_plus_two",
            {"spin_us": 0, "io_threads": 0},
            f"RSS {core / MIB:.0f} MiB (control process {control / MIB:.0f})",
            f"bare process {least / MIB:.0f} MiB",
            ratio,
            "<= 1.2",
            ratio <= 1.2,
            {"core_rss": core, "control_rss": control, "bare_rss": least},
        )
    ]
