"""TLS on the core's sockets, with grpcio and Python's ssl as the oracles: on the epoll threads there are, and
on the one that is made for it."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from certificate_files import FOLDER, credentials_command, secure_channel
from core_driver import PATIENCE_S, PREDICT, Core, Refused, predict_reply, predict_request, servable

from fastserve.client import Client, Tls

WATCH = "/grpc.health.v1.Health/Watch"
SERVING = b"\x08\x01"
IO_THREADS = [0, 2]
SLOW_S = 0.3


def request(value: float, model: str = "m") -> bytes:
    return predict_request(model, struct.pack("<f", value), [1, 1])


def predict(
    channel: grpc.Channel, value: float, model: str = "m", timeout: float = PATIENCE_S
) -> list[float]:
    return predict_reply(channel.unary_unary(PREDICT)(request(value, model), timeout=timeout))


def fails(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def until(condition: Callable[[], bool]) -> None:
    """Waits for what the core's own figures will show."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(core: Core, words: str) -> dict[str, Any]:
    """The fields of the next handshake that the log is told of, for a reason with these words."""
    while True:
        event = core.event("log")
        if event["message"] == "TLS handshakes refused" and words in event["fields"]["why"]:
            fields: dict[str, Any] = event["fields"]
            return fields


def started(io_threads: int, **command: Any) -> Core:
    core = Core(tls=True, server={"io_threads": io_threads, "tls": {"handshake_timeout_s": 0.5}})
    core.call("credentials", **credentials_command(**command))
    core.serve(servable("m"), servable("slow", options=f"run_us={SLOW_S * 1e6:.0f}", batched=False))
    return core


@pytest.fixture(scope="module", params=IO_THREADS, ids=lambda n: f"io_threads={n}")
def shared(request: pytest.FixtureRequest) -> Iterator[Core]:
    with started(request.param) as core:
        core.io_threads = request.param
        yield core


@pytest.fixture(params=IO_THREADS, ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    """One for a test: it has refused nobody yet."""
    with started(request.param) as core:
        core.io_threads = request.param
        yield core


@pytest.fixture(params=IO_THREADS, ids=lambda n: f"io_threads={n}")
def demanding(request: pytest.FixtureRequest) -> Iterator[Core]:
    """Clients must show a certificate."""
    with started(request.param, client_ca=True) as core:
        yield core


# ---- calls -----------------------------------------------------------------------------------------


def test_there_is_a_thread_for_tls(shared: Core) -> None:
    named = sorted(name for name in shared.threads() if name.startswith("fs-io-"))
    assert named == [f"fs-io-{n}" for n in range(shared.io_threads or 1)]


def test_calls_over_tls_and_plain_on_the_unix_socket(shared: Core) -> None:
    with secure_channel(shared.address) as secure, grpc.insecure_channel(shared.unix_address) as plain:
        for value in (0.0, 1.0, -7.5):
            assert predict(secure, value) == [0.5 * value + 2]
            assert predict(plain, value) == [0.5 * value + 2]


def test_two_thousand_calls_from_several_channels_each_get_their_own_answer(shared: Core) -> None:
    channels = [secure_channel(shared.address) for _ in range(4)]
    calls = []
    for number in range(2000):
        call = channels[number % 4].unary_unary(PREDICT)
        calls.append(call.future(request(float(number)), timeout=PATIENCE_S))
    for number, future in enumerate(calls):
        assert predict_reply(future.result()) == [0.5 * number + 2]
    for one in channels:
        one.close()
    until(lambda: shared.stats()["connections"] == 0)
    until(lambda: shared.stats()["bytes_in_flight"] == 0)


def test_large_messages_both_ways(shared: Core) -> None:
    rows = 4 << 20
    sizes = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}
    options = [("grpc.ssl_target_name_override", "localhost"), *sizes.items()]
    content = struct.pack("<f", 3.0) * rows
    credentials = grpc.ssl_channel_credentials((FOLDER / "ca.pem").read_bytes())
    with grpc.secure_channel(shared.address, credentials, options=options) as channel:
        reply = predict_reply(
            channel.unary_unary(PREDICT)(predict_request("m", content, [rows, 1]), timeout=PATIENCE_S)
        )
    assert len(reply) == rows and set(reply) == {3.5}


def test_streams_and_their_end(shared: Core) -> None:
    with secure_channel(shared.address) as channel:
        watch = channel.unary_stream(WATCH)(b"", timeout=PATIENCE_S)
        assert next(watch) == SERVING
        watch.cancel()
        assert predict(channel, 1.0) == [2.5]


def test_our_own_client(shared: Core) -> None:
    import numpy as np

    with Client([f"localhost:{shared.port}"], tls=Tls(ca=FOLDER / "ca.pem")) as client:
        answer = client.predict("m", {"x": np.full((5, 1), 4.0, np.float32)})
        assert answer["y"].tolist() == [[4.0]] * 5


# ---- who is let in ----------------------------------------------------------------------------------


def test_a_client_that_does_not_trust_us_goes(core: Core) -> None:
    with secure_channel(core.address, ca="stranger") as channel:
        error = fails(lambda: predict(channel, 1.0))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    refused = told(core, "the client")  # closed the connection, or refused our certificate
    assert refused["refused"] == 1 and refused["peer"].startswith("127.0.0.1:")
    with secure_channel(core.address) as channel:
        assert predict(channel, 1.0) == [2.5]


