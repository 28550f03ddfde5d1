"""The load generator and its histogram, against a core on the null runtime and small servers of our own."""

from __future__ import annotations

import array
import os
import random
import signal
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from core_driver import PREDICT, Core, predict_reply, predict_request, servable
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve._native.load import Check, Histogram, LoadError, LoadResult, Progress, Tls, run, start
from fastserve.errors import FastServeError

CERTIFICATES = Path(__file__).parents[1] / "certificates"
ONE_ROW = predict_request("half", struct.pack("<f", 2.0), [1, 1])
TWO_ROWS = predict_request("half", struct.pack("<2f", 2.0, 4.0), [2, 1])
NOT_A_NUMBER = predict_request("nan", struct.pack("<f", float("nan")), [1, 1])
RECORD = np.dtype([("due_ns", "<i8"), ("took_ns", "<i8"), ("version", "<i4"), ("failure", "<i4")])
NOBODYS = predict_request("nobody", struct.pack("<f", 2.0), [1, 1])


# ---- histogram -------------------------------------------------------------------------------------


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**41), min_size=1), st.lists(st.floats(0, 1), max_size=5))
def test_quantiles_are_those_of_the_values_to_one_part_in_a_thousand(
    values: list[int], quantiles: list[float]
) -> None:
    histogram = filled(values)
    assert (histogram.total, histogram.min, histogram.max) == (len(values), min(values), max(values))
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    found = histogram.values_at(quantiles)
    for quantile, value in zip(quantiles, found, strict=True):
        # Beside a multiple of 1 / n, a rounding decides which of two neighbours it is.
        ranks = {max(1, -int(-(quantile * len(values) * factor) // 1)) for factor in (1 - 1e-12, 1 + 1e-12)}
        exact = [sorted(values)[min(rank, len(values)) - 1] for rank in ranks]
        assert any(one <= value <= one * 1.001 for one in exact)
        assert value == histogram.value_at(quantile)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_merging_is_as_recording_all_in_one(left: list[int], right: list[int]) -> None:
    merged, both = filled(left), filled(left + right)
    before = merged.copy()
    merged.merge(filled(right))
    assert merged.pairs() == both.pairs()
    assert (merged.total, merged.min, merged.max) == (both.total, both.min, both.max)
    assert merged.sum == pytest.approx(both.sum)
    assert before == filled(left)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**43)))
def test_pairs_make_the_same_histogram_again(values: list[int]) -> None:
    histogram = filled(values)
    again = Histogram.from_pairs(
        histogram.pairs(), minimum=histogram.min, maximum=histogram.max, total_sum=histogram.sum
    )
    assert again == histogram
    assert sum(count for _, count in histogram.pairs()) == len(values)
    assert again != filled([*values, 5])


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_the_cdf_rises_to_one(values: list[int]) -> None:
    points = filled(values).cdf()
    assert points[-1] == (max(values), 1.0)
    assert points == sorted(points)
    for value, share in points:
        assert share == pytest.approx(sum(one <= value for one in values) / len(values))


def test_an_empty_histogram_is_all_zeros() -> None:
    empty = Histogram()
    assert (empty.total, empty.min, empty.max, empty.mean, empty.sum) == (0, 0, 0, 0.0, 0.0)
    assert (empty.value_at(0.99), empty.values_at([]), empty.pairs(), empty.cdf()) == (0, [], [], [])
    assert Histogram.from_pairs([], 0, 0, 0.0) == empty


def test_a_histogram_merged_into_itself_doubles() -> None:
    histogram = filled([1, 5, 9])
    histogram.merge(histogram)
    assert histogram.pairs() == [(1, 2), (5, 2), (9, 2)]


