"""The core's front end, with grpcio as the oracle: on the loop, and on one and two epoll threads."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, predict_reply, predict_request, servable

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
IO_THREADS = [0, 1, 2]
SLOW_S = 0.3


def request(value: float, model: str = "m") -> bytes:
    return predict_request(model, struct.pack("<f", value), [1, 1])


def channel(core: Core, address: str = "", **options: object) -> grpc.Channel:
    """A channel with a connection of its own."""
    named = {"grpc.use_local_subchannel_pool": 1, **{f"grpc.{key}": value for key, value in options.items()}}
    return grpc.insecure_channel(address or core.address, options=list(named.items()))


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


def until(condition: Callable[[], bool]) -> None:
    """Waits for what the core's own figures will show."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counters(core: Core, model: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in core.stats()["signatures"] if row["model"] == model)
    return row


@pytest.fixture(scope="module", params=IO_THREADS, ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    with Core(server={"io_threads": request.param}) as core:
        core.io_threads = request.param
        core.serve(servable("m"), servable("slow", options=f"run_us={SLOW_S * 1e6:.0f}", batched=False))
        yield core


def test_the_threads_that_were_asked_for_are_there(core: Core) -> None:
    named = sorted(name for name in core.threads() if name.startswith("fs-io-"))
    assert named == [f"fs-io-{n}" for n in range(core.io_threads)]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_predict_is_answered(core: Core, transport: str) -> None:
    with channel(core, core.unix_address if transport == "unix" else core.address) as one:
        predict = one.unary_unary(PREDICT)
        for value in (0.0, 1.0, -7.5):
            assert predict_reply(predict(request(value), timeout=PATIENCE_S)) == [0.5 * value + 2]


def test_two_thousand_calls_from_several_channels_each_get_their_own_answer(core: Core) -> None:
    before = counters(core, "m")["ok"]
    channels = [channel(core) for _ in range(8)]
    calls = []
    for number in range(2000):
        predict = channels[number % 8].unary_unary(PREDICT)
        calls.append(predict.future(request(float(number)), timeout=PATIENCE_S))
    for number, call in enumerate(calls):
        assert predict_reply(call.result()) == [0.5 * number + 2]
    assert counters(core, "m")["ok"] == before + 2000
    for one in channels:
        one.close()
    until(lambda: core.stats()["connections"] == 0)
    until(lambda: core.stats()["bytes_in_flight"] == 0)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_taken(core: Core, compression: grpc.Compression) -> None:
    with channel(core) as one:
        reply = one.unary_unary(PREDICT)(request(4.0), timeout=PATIENCE_S, compression=compression)
        assert predict_reply(reply) == [4.0]


def test_unknown_models_and_methods_are_refused(core: Core) -> None:
    with channel(core) as one:
        unknown = one.unary_unary(PREDICT)
        assert code_of(lambda: unknown(request(1.0, "nope"))) is grpc.StatusCode.NOT_FOUND
        assert code_of(lambda: one.unary_unary("/a.B/C")(b"")) is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_checked(core: Core) -> None:
    with channel(core) as one:
        check = one.unary_unary(CHECK)
        assert check(b"", timeout=PATIENCE_S) == SERVING
        assert check(b"\x0a\x01m", timeout=PATIENCE_S) == SERVING
        assert code_of(lambda: check(b"\x0a\x04nope")) is grpc.StatusCode.NOT_FOUND
        assert code_of(lambda: check(b"\x0b")) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watch_that_is_cancelled_leaves_the_connection_usable(core: Core) -> None:
    with channel(core) as one:
        for _ in range(3):
            watch = one.unary_stream(WATCH)(b"", timeout=PATIENCE_S)
            assert next(watch) == SERVING
            watch.cancel()
            assert one.unary_unary(CHECK)(b"", timeout=PATIENCE_S) == SERVING
        until(lambda: core.stats()["bytes_in_flight"] == 0)


def test_a_watch_ends_at_its_deadline(core: Core) -> None:
    with channel(core) as one:
        watch = one.unary_stream(WATCH)(b"", timeout=0.2)
        assert next(watch) == SERVING
        assert code_of(lambda: next(watch)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancelled_calls_reach_the_queue(core: Core) -> None:
    before = counters(core, "slow")
    with channel(core) as one:
        slow = one.unary_unary(PREDICT)
        first = slow.future(request(1.0, "slow"), timeout=PATIENCE_S)
        waiting = [slow.future(request(1.0, "slow"), timeout=PATIENCE_S) for _ in range(20)]
        until(lambda: core.stats()["bytes_in_flight"] > 20 * 1024)
        for call in waiting:
            call.cancel()
        assert predict_reply(first.result()) == [2.5]
    until(lambda: counters(core, "slow")["cancelled"] >= before["cancelled"] + 19)  # one may run already
    until(lambda: core.stats()["bytes_in_flight"] == 0)


def test_deadlines_that_pass_in_the_queue_are_answered_without_a_run(core: Core) -> None:
    before = counters(core, "slow")
    with channel(core) as one:
        slow = one.unary_unary(PREDICT)
        first = slow.future(request(1.0, "slow"), timeout=PATIENCE_S)
        until(lambda: counters(core, "slow")["batches"] + core.stats()["bytes_in_flight"] > before["batches"])
        for call in [slow.future(request(1.0, "slow"), timeout=0.05) for _ in range(5)]:
            assert code_of(call.result) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert predict_reply(first.result()) == [2.5]
    until(lambda: core.stats()["bytes_in_flight"] == 0)
    after = counters(core, "slow")
    assert after["batches"] - before["batches"] <= 2  # the first, and at most one that ran before it was late


def test_clients_that_vanish_are_noticed(core: Core) -> None:
    with channel(core) as one:
        calls = [one.unary_unary(PREDICT).future(request(1.0, "slow"), timeout=PATIENCE_S) for _ in range(3)]
        until(lambda: core.stats()["connections"] == 1)
    for call in calls:
        assert call.code() is grpc.StatusCode.CANCELLED
    until(lambda: core.stats()["connections"] == 0)
    until(lambda: core.stats()["bytes_in_flight"] == 0)
    with channel(core) as one:
        assert predict_reply(one.unary_unary(PREDICT)(request(2.0), timeout=PATIENCE_S)) == [3.0]


@pytest.mark.parametrize("io_threads", IO_THREADS)
def test_connections_beyond_the_limit_are_closed(io_threads: int) -> None:
    with Core(server={"io_threads": io_threads}, limits={"max_connections": 3}) as core:
        core.serve(servable("m"))
        held = [socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) for _ in range(3)]
        until(lambda: core.stats()["connections"] == 3)
        with socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) as fourth:
            assert fourth.recv(1) == b""
        for one in held:
            one.close()
        until(lambda: core.stats()["connections"] == 0)
        with channel(core) as again:
            assert predict_reply(again.unary_unary(PREDICT)(request(2.0), timeout=PATIENCE_S)) == [3.0]


