"""What a core counts, beside what was asked of it: a real core on the null runtime, and grpcio."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, predict_reply, predict_request, servable

from fastserve._native.metrics import Metrics, Series

ONE = struct.pack("<f", 1.0)


@contextmanager
def serving(*servables: dict[str, object], io_threads: int = 0, **options: object) -> Iterator[Core]:
    with Core(server={"io_threads": io_threads}, **options) as core:  # type: ignore[arg-type]
        core.serve(*servables)
        yield core


def call(channel: grpc.Channel, request: bytes, timeout: float = PATIENCE_S) -> str:
    """The name of the code that it ends with."""
    try:
        channel.unary_unary(PREDICT)(request, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def rows(n: int, model: str = "m") -> bytes:
    return predict_request(model, ONE * n, [n, 1])


def of(core: Core, version: int = 1, closed: bool = False) -> Series:
    (found,) = (
        one
        for one in core.metrics().series
        if (one.model, one.version, one.signature, one.closed) == ("m", version, "serving_default", closed)
    )
    return found


@pytest.mark.parametrize("io_threads", [0, 2])
def test_calls_are_counted_by_how_they_came_and_ended(io_threads: int) -> None:
    with serving(servable(options="run_us=3000"), io_threads=io_threads) as core:
        assert sum(of(core).requests.values()) == 0  # warming up is no traffic
        with grpc.insecure_channel(core.address) as tcp, grpc.insecure_channel(core.rest_address) as rest:
            assert [call(tcp, rows(n)) for n in (1, 2, 3)] == ["OK"] * 3
            assert [call(rest, rows(4)) for _ in range(2)] == ["OK"] * 2
            assert call(tcp, predict_request("m", ONE, [1])) == "OK"  # of another shape: alone
            assert call(rest, predict_request("m", ONE * 3, [2, 1])) == "INVALID_ARGUMENT"
            assert call(tcp, rows(1, "unknown")) == "NOT_FOUND"
            assert call(rest, b"\xff\xff\xff") == "INTERNAL"
        series, unresolved = of(core), core.metrics().unresolved
    assert series.requests == {
        ("Predict", "grpc", "OK"): 4,
        ("Predict", "rest", "OK"): 2,
        ("Predict", "rest", "INVALID_ARGUMENT"): 1,
    }
    assert unresolved == {("Predict", "grpc", "NOT_FOUND"): 1, ("Predict", "rest", "INTERNAL"): 1}
    assert {key: one.count for key, one in series.latency.items()} == {
        ("Predict", "grpc"): 4,
        ("Predict", "rest"): 2,
    }
    assert series.queue.count == 6
    assert (series.batches, series.rows) == (6, 1 + 2 + 3 + 4 + 4 + 1)
    assert series.batch_rows.items() == [(1.0, 1.0, 2), (2.0, 2.0, 1), (3.0, 3.0, 1), (4.0, 4.0, 2)]
    assert {size: one.count for size, one in series.padding.items()} == {0: 6} and series.padding_rows == 0
    assert {key: one.items() for key, one in series.request_rows.items()} == {
        "Predict": [(1.0, 1.0, 2), (2.0, 2.0, 1), (3.0, 3.0, 1), (4.0, 4.0, 2)]
    }
    assert series.compute.count == series.formation.count == series.encode.count == 6
    assert 3000 <= series.compute.quantile(0.0) <= series.latency["Predict", "grpc"].quantile(0.5) * 1.01
    assert (series.waiting_calls, series.waiting_rows) == (0, 0)


def test_a_latency_is_what_the_client_sees_but_for_the_way() -> None:
    with serving(servable(options="run_us=20000")) as core, grpc.insecure_channel(core.address) as channel:
        call(channel, rows(1))
        before, times = of(core), []
        for _ in range(20):
            began = time.perf_counter()
            call(channel, rows(1))
            times.append((time.perf_counter() - began) * 1e6)
        latency = of(core).latency["Predict", "grpc"].minus(before.latency["Predict", "grpc"])
    assert latency.count == 20
    assert latency.quantile(0.0) >= 20000 * 0.99 and latency.sum <= sum(times)
    assert latency.quantile(1.0) <= max(times) * 1.01


def test_what_waits_is_seen_while_it_waits() -> None:
    with serving(servable(options="run_us=300000")) as core, grpc.insecure_channel(core.address) as channel:
        stub = channel.unary_unary(PREDICT)
        stub(rows(1), timeout=PATIENCE_S)  # connected from here on, calls go out in their order
        first = stub.future(rows(512), timeout=PATIENCE_S)  # a whole batch: the others wait
        waiting = [stub.future(rows(n), timeout=PATIENCE_S) for n in (5, 7)]
        late = stub.future(rows(1), timeout=0.05)
        seen = set()
        while not all(one.done() for one in [first, *waiting]):
            series = of(core)
            seen.add((series.waiting_calls, series.waiting_rows))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (3, 13) in seen
        deadline = time.monotonic() + PATIENCE_S
        while sum(of(core).requests.values()) < 5:
            assert time.monotonic() < deadline
        series = of(core)
    assert (series.waiting_calls, series.waiting_rows) == (0, 0)
    assert series.expired + series.cancelled == 1
    assert series.queue.count == 4


def test_all_calls_of_versions_that_come_and_go_are_counted() -> None:
    ended: Counter[str] = Counter()
    stop = threading.Event()
    with serving(servable(), io_threads=1) as core:

        def client() -> None:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(core.address, options=options) as channel:
                mine: Counter[str] = Counter()
                while not stop.is_set():
                    mine[call(channel, rows(1))] += 1
            ended.update(mine)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 12):
            core.call("load", servable=servable(version=version))
            core.call("publish", model="m", version=version)
            core.call("retire", model="m", version=version - 1)
            core.call("close", model="m", version=version - 1)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        snapshot = core.metrics()
    found: Counter[str] = Counter()
    for series in snapshot.series:
        assert series.closed is (series.model == "m" and series.version != 11)
        for (method, transport, code), n in series.requests.items():
            assert (method, transport) == ("Predict", "grpc")
            found[code] += n
    assert found == ended and ended["OK"] > 0
    assert sum(series.rows for series in snapshot.series) == ended["OK"]


def test_without_a_memory_a_core_serves_and_counts_nothing() -> None:
    with serving(servable(), counting=False) as core, grpc.insecure_channel(core.address) as channel:
        reply = channel.unary_unary(PREDICT)(rows(2), timeout=PATIENCE_S)
        assert predict_reply(reply) == [2.5, 2.5]


def test_reading_costs_the_core_nothing_but_a_little_memory() -> None:
    """Twenty series are read in a few milliseconds of the reader's time, and their pages are all there is."""
    with serving(*(servable(version=version) for version in range(1, 21))) as core:
        message = predict_request("m", ONE, [1, 1])
        with grpc.insecure_channel(core.address) as channel:
            for _ in range(10):
                channel.unary_unary(PREDICT)(message, timeout=PATIENCE_S)
        metrics = Metrics(core._memory)
        metrics.read()
        before = os.fstat(core._memory).st_blocks
        began = time.perf_counter()
        for _ in range(10):
            assert len(metrics.read().series) == 21
        seconds = (time.perf_counter() - began) / 10
        assert os.fstat(core._memory).st_blocks == before
        assert before * 512 < 4 << 20
    assert seconds < 0.1  # usually a hundredth of that