@pytest.mark.parametrize(
    ("pairs", "minimum", "maximum"),
    [
        ([(-1, 1)], 0, 0),
        ([(1 << 20, 1)], 0, 0),
        ([(5, 0)], 5, 5),
        ([(5, -1)], 5, 5),
        ([(5, 1), (5, 1)], 5, 5),
        ([(6, 1), (5, 1)], 5, 6),
        ([(5, 1), (6, 1)], 4, 6),
        ([(5, 1), (6, 1)], 5, 7),
        ([(5, 1), (6, 1)], 6, 5),
    ],
)
def test_pairs_of_no_histogram_are_refused(pairs: list[tuple[int, int]], minimum: int, maximum: int) -> None:
    with pytest.raises(ValueError):
        Histogram.from_pairs(pairs, minimum, maximum, 0.0)


def test_values_that_cannot_be_counted_are_refused() -> None:
    for value in (-1, 2**64):
        with pytest.raises(ValueError):
            Histogram().record(value)
    for quantile in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError):
            Histogram().value_at(quantile)


# ---- gRPC ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    with Core(server={"io_threads": 1}) as core:
        core.serve(servable("half"), servable("nan", options="fail_nan=1"))
        yield core


def send(core: Core, bodies: list[bytes], **how: Any) -> LoadResult:
    how = {"path": PREDICT, "authority": core.address, **how}
    result = run(("127.0.0.1", core.port), bodies, **how)
    check(result)
    return result


def check(result: LoadResult) -> None:
    """What holds of any result."""
    assert result.sent == result.done + sum(result.failed.values()) + result.unanswered
    assert result.latency.total == result.done == sum(result.per_body_done)
    assert all(interval.done + interval.failed >= 0 for interval in result.intervals)
    assert bool(result.failed) <= bool(result.first_error)


def ok(core: Core, model: str) -> int:
    """How many calls the core says it has answered well."""
    counted: int = next(row["ok"] for row in core.stats()["signatures"] if row["model"] == model)
    return counted


def test_a_closed_loop_counts_what_the_server_counts(core: Core) -> None:
    before = ok(core, "half")
    result = send(core, [ONE_ROW, TWO_ROWS], connections=2, in_flight=8, requests=2000, warmup_s=0.05)
    assert (result.sent, result.done, result.failed, result.unanswered) == (2000, 2000, {}, 0)
    assert abs(result.per_body_done[0] - 1000) <= 16  # the warm-up ends somewhere between
    assert ok(core, "half") - before > 2000
    assert result.rate == pytest.approx(2000 / result.seconds, rel=0.05)
    assert 0 < result.latency.min <= result.latency.mean <= result.latency.max
    assert 0 < result.cpu_s < result.seconds * 1.5
    assert result.bytes_out > 2000 * len(ONE_ROW)
    assert result.bytes_in > 2000 * 20


def test_a_window_is_as_long_as_asked_and_so_are_its_intervals(core: Core) -> None:
    result = send(core, [ONE_ROW], in_flight=4, duration_s=0.5, warmup_s=0.1, interval_s=0.1)
    assert result.seconds == pytest.approx(0.5)
    assert [interval.start_s for interval in result.intervals] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert sum(interval.done for interval in result.intervals) == round(result.rate * 0.5)
    for interval in result.intervals:
        assert interval.p50_ns <= interval.p90_ns <= interval.p99_ns <= interval.max_ns
    assert send(core, [ONE_ROW], in_flight=1, requests=5, interval_s=0.0).intervals == []


def test_an_open_loop_sends_as_many_as_its_rate_says(core: Core) -> None:
    result = send(core, [ONE_ROW], rate=2000.0, arrivals="constant", duration_s=0.25, connections=2)
    assert (result.sent, result.done) == (500, 500)
    assert result.behind_ns.total == 500
    assert result.behind_ns.max <= result.latency.max
    once, again, other = (
        send(core, [ONE_ROW], rate=4000.0, duration_s=0.25, seed=seed).sent for seed in (1, 1, 2)
    )
    assert once == again  # the seed decides
    for sent in (once, other):
        assert abs(sent - 1000) < 5 * 1000**0.5  # five standard deviations of a Poisson number