# ---- draining ----


def _bare_client(core: Core) -> socket.socket:
    """An HTTP/2 connection on which nothing is ever asked."""
    sock = socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S)
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0")
    return sock


def _goaways(sock: socket.socket) -> list[int]:
    """The last stream ids of the GOAWAYs that come until the end of the connection."""
    data = b""
    while more := sock.recv(65536):
        data += more
    found = []
    while data:
        size, kind = int.from_bytes(data[:3]), data[3]
        if kind == 7:
            found.append(int.from_bytes(data[9:13]) & 0x7FFFFFFF)
        data = data[9 + size :]
    return found


@pytest.mark.parametrize("how", ["command", "sigterm"])
@pytest.mark.parametrize("io_threads", IO_THREADS)
def test_a_drain_loses_nothing(io_threads: int, how: str) -> None:
    lame_duck_s = 1.0
    server = {"io_threads": io_threads, "lame_duck_s": lame_duck_s}
    with Core(server=server, executor={"threads": 2}) as core, channel(core) as one, channel(core) as other:
        core.serve(servable("m"), servable("slow", options="run_us=2000000", batched=False))
        check, predict = one.unary_unary(CHECK), one.unary_unary(PREDICT)
        watch = other.unary_stream(WATCH)(b"", timeout=PATIENCE_S)
        assert next(watch) == SERVING
        idle = _bare_client(core)
        in_flight = predict.future(request(1.0, "slow"), timeout=PATIENCE_S)
        until(lambda: core.stats()["bytes_in_flight"] > 2048)

        began = time.monotonic()
        drain = 0
        if how == "command":
            drain = core.begin("drain", lame_duck_s=lame_duck_s, drain_timeout_s=20)
        else:
            core.terminate()
        assert next(watch) == NOT_SERVING
        assert check(b"", timeout=PATIENCE_S) == NOT_SERVING
        assert predict_reply(predict(request(6.0), timeout=PATIENCE_S)) == [5.0]  # a lame duck still serves
        assert time.monotonic() - began < lame_duck_s
        goaways = _goaways(idle)
        assert goaways == [0x7FFFFFFF, 0]
        assert time.monotonic() - began >= lame_duck_s
        idle.close()
        assert predict_reply(in_flight.result()) == [2.5]
        assert code_of(lambda: next(watch)) is grpc.StatusCode.UNAVAILABLE
        if drain:
            assert core.finish(drain)["unanswered"] == 0
        assert core.wait() == 0
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("io_threads", IO_THREADS)
def test_a_drain_under_load_answers_every_call_that_was_taken(io_threads: int) -> None:
    """Each client reconnects no more once it has seen UNAVAILABLE; nothing else may go wrong."""
    with Core(server={"io_threads": io_threads}) as core:
        core.serve(servable("m", options="run_us=200"))
        answered, wrong = [0] * 4, []

        def client(number: int) -> None:
            with channel(core) as one:
                predict = one.unary_unary(PREDICT)
                while True:
                    try:
                        reply = predict(request(2.0), timeout=PATIENCE_S)
                    except grpc.RpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            wrong.append(str(error))
                        return
                    if predict_reply(reply) != [3.0]:
                        wrong.append(str(reply))
                    answered[number] += 1

        clients = [threading.Thread(target=client, args=[number]) for number in range(4)]
        for one in clients:
            one.start()
        until(lambda: min(answered) > 50)
        core.stop_listening()
        assert core.call("drain", lame_duck_s=0, drain_timeout_s=20)["unanswered"] == 0
        for one in clients:
            one.join(PATIENCE_S)
        assert not wrong
        assert core.wait() == 0


@pytest.mark.parametrize("io_threads", IO_THREADS)
def test_a_drain_that_takes_too_long_says_what_it_left(io_threads: int) -> None:
    server = {"io_threads": io_threads}
    with Core(server=server) as core, channel(core) as one:
        core.serve(servable("slow", options="run_us=1500000", batched=False))
        call = one.unary_unary(PREDICT).future(request(1.0, "slow"), timeout=PATIENCE_S)
        until(lambda: core.stats()["bytes_in_flight"] > 0)
        assert core.call("drain", lame_duck_s=0, drain_timeout_s=0.3)["unanswered"] == 1
        assert code_of(call.result) is grpc.StatusCode.UNAVAILABLE
        assert core.wait() == 0