def test_only_clients_with_a_certificate_of_the_ca(demanding: Core) -> None:
    with secure_channel(demanding.address, client="client") as channel:
        assert predict(channel, 1.0) == [2.5]
    for client in (None, "stranger"):
        with secure_channel(demanding.address, client=client) as channel:
            assert fails(lambda: predict(channel, 1.0)).code() is grpc.StatusCode.UNAVAILABLE
    assert told(demanding, "certificate")["refused"] == 1
    until(lambda: demanding.stats()["handshakes_refused"] >= 2)


def test_a_client_whose_certificate_has_expired_is_refused_for_that(demanding: Core) -> None:
    with secure_channel(demanding.address, client="expired") as channel:
        assert fails(lambda: predict(channel, 1.0)).code() is grpc.StatusCode.UNAVAILABLE
    assert told(demanding, "certificate has expired")["refused"] == 1
    with secure_channel(demanding.address, client="client") as channel:
        assert predict(channel, 1.0) == [2.5]


def test_plain_calls_and_garbage_are_refused_and_disturb_nobody(core: Core) -> None:
    with grpc.insecure_channel(core.address) as plain:
        assert fails(lambda: predict(plain, 1.0, timeout=5)).code() is grpc.StatusCode.UNAVAILABLE
    assert told(core, "the client does not speak TLS")["refused"] == 1
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05garbage", bytes(1000)):
        with socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) as sock:
            sock.sendall(garbage)
            while sock.recv(4096):
                pass  # the alert, then the end
    with secure_channel(core.address) as channel:
        assert predict(channel, 1.0) == [2.5]


def test_half_a_handshake_ends_in_time(core: Core) -> None:
    began = time.monotonic()
    socks = [socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) for _ in range(20)]
    for number, sock in enumerate(socks):
        if number % 2:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01")
    with secure_channel(core.address) as channel:
        assert predict(channel, 1.0) == [2.5]  # meanwhile
    for sock in socks:
        assert sock.recv(1) == b""
        sock.close()
    assert 0.4 < time.monotonic() - began < PATIENCE_S / 2
    assert told(core, "too long over the handshake")["refused"] == 1


def handshake(core: Core, alpn: list[str] | None, version: ssl.TLSVersion) -> str | None:
    """Python's own handshake, with no more than a version; the version that comes of it. ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    with (
        socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) as sock,
        context.wrap_socket(sock) as wrapped,
    ):
        return wrapped.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_at_least_tls_1_2(core: Core) -> None:
    assert handshake(core, ["h2"], ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(core, ["h2"], ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(core, ["h2"], ssl.TLSVersion.TLSv1_1)
    assert told(core, "unsupported protocol")["refused"] == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("alpn", [None, ["http/1.1"]])
def test_only_http2(core: Core, alpn: list[str] | None) -> None:
    try:
        handshake(core, alpn, ssl.TLSVersion.TLSv1_3)  # who offers nothing learns of it afterwards
    except (ssl.SSLError, ConnectionError):
        assert alpn
    assert told(core, "does not offer HTTP/2")["refused"] == 1


# ---- certificates change, the core ends ---------------------------------------------------------------


def test_another_certificate_while_calls_go_on(shared: Core) -> None:
    """Connections that are there go on; new ones see the new certificate. Nobody loses a call."""
    stop = threading.Event()

    def call_all_the_time() -> int:
        done = 0
        with secure_channel(shared.address) as channel:
            while not stop.is_set():
                assert predict(channel, float(done)) == [0.5 * done + 2]
                done += 1
        return done

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(call_all_the_time) for _ in range(3)]
        try:
            until(lambda: shared.stats()["connections"] >= 3)
            shared.call("credentials", **credentials_command("elsewhere"))
            with secure_channel(shared.address) as wrong:
                error = fails(lambda: predict(wrong, 1.0, timeout=5))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            tls = Tls(ca=FOLDER / "ca.pem", server_name="elsewhere.example")
            with Client([shared.address], tls=tls) as client:
                assert client.status("m")
            with pytest.raises(Refused, match="INVALID_ARGUMENT: the private key does not belong"):
                command = credentials_command("server")
                command["tls"]["key"] = (FOLDER / "client.key").read_text()  # type: ignore[index]
                shared.call("credentials", **command)
            with Client([shared.address], tls=tls) as client:
                assert client.status("m")
            shared.call("credentials", **credentials_command("server"))
            with secure_channel(shared.address) as right:
                assert predict(right, 1.0) == [2.5]
            until(lambda: all(caller.running() for caller in callers))
        finally:
            stop.set()
        assert all(caller.result() > 0 for caller in callers)


def test_without_a_certificate_it_does_not_serve() -> None:
    with Core(tls=True) as core, pytest.raises(Refused, match="FAILED_PRECONDITION: an address speaks TLS"):
        core.call("serve")


def test_a_drain_answers_calls_and_waits_for_no_handshake(core: Core) -> None:
    with (
        secure_channel(core.address) as channel,
        socket.create_connection(("127.0.0.1", core.port), timeout=PATIENCE_S) as half,
    ):
        half.sendall(b"\x16\x03\x01")
        assert predict(channel, 1.0) == [2.5]
        slow = channel.unary_unary(PREDICT).future(request(1.0, "slow"), timeout=PATIENCE_S)
        until(lambda: core.stats()["bytes_in_flight"] > 0)
        draining = core.begin("drain", lame_duck_s=0.0, drain_timeout_s=PATIENCE_S)
        core.stop_listening()
        assert predict_reply(slow.result()) == [2.5]
        assert core.finish(draining)["unanswered"] == 0
        assert core.wait() == 0