def test_failures_are_told_apart(core: Core) -> None:
    result = send(core, [ONE_ROW, NOT_A_NUMBER, NOBODYS, b"\xff"], in_flight=4, requests=400)
    assert result.failed == {"INVALID_ARGUMENT": 100, "NOT_FOUND": 100, "INTERNAL": 100}
    assert result.per_body_done == [100, 0, 0, 0]
    assert sum(interval.failed for interval in result.intervals) == 300
    assert result.first_error.startswith(("INVALID_ARGUMENT: ", "NOT_FOUND: ", "INTERNAL: "))
    result = send(core, [ONE_ROW], in_flight=1, requests=3, path="/no.Service/Method")
    assert result.failed == {"UNIMPLEMENTED": 3}


def test_replies_are_weighed(core: Core) -> None:
    good = send(core, [ONE_ROW], in_flight=1, requests=1)
    assert good.done == 1
    with grpc.insecure_channel(core.address) as channel:
        size = len(channel.unary_unary(PREDICT)(ONE_ROW))
    result = send(core, [ONE_ROW, TWO_ROWS], in_flight=1, requests=10, reply_bytes=[size, size])
    assert result.failed == {"reply size": 5}
    assert f"expected are {size}" in result.first_error
    assert send(core, [TWO_ROWS], in_flight=1, requests=5, reply_bytes=[-1]).done == 5


def answered(core: Core, request: bytes) -> list[float]:
    """What the core answers, read by protobuf."""
    with grpc.insecure_channel(core.address) as channel:
        return predict_reply(channel.unary_unary(PREDICT)(request))


def test_replies_are_compared_with_what_their_version_answers(core: Core) -> None:
    first, second = answered(core, ONE_ROW), answered(core, TWO_ROWS)
    wrong = [[9.0], [9.0, 9.0]]
    right = Check("y", [wrong, [first, second]], 1e-6, 0.0)  # version 1: the second content
    how: dict[str, Any] = {"in_flight": 2, "requests": 10, "max_records": 10}
    result = send(core, [ONE_ROW, TWO_ROWS], check=right, **how)
    assert (result.done, result.failed) == (10, {})
    records = np.frombuffer(result.records, RECORD)
    assert set(records["version"]) == {1}
    assert set(records["failure"]) == {0}
    assert records["took_ns"].max() == result.latency.max
    result = send(core, [ONE_ROW, TWO_ROWS], check=right._replace(expected=[[first, second], wrong]), **how)
    assert result.failed == {"misversioned": 10}
    assert "version 1" in result.first_error
    result = send(core, [ONE_ROW, TWO_ROWS], check=right._replace(output="z"), **how)
    assert result.failed == {"bad reply": 10}
    assert set(np.frombuffer(result.records, RECORD)["version"]) == {1}


def test_requests_beyond_the_room_for_records_are_counted(core: Core) -> None:
    result = send(core, [ONE_ROW], in_flight=1, requests=10, max_records=4)
    assert (len(result.records), result.unrecorded) == (4 * RECORD.itemsize, 6)
    assert send(core, [ONE_ROW], in_flight=1, requests=10).records == b""


def test_two_runs_at_once_are_finished_when_asked(core: Core) -> None:
    how: dict[str, Any] = {"path": PREDICT, "authority": core.address, "duration_s": 3600.0}
    before = time.monotonic_ns()
    runs = [
        start(("127.0.0.1", core.port), [ONE_ROW], rate=500.0, seed=seed, max_records=10_000, **how)
        for seed in (1, 2)
    ]
    while not all(one.read()["done"] > 50 for one in runs):
        assert not any(one.over() for one in runs)
    for one in runs:
        one.finish()
    results = [one.wait() for one in runs]
    after = time.monotonic_ns()
    for result in results:
        check(result)
        assert (result.failed, result.unanswered) == ({}, 0)
        records = np.frombuffer(result.records, RECORD)
        assert len(records) == result.sent > 50
        # On the clock that Python has as time.monotonic_ns().
        assert before < records["due_ns"].min()
        assert (records["due_ns"] + records["took_ns"]).max() < after


def test_the_order_decides_which_body_goes(core: Core) -> None:
    order = array.array("I", [1, 1, 0])
    result = send(core, [ONE_ROW, TWO_ROWS], in_flight=1, requests=9, order=order)
    assert result.per_body_done == [3, 6]


def test_metadata_and_deadline_reach_the_server() -> None:
    seen: list[tuple[dict[str, Any], float | None]] = []

    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((dict(context.invocation_metadata()), context.time_remaining()))
        return request

    with grpc_server(method) as (_, port):
        result = run(
            ("127.0.0.1", port),
            [b"abc"],
            path="/t.T/Echo",
            authority="somewhere",
            in_flight=1,
            requests=2,
            timeout_s=7.0,
            send_deadline=True,
            http_headers={"X-Test": "yes"},
            reply_bytes=[3],
        )
    assert result.done == 2
    metadata, remaining = seen[0]
    assert metadata["x-test"] == "yes"
    assert remaining is not None and 5.0 < remaining <= 7.0


class grpc_server:
    """A grpcio server with one method for everything; gives itself and its port."""

    def __init__(self, method: Any, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        class Handler(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
                return grpc.unary_unary_rpc_method_handler(method)

        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((Handler(),))
        address = f"127.0.0.1:{port}"
        self.port = (
            self.server.add_insecure_port(address)
            if credentials is None
            else self.server.add_secure_port(address, credentials)
        )
        self.server.start()

    def __enter__(self) -> tuple[grpc.Server, int]:
        return self.server, self.port

    def __exit__(self, *exception: object) -> None:
        self.server.stop(None).wait(10)


def test_tls_is_spoken_with_and_without_a_certificate_of_our_own() -> None:
    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    pem = {path.name: path.read_bytes() for path in CERTIFICATES.glob("*.*")}
    pair = [(pem["server.key"], pem["server.pem"])]
    for mutual in (False, True):
        credentials = grpc.ssl_server_credentials(pair, pem["ca.pem"] if mutual else None, mutual)
        with grpc_server(echo, credentials=credentials) as (_, port):
            how: dict[str, Any] = {"path": "/t.T/Echo", "authority": "localhost", "reply_bytes": [3]}
            tls = Tls("localhost", ca=pem["ca.pem"])
            if mutual:
                tls = tls._replace(certificate=pem["client.pem"], key=pem["client.key"])
            result = run(("127.0.0.1", port), [b"abc"], in_flight=4, requests=200, tls=tls, **how)
            assert (result.done, result.failed) == (200, {})
            with pytest.raises(LoadError, match=r"TLS: .*verify"):
                run(("127.0.0.1", port), [b""], in_flight=1, requests=1, tls=Tls("localhost"), **how)
    with pytest.raises(LoadError, match=r"certificate|PEM"):
        run(("127.0.0.1", port), [b""], in_flight=1, requests=1, tls=Tls("localhost", ca=b"no"), **how)


def test_a_lost_connection_is_dialled_again_and_the_run_goes_on() -> None:
    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    with futures.ThreadPoolExecutor(1) as pool:
        with grpc_server(echo) as (_, port):
            running = pool.submit(
                run,
                ("127.0.0.1", port),
                [b"abc"],
                path="/t.T/Echo",
                authority="here",
                rate=200.0,
                arrivals="constant",
                duration_s=1.5,
                connections=2,
                timeout_s=5.0,
            )
            time.sleep(0.3)
        with grpc_server(echo, port):
            result = running.result(30)
    check(result)
    assert result.sent == 300
    assert result.failed
    # The server's last words to calls that it still knows may be these.
    assert set(result.failed) <= {"connection", "UNAVAILABLE", "CANCELLED"}
    assert result.reconnects > 0
    assert result.unanswered == 0
    last = [interval.done for interval in result.intervals][-3:]
    assert sum(last) > 10  # of 60: it came back


def test_a_unix_socket_is_an_address_too(core: Core) -> None:
    path = core.unix_address.removeprefix("unix:")
    result = run(("unix", path), [ONE_ROW], path=PREDICT, authority="x", in_flight=2, requests=100)
    assert result.done == 100


def test_a_server_that_does_not_answer_is_waited_for_so_long(core: Core) -> None:
    how: dict[str, Any] = {"path": "/a/b", "authority": "x", "in_flight": 1, "requests": 1, "timeout_s": 0.3}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(LoadError, match="no connection"):
            run(silent.getsockname(), [b""], **how)
        assert 0.3 <= time.monotonic() - began < 10.0


# ---- HTTP ------------------------------------------------------------------------------------------


class Recorder(socketserver.ThreadingTCPServer):
    """An HTTP server that notes when each body came, and answers with its bytes."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Recorder.Handler)
        self.came: list[tuple[float, bytes]] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                length = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name == b"content-length" else length
                body = self.rfile.read(length)
                assert isinstance(self.server, Recorder)
                self.server.came.append((time.monotonic(), body))
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (length, body))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(server: Recorder, bodies: list[bytes], **how: Any) -> LoadResult:
    address = server.server_address
    return run((address[0], address[1]), bodies, protocol="http", path="/x", authority="h", **how)


def test_http_answers_are_counted_and_weighed(recorder: Recorder) -> None:
    result = post(
        recorder, [b"a", b"bb", b""], connections=3, in_flight=1, requests=90, reply_bytes=[1, 2, 0]
    )
    check(result)
    assert (result.done, result.failed) == (90, {})
    assert result.per_body_done == [30, 30, 30]
    assert sorted(body for _, body in recorder.came) == sorted([b"a", b"bb", b""] * 30)


def test_a_replay_keeps_the_times_of_the_log(recorder: Recorder) -> None:
    drawn = random.Random(3)
    times = array.array("q", sorted(drawn.randrange(0, 400_000) for _ in range(100)))
    order = array.array("I", [drawn.randrange(4) for _ in range(100)])
    bodies = [b"a", b"b", b"c", b"d"]
    result = post(recorder, bodies, times_us=times, order=order, connections=8)
    check(result)
    assert result.done == 100
    came = sorted(recorder.came)
    late = sorted(at - time_us / 1e6 for (at, _), time_us in zip(came, times, strict=True))
    assert late[50] - late[0] < 0.05  # of 0.4 s, half of them; a busy machine delays some
    assert sorted(body for _, body in came) == sorted(bodies[i] for i in order)


# ---- stopping it -----------------------------------------------------------------------------------


def test_ctrl_c_ends_the_run(core: Core) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        send(core, [ONE_ROW], in_flight=2, duration_s=60.0)
    assert time.monotonic() - began < 5.0
    timer.join()


def test_progress_is_shown_on_the_calling_thread_and_may_end_the_run(core: Core) -> None:
    shown: list[Progress] = []
    threads = set()

    def look(progress: Progress) -> None:
        threads.add(threading.current_thread())
        shown.append(progress)
        if progress["measuring"] and progress["done"] > 0:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        send(core, [ONE_ROW], in_flight=2, duration_s=60.0, on_progress=look)
    assert threads == {threading.current_thread()}
    assert shown[-1]["elapsed_s"] > 0
    assert shown[-1]["sent"] - shown[-1]["done"] <= 2 + shown[-1]["outstanding"]
    shown.clear()
    result = send(core, [ONE_ROW], in_flight=2, requests=10, on_progress=shown.append)
    assert shown[-1]["done"] == result.done == 10


# ---- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "give one of in_flight"),
        ({"in_flight": 1, "rate": 5.0}, "give one of in_flight"),
        ({"in_flight": -1}, "in_flight is -1"),
        ({"in_flight": 2, "protocol": "http"}, "from 1 to 1"),
        ({"in_flight": 1, "protocol": "tcp"}, "protocol is 'tcp'"),
        ({"rate": -5.0}, "rate is -5.0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": 5.0, "arrivals": "bursts"}, "arrivals is 'bursts'"),
        ({"rate": 5.0, "requests": 0, "duration_s": 0.0}, "when is it to end"),
        ({"rate": 5.0, "duration_s": 1.0}, "not both"),
        ({"rate": 5.0, "warmup_s": -1.0}, "warmup_s is -1.0"),
        ({"rate": 5.0, "timeout_s": 0.0}, "timeout_s is 0.0"),
        ({"rate": 5.0, "interval_s": 1e-6}, "interval_s is 1e-06"),
        ({"rate": 5.0, "connections": 0}, "connections is 0"),
        ({"rate": 5.0, "max_outstanding": 0}, "max_outstanding is 0"),
        ({"rate": 5.0, "bodies": []}, "at least one body"),
        ({"rate": 5.0, "reply_bytes": [1, 2]}, "2 reply_bytes for 1 bodies"),
        ({"rate": 5.0, "order": array.array("I", [1])}, "order\\[0\\] is 1"),
        ({"rate": 5.0, "order": array.array("I")}, "order is empty"),
        ({"rate": 5.0, "order": array.array("q", [0])}, "dtype mismatch"),
        ({"times_us": array.array("q")}, "times_us is empty"),
        ({"times_us": array.array("q", [5, 4])}, "must rise"),
        ({"times_us": array.array("q", [-1])}, "must rise"),
        ({"rate": 5.0, "path": "x"}, "path 'x'"),
        ({"rate": 5.0, "authority": "a\r\nb"}, "no header may have"),
        ({"rate": 5.0, "http_headers": {"a b": "c"}}, "no name of a header"),
        ({"rate": 5.0, "http_headers": {"a": "c\n"}}, "no header may have"),
        ({"rate": 5.0, "address": ("localhost", 80)}, "no IP address"),
        ({"rate": 5.0, "address": ("127.0.0.1", 0)}, "is not \\(host, port\\)"),
        ({"rate": 5.0, "address": ("unix", "x" * 200)}, "no path of a socket"),
        ({"rate": 5.0, "protocol": "http", "tls": Tls("x")}, "TLS is for"),
        ({"rate": 5.0, "max_records": -1}, "max_records is -1"),
        ({"rate": 5.0, "check": Check("y", [], 0.0, 0.0)}, "has no content"),
        ({"rate": 5.0, "check": Check("y", [[[1.0], [1.0]]], 0.0, 0.0)}, "for all 1 bodies"),
        ({"rate": 5.0, "check": Check("y", [[[1.0]], [[]]], 0.0, 0.0)}, "different numbers of values"),
        ({"rate": 5.0, "check": Check("y", [[[1.0]]], 0.0, -1.0)}, "0 or more"),
        ({"rate": 5.0, "protocol": "http", "check": Check("y", [[[1.0]]], 0.0, 0.0)}, "check is for"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(how: dict[str, Any], says: str) -> None:
    how = {
        "address": ("127.0.0.1", 1),
        "bodies": [b""],
        "path": "/a/b",
        "authority": "x",
        "requests": 1,
    } | how
    with pytest.raises(ValueError, match=says):
        run(how.pop("address"), how.pop("bodies"), **how)


def test_a_server_that_is_not_there_is_an_error_for_users() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with pytest.raises(FastServeError, match=f"no connection to 127.0.0.1:{address[1]}: .*refused"):
        run(address, [b""], path="/a/b", authority="x", in_flight=1, requests=1)


def test_a_processor_that_is_not_there_is_an_error_for_users() -> None:
    with pytest.raises(LoadError, match="no processor 1000"):
        run(("127.0.0.1", 1), [b""], path="/a/b", authority="x", in_flight=1, requests=1, processor=1000)
