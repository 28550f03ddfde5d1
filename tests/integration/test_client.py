"""The client against a server of grpcio's: every way a call can go, plain and over TLS, by threads and by
loops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
import uvloop
from stock_server import StockServer
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    regression_pb2,
)

from fastserve._native.client_codec import encode_request
from fastserve.client import (
    AsyncClient,
    Cancelled,
    Client,
    ClosedError,
    ConnectError,
    DeadlineExceeded,
    Internal,
    NotFound,
    Prediction,
    ResourceExhausted,
    Retry,
    RpcError,
    Tls,
    TlsError,
    Unavailable,
    Unimplemented,
)
from fastserve.client.errors import STATUS_NAMES

Array = np.ndarray[Any, Any]
X = np.arange(12, dtype=np.float32).reshape(4, 3)


# ---- one test, three clients -------------------------------------------------------------------------------


class Caller:
    """A Client's methods, by whichever client and loop the test is run with."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._clients: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        if kind != "threads":
            self._loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()

    def open(self, *addresses: str, **options: Any) -> Any:
        made: Any = (Client if self._loop is None else AsyncClient)(addresses, **{"timeout": 20, **options})
        self._clients.append(made)
        return made if self._loop is None else _Blocking(made, self._loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        for client in self._clients:
            closed = client.close()
            if closed is not None:
                self.run(closed)
        if self._loop is not None:
            self._loop.close()


class _Blocking:
    """An AsyncClient whose coroutines are run to their end."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._loop.run_until_complete(method(*args, **kwargs))  # type: ignore[arg-type]

        return call


@pytest.fixture(params=["threads", "asyncio", "uvloop"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    caller = Caller(request.param)
    yield caller
    caller.close()


@pytest.fixture(scope="module")
def server() -> Iterator[StockServer]:
    raw: dict[str, Any] = {"/test.Raw/Echo": lambda data, _: data, "/test.Raw/Nothing": lambda *_: b""}
    with StockServer(methods={**raw, **OTHER_METHODS}) as one:
        yield one


# ---- answers -----------------------------------------------------------------------------------------------


def test_arrays_go_there_and_back(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    inputs: dict[str, Any] = {
        "x": X,
        "ids": np.arange(1000).reshape(4, 250),
        "words": np.array([["a", "bc"], ["", "é"]]),
        "half": np.float16([1.5, 2.5]),
        "scalar": 3,
        "flags": [True, False],
        "strided": X[::2, ::-1],
        "empty": np.zeros((0, 13), np.float32),
    }
    got: Prediction = client.predict("echo", inputs)
    assert (got.model, got.version, got.signature) == ("echo", 1, "serving_default")
    assert set(got) == set(inputs)
    assert got["words"].tolist() == [[b"a", b"bc"], [b"", "é".encode()]]
    for name in set(inputs) - {"words"}:
        expected = np.asarray(inputs[name])
        assert got[name].dtype == expected.dtype
        assert np.array_equal(got[name], expected)
        assert got[name].flags.aligned
        assert got[name].flags.writeable


def test_the_model_is_chosen_as_asked(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    got = client.predict("echo", {"a": 1.0, "b": 2.0}, version=7, signature="other", outputs=["b"])
    assert (got.version, got.signature, list(got)) == (7, "other", ["b"])
    client.predict("echo", {}, label="stable")
    assert server.requests[-1].model_spec.version_label == "stable"


@pytest.mark.parametrize(
    "options", [{}, {"chunk_rows": 77}, {"chunk_rows": 10, "parallel": 3}, {"parallel": 4}]
)
def test_many_rows_are_cut_and_joined(caller: Caller, server: StockServer, options: dict[str, Any]) -> None:
    client = caller.open(server.address, connections=2)
    x, words = np.arange(3000.0).reshape(1000, 3), np.array([f"w{i}" for i in range(1000)])
    got = client.predict_many("sum", {"x": x}, **options)
    assert np.array_equal(got["y"], x.sum(axis=1))
    got = client.predict_many("echo", {"x": x, "words": words}, version=3, **options)
    assert np.array_equal(got["x"], x)
    assert got["words"].tolist() == [word.encode() for word in words]
    assert got.version == 3


def test_many_rows_need_rows(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    for inputs in ({"x": np.zeros(3), "y": np.zeros(4)}, {"x": 3.0}, {"x": np.zeros(3), "y": 1}):
        with pytest.raises(ValueError, match="same number of rows"):
            client.predict_many("echo", inputs)
    assert client.predict_many("echo", {"x": np.zeros((0, 3))})["x"].shape == (0, 3)
    with pytest.raises(RpcError, match="cannot be joined"):  # the answer has rows of its own
        client.predict_many("large-5", {"x": np.zeros(100)}, chunk_rows=10)


def test_a_failing_chunk_fails_all(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address, retry=None)
    with pytest.raises(RpcError, match="told to: ABORTED"):
        client.predict_many("status-ABORTED", {"x": np.zeros(100)}, chunk_rows=10)
    assert client.predict_many("echo", {"x": np.zeros(100)}, chunk_rows=10)["x"].shape == (100,)


def test_any_unary_method_can_be_called(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    assert client.call("/test.Raw/Echo", b"x" * 100_000) == b"x" * 100_000
    assert client.call("/test.Raw/Echo", b"") == b""
    assert client.call("/test.Raw/Nothing", b"x") == b""
    with pytest.raises(Unimplemented):
        client.call("/test.Raw/Absent", b"x")


def test_large_messages_pass(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    large = np.arange(4_000_000, dtype=np.int64)
    assert np.array_equal(client.predict("echo", {"x": large})["x"], large)


# ---- the other methods, as tensorflow-serving-api has them -------------------------------------------------


def classify(data: bytes, _: Any) -> bytes:
    request = classification_pb2.ClassificationRequest.FromString(data)
    reply = classification_pb2.ClassificationResponse()
    for example in request.input.example_list.examples:
        row = reply.result.classifications.add()
        for name, feature in sorted(example.features.feature.items()):
            score = [*feature.float_list.value, *feature.int64_list.value, len(feature.bytes_list.value)][0]
            row.classes.add(label=name, score=score)
    return bytes(reply.SerializeToString())


def regress(data: bytes, _: Any) -> bytes:
    request = regression_pb2.RegressionRequest.FromString(data)
    context = request.input.example_list_with_context
    base = context.context.features.feature["base"].float_list.value[0]
    reply = regression_pb2.RegressionResponse()
    for example in context.examples:
        reply.result.regressions.add(value=base + example.features.feature["age"].int64_list.value[0])
    return bytes(reply.SerializeToString())


def get_metadata(data: bytes, context: grpc.ServicerContext) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest.FromString(data)
    if request.model_spec.name != "echo":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    ports = signatures.signature_def["serving_default"]
    ports.method_name = "tensorflow/serving/predict"
    for name, dtype in (("x", tf.float32), ("words", tf.string), ("ids", tf.int32)):
        info = ports.inputs[name]
        info.dtype = dtype.as_datatype_enum
        info.tensor_shape.dim.add(size=-1)
        info.tensor_shape.dim.add(size=2)
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.model_spec.name, reply.model_spec.version.value = "echo", 5
    reply.metadata["signature_def"].Pack(signatures)
    return bytes(reply.SerializeToString())


def get_status(data: bytes, _: Any) -> bytes:
    request = get_model_status_pb2.GetModelStatusRequest.FromString(data)
    if request.model_spec.name == "garbage":
        return b"\xff\xff"
    reply = get_model_status_pb2.GetModelStatusResponse()
    reply.model_version_status.add(version=3, state=30)
    late = reply.model_version_status.add(version=4, state=50)
    late.status.error_code, late.status.error_message = 8, "out of memory"
    return bytes(reply.SerializeToString())


OTHER_METHODS = {
    "/tensorflow.serving.PredictionService/Classify": classify,
    "/tensorflow.serving.PredictionService/Regress": regress,
    "/tensorflow.serving.PredictionService/GetModelMetadata": get_metadata,
    "/tensorflow.serving.ModelService/GetModelStatus": get_status,
}


def test_classify_and_regress(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    rows = client.classify("m", {"age": np.array([3, 4]), "score": [0.5, 1.5], "city": ["Oslo", "Rome"]})
    assert rows == [
        [("age", 3.0), ("city", 1.0), ("score", 0.5)],
        [("age", 4.0), ("city", 1.0), ("score", 1.5)],
    ]
    values = client.regress("m", [{"age": 1}, {"age": 2}], context={"base": 0.5})
    assert values.dtype == np.float32
    assert values.tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="score"):
        client.classify("m", {"age": [1, 2], "score": [0.5]})


def test_metadata_and_status(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    found = client.metadata("echo", metadata=[("a", "b")])
    assert (found.model.name, found.model.version) == ("echo", 5)
    signature = found.signatures["serving_default"]
    assert {name: (info.dtype, info.shape) for name, info in signature.inputs.items()} == {
        "x": ("float32", (None, 2)),
        "words": ("string", (None, 2)),
        "ids": ("int32", (None, 2)),
    }
    states = client.status("echo")
    assert [(one.version, one.state.name, one.code, one.message) for one in states] == [
        (3, "AVAILABLE", 0, ""),
        (4, "END", 8, "out of memory"),
    ]
    with pytest.raises(NotFound):
        client.metadata("nothing")
    with pytest.raises(Internal, match="GetModelStatusResponse"):
        client.status("garbage")


# ---- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATUS_NAMES[1:])
def test_every_status_is_its_exception(caller: Caller, server: StockServer, name: str) -> None:
    client = caller.open(server.address, retry=None)
    with pytest.raises(RpcError) as caught:
        client.predict(f"status-{name}", {"x": X})
    assert caught.value.code == name
    assert caught.value.details == f"{server.address}: told to: {name}"
    assert type(caught.value).__name__.upper() == name.replace("_", "")


def test_bad_inputs_send_nothing(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    client.predict("echo", {"x": X})
    before = sum(server.calls.values())
    with pytest.raises(TypeError, match="'x' is None"):
        client.predict("echo", {"x": None})
    with pytest.raises(ValueError, match="not both"):
        client.predict("echo", {"x": X}, version=1, label="a")
    with pytest.raises(ValueError, match="no time"):
        client.predict("echo", {"x": X}, timeout=-1)
    with pytest.raises(ValueError, match="gRPC's own"):
        client.predict("echo", {"x": X}, metadata=[("grpc-timeout", "1S")])
    assert sum(server.calls.values()) == before


def test_what_is_no_reply_is_refused(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    with pytest.raises(Internal, match=f"{server.address}: the reply is not a PredictResponse"):
        client.predict("garbage", {"x": X})
    with pytest.raises(Internal, match=r"'y' of the reply claims shape \[1099511627776\]"):
        client.predict("claims", {"x": X})
    with pytest.raises(Internal, match="not a PredictResponse"):
        client.predict_many("garbage", {"x": np.zeros(100)}, chunk_rows=50)
    assert client.predict("echo", {"x": X})["x"].shape == (4, 3)


def test_a_reply_beyond_the_limit_is_refused(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address, max_reply_bytes=10_000)
    assert client.predict("large-9000", {})["y"].nbytes == 9000
    with pytest.raises(ResourceExhausted):
        client.predict("large-20000", {})
    assert client.predict("large-9000", {})["y"].nbytes == 9000


def test_a_deadline_passes(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.predict("slow-3000", {"x": X}, timeout=0.15)
    assert 0.14 < time.monotonic() - start < 2
    with pytest.raises(DeadlineExceeded):
        client.predict("echo", {"x": X}, timeout=0)
    with pytest.raises(DeadlineExceeded):
        client.predict_many("slow-3000", {"x": np.zeros(100)}, chunk_rows=25, timeout=0.15)
    # The server hears of it.
    server.until(lambda: server.cancelled["slow-3000"] >= 5)
    server.cancelled["slow-3000"] = 0


def test_the_clients_own_timeout_stands_for_calls_that_give_none(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address, timeout=0.1)
    with pytest.raises(DeadlineExceeded):
        client.predict("slow-2000", {"x": X})
    assert client.predict("slow-200", {"x": X}, timeout=10)["x"].shape == (4, 3)


def test_a_refused_address_is_an_error_at_once(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    client = caller.open(address, retry=None)
    start = time.monotonic()
    with pytest.raises(ConnectError, match=f"{address}.*refused"):
        client.predict("echo", {"x": X})
    assert time.monotonic() - start < 2


def test_a_silent_address_is_an_error_in_time(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and says nothing
        client = caller.open(f"127.0.0.1:{listener.getsockname()[1]}", retry=None, connect_timeout=0.2)
        start = time.monotonic()
        with pytest.raises(Unavailable):
            client.predict("echo", {"x": X})
        assert time.monotonic() - start < 3


def test_what_is_no_http2_is_an_error(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return  # the test is over
                with peer:
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    peer.settimeout(5)
                    while peer.recv(4096):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        client = caller.open(f"127.0.0.1:{listener.getsockname()[1]}", retry=None)
        with pytest.raises(RpcError):
            client.predict("echo", {"x": X}, timeout=3)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_retries_end_well(caller: Caller) -> None:
    with StockServer() as own:
        client = caller.open(own.address, retry=Retry(attempts=5, backoff=0.001))
        assert client.predict("flaky-3", {"x": X})["x"].shape == (4, 3)
        assert own.calls["flaky-3"] == 4
        assert client.stats()["retries"] == 3
        with pytest.raises(Unavailable, match=r"flaky: 5.*5 attempts"):
            client.predict("flaky-100", {"x": X})
        with pytest.raises(RpcError):
            client.predict("status-ABORTED", {"x": X})
        assert own.calls["status-ABORTED"] == 1  # not among the codes
        request = encode_request("flaky-50", {"x": X})
        with pytest.raises(Unavailable):
            client.call("/tensorflow.serving.PredictionService/Predict", request, idempotent=False)
        assert own.calls["flaky-50"] == 1


def test_retries_have_a_budget(caller: Caller) -> None:
    with StockServer() as own:
        client = caller.open(
            own.address, retry=Retry(attempts=3, backoff=0.001, ratio=0.1, burst=5), eject=None
        )
        for _ in range(60):
            with pytest.raises(Unavailable):
                client.predict("flaky-10000", {"x": X})
        assert 60 + 5 <= own.calls["flaky-10000"] <= 60 + 5 + 0.1 * 60
        assert client.stats()["budget_refusals"] > 0


def test_waiting_for_a_server_that_is_not_there_yet(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    client = caller.open(address, wait_for_ready=True)
    started: list[StockServer] = []
    timer = threading.Timer(0.15, lambda: started.append(StockServer(address=address)))
    timer.start()
    try:
        assert client.predict("echo", {"x": X}, timeout=15)["x"].shape == (4, 3)
    finally:
        timer.join()
        started[0].stop()
    with pytest.raises(DeadlineExceeded):
        client.predict("echo", {"x": X}, timeout=0.2)


# ---- several servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["round_robin", "least_outstanding"])
def test_calls_are_spread(caller: Caller, balance: str) -> None:
    with StockServer() as one, StockServer() as two:
        client = caller.open(one.address, two.address, balance=balance)
        for _ in range(40):
            client.predict("echo", {"x": X})
        assert one.calls["echo"] + two.calls["echo"] == 40
        assert min(one.calls["echo"], two.calls["echo"]) >= 10
        rows = {row["address"]: row["attempts"] for row in client.stats()["endpoints"]}
        assert rows == {one.address: one.calls["echo"], two.address: two.calls["echo"]}


def test_chunks_go_to_different_servers(caller: Caller) -> None:
    with StockServer() as one, StockServer() as two:
        client = caller.open(one.address, two.address)
        x = np.arange(1000.0).reshape(500, 2)
        for _ in range(4):
            assert np.array_equal(client.predict_many("sum", {"x": x})["y"], x.sum(axis=1))
        assert one.calls["sum"] + two.calls["sum"] == 8
        assert min(one.calls["sum"], two.calls["sum"]) >= 2


def test_a_name_and_both_kinds_of_sockets(caller: Caller, tmp_path: Path, server: StockServer) -> None:
    with StockServer(address=f"unix:{tmp_path}/s.sock") as local:
        client = caller.open(local.address, f"localhost:{server.port}", retry=Retry(attempts=3))
        for _ in range(6):
            assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
        assert local.calls["echo"] > 0


@pytest.mark.parametrize("kind", ["threads", "asyncio"])  # uvloop has a resolver of its own
def test_a_name_that_moves_is_resolved_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.client.base.RESOLVE_AGAIN_S", 0.05)
    hosts, asked = ["127.0.0.1"], []

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port)) for name in hosts]

    with StockServer(address="127.0.0.2:0") as moved:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        caller = Caller(kind)
        client = caller.open(f"ranker.test:{moved.port}", retry=None)
        with pytest.raises(ConnectError, match=f"127.0.0.1:{moved.port}"):
            client.predict("echo", {"x": X})
        hosts[:] = ["127.0.0.2"]
        end = time.monotonic() + 10
        while True:
            try:
                assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
                break
            except ConnectError:
                assert time.monotonic() < end
                time.sleep(0.02)
        assert set(asked) == {"ranker.test"}
        assert [row["address"] for row in client.stats()["endpoints"]] == [f"127.0.0.2:{moved.port}"]
        count = len(asked)
        for _ in range(20):
            client.predict("echo", {"x": X})
        assert len(asked) == count
        caller.close()


# ---- headers and compression -------------------------------------------------------------------------------


def test_metadata_arrives(caller: Caller, server: StockServer) -> None:
    client = caller.open(server.address, metadata=(("Authorization", "Bearer x"), ("trace-bin", b"\0\xff")))
    got = client.predict("metadata", {}, metadata=[("one-more", "yes, it is")])
    assert got["authorization"].item() == b"Bearer x"
    assert got["trace-bin"].item() == b"\0\xff"
    assert got["one-more"].item() == b"yes, it is"
    assert "one-more" not in client.predict("metadata", {})


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_requests_are_compressed(caller: Caller, compression: str) -> None:
    seen: list[str] = []

    def look(data: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("grpc-encoding", ""))
        return data

    with StockServer(methods={"/test.Raw/Echo": look}) as own:
        client = caller.open(own.address, compression=compression)
        zeros = np.zeros(100_000)
        assert np.array_equal(client.predict("echo", {"x": zeros})["x"], zeros)
        sent = client.stats()["bytes_out"]
        assert sent < 20_000  # of 800 kB
        noise = os.urandom(50_000)
        assert client.call("/test.Raw/Echo", noise) == noise  # goes as it is
        assert client.call("/test.Raw/Echo", b"short") == b"short"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_replies_are_understood(caller: Caller, compression: grpc.Compression) -> None:
    with StockServer(compression=compression) as own:
        client = caller.open(own.address, max_reply_bytes=1_000_000)
        zeros = np.zeros(100_000)
        assert np.array_equal(client.predict("echo", {"x": zeros})["x"], zeros)
        assert client.stats()["bytes_in"] < 20_000
        words = client.predict_many("echo", {"x": np.arange(5000)}, chunk_rows=1000)["x"]
        assert np.array_equal(words, np.arange(5000))
        with pytest.raises(ResourceExhausted):  # small as it travels, large inflated
            client.predict("large-2000000", {})


# ---- TLS ---------------------------------------------------------------------------------------------------


CERTIFICATES = Path(__file__).resolve().parents[1] / "certificates"
CA = CERTIFICATES / "ca.pem"


def credentials(name: str = "server", *, ask: bool = False) -> grpc.ServerCredentials:
    """A server's, of tests/certificates; with `ask` it demands a client's."""
    return grpc.ssl_server_credentials(
        [((CERTIFICATES / f"{name}.key").read_bytes(), (CERTIFICATES / f"{name}.pem").read_bytes())],
        root_certificates=CA.read_bytes() if ask else None,
        require_client_auth=ask,
    )


def ours(name: str) -> Tls:
    """A client that shows the certificate of this name."""
    return Tls(ca=CA, certificate=CERTIFICATES / f"{name}.pem", key=CERTIFICATES / f"{name}.key")


@pytest.fixture(scope="module")
def secure() -> Iterator[StockServer]:
    with StockServer(credentials=credentials()) as one:
        yield one


def test_tls(caller: Caller, secure: StockServer) -> None:
    for ca in (CA, str(CA), CA.read_bytes()):
        for address in (secure.address, f"localhost:{secure.port}"):
            client = caller.open(address, tls=Tls(ca=ca))
            assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
    large = np.arange(1_000_000)
    assert np.array_equal(client.predict("echo", {"x": large})["x"], large)


def test_both_sides_show_certificates(caller: Caller) -> None:
    with StockServer(credentials=credentials(ask=True)) as own:
        client = caller.open(own.address, tls=ours("client"))
        assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
        for tls in (Tls(ca=CA), ours("stranger")):
            with pytest.raises(Unavailable):
                caller.open(own.address, tls=tls, retry=None).predict("echo", {"x": X}, timeout=5)


def test_certificates_that_do_not_verify_are_refused(caller: Caller, secure: StockServer) -> None:
    def refused(server: StockServer, tls: Tls, says: str) -> None:
        with pytest.raises(TlsError, match=says):
            caller.open(server.address, tls=tls, retry=None).predict("echo", {})

    refused(secure, Tls(ca=CERTIFICATES / "stranger.pem"), "verify failed")
    refused(secure, Tls(), "verify failed")  # the system's list does not have it
    with StockServer(credentials=credentials("expired")) as expired:
        refused(expired, Tls(ca=CA), "expired")
    with StockServer(credentials=credentials("elsewhere")) as elsewhere:
        refused(elsewhere, Tls(ca=CA), "verify failed")
        for tls in (Tls(ca=CA, server_name="elsewhere.example"), Tls(verify=False)):
            client = caller.open(elsewhere.address, tls=tls)
            assert client.predict("echo", {"x": X})["x"].shape == (4, 3)


def test_plain_and_tls_do_not_understand_each_other(
    caller: Caller, server: StockServer, secure: StockServer
) -> None:
    with pytest.raises(Unavailable):
        caller.open(server.address, tls=Tls(ca=CA), retry=None).predict("echo", {}, timeout=5)
    with pytest.raises(Unavailable):
        caller.open(secure.address, retry=None).predict("echo", {}, timeout=5)


def test_pem_that_is_none_is_named(caller: Caller) -> None:
    with pytest.raises(TlsError):
        caller.open("127.0.0.1:1", tls=Tls(ca=b"not a certificate")).predict("echo", {})
    mixed = Tls(certificate=CERTIFICATES / "client.pem", key=CERTIFICATES / "server.key")
    with pytest.raises(TlsError):
        caller.open("127.0.0.1:1", tls=mixed).predict("echo", {})


# ---- threads -----------------------------------------------------------------------------------------------


def test_threads_share_a_client(server: StockServer) -> None:
    def work(number: int) -> None:
        for i in range(50):
            x = np.full((number + 1, 3), i, np.float32)
            assert np.array_equal(client.predict("sum", {"x": x})["y"], x.sum(axis=1))

    with Client(server.address, connections=2) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
        assert client.stats()["calls"] == 400


def test_ctrl_c_ends_a_call(server: StockServer) -> None:
    code = f"""
import os, signal, threading, time
import numpy as np
from fastserve.client import Client
client = Client({server.address!r})
client.predict("echo", {{"x": np.zeros(1)}})
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    client.predict("slow-20000", {{"x": np.zeros(1)}})
except KeyboardInterrupt:
    print("interrupted after", time.monotonic() - start)
print(client.predict("echo", {{"x": np.zeros(1)}})["x"])
client.close()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert 0.2 < float(ran.stdout.split("interrupted after")[1].split()[0]) < 1.5
    assert "[0.]" in ran.stdout
    server.until(lambda: server.cancelled["slow-20000"] == 1)


def test_signals_are_handled_while_a_call_goes_on(server: StockServer) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with Client(server.address) as client:
            client.predict("slow-400", {"x": X})
            assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_closing_ends_what_other_threads_wait_for(server: StockServer) -> None:
    client = Client(server.address)
    client.predict("echo", {"x": X})
    failures: list[Exception] = []

    def work() -> None:
        try:
            client.predict("slow-30000", {"x": X})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    server.until(lambda: server.calls["slow-30000"] == 4)
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 2
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in failures] == [Cancelled] * 4
    with pytest.raises(ClosedError):
        client.predict("echo", {"x": X})


def test_calls_of_others_do_not_wait_for_a_slow_one(server: StockServer) -> None:
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.predict, "slow-600", {"x": X})
        start = time.monotonic()
        for _ in range(20):
            client.predict("echo", {"x": X})
        assert time.monotonic() - start < 0.5
        assert not slow.done()
        assert slow.result()["x"].shape == (4, 3)


# ---- event loops -------------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def run_on(kind: str, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if kind == "uvloop" else None) as runner:
        runner.run(work)


def test_a_loop_has_many_calls_at_once(event_loop_kind: str, server: StockServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.address, connections=2) as client:
            xs = [np.full((i % 7 + 1, 3), i, np.float32) for i in range(300)]
            answers = await asyncio.gather(*(client.predict("sum", {"x": x}) for x in xs))
            for x, answer in zip(xs, answers, strict=True):
                assert np.array_equal(answer["y"], x.sum(axis=1))

    run_on(event_loop_kind, work())


def test_the_loop_goes_on_meanwhile(event_loop_kind: str, server: StockServer) -> None:
    async def work() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async with AsyncClient(server.address) as client:
            ticker = asyncio.create_task(tick())
            await client.predict("slow-300", {"x": X})
            ticker.cancel()
            assert ticks >= 10

    run_on(event_loop_kind, work())


def test_a_cancelled_task_cancels_its_call(event_loop_kind: str) -> None:
    async def work() -> None:
        async with AsyncClient(server.address) as client:
            await client.predict("echo", {"x": X})
            one = asyncio.create_task(client.predict("slow-20001", {"x": X}))
            many = asyncio.create_task(client.predict_many("slow-20002", {"x": np.zeros(90)}, chunk_rows=30))
            await asyncio.to_thread(
                server.until, lambda: server.calls["slow-20001"] == 1 and server.calls["slow-20002"] == 3
            )
            for task in (one, many):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(
                server.until,
                lambda: server.cancelled["slow-20001"] == 1 and server.cancelled["slow-20002"] == 3,
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.predict("slow-20003", {"x": X}), 0.1)
            assert (await client.predict("echo", {"x": X}))["x"].shape == (4, 3)
            assert (await client.stats())["endpoints"][0]["outstanding"] == 0

    with StockServer() as server:
        run_on(event_loop_kind, asyncio.wait_for(work(), 30))  # type: ignore[arg-type]


def test_closing_ends_a_loops_calls(event_loop_kind: str, server: StockServer) -> None:
    async def work() -> None:
        client = AsyncClient(server.address)
        await client.predict("echo", {"x": X})
        tasks = [asyncio.create_task(client.predict("slow-20004", {"x": X})) for _ in range(3)]
        await asyncio.sleep(0.05)
        await client.close()
        for task in tasks:
            with pytest.raises(Cancelled):
                await task
        with pytest.raises(ClosedError):
            await client.predict("echo", {"x": X})

    run_on(event_loop_kind, work())


def test_an_async_client_belongs_to_one_loop(event_loop_kind: str, server: StockServer) -> None:
    client = AsyncClient(server.address)

    async def call() -> None:
        await client.predict("echo", {"x": X})

    async def refused() -> None:
        with pytest.raises(ClosedError, match="another event loop"):
            await client.predict("echo", {"x": X})
        await client.close()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(call())
        run_on(event_loop_kind, refused())
    finally:
        loop.close()


def test_a_client_that_is_dropped_with_its_loop_is_no_harm(server: StockServer) -> None:
    async def work() -> None:
        client = AsyncClient(server.address)
        await client.predict("echo", {"x": X})
        task = asyncio.create_task(client.predict("slow-50", {"x": X}))
        await asyncio.sleep(0.01)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    for _ in range(5):
        run_on("asyncio", work())
        gc.collect()


# ---- what stays behind -------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_clients_leave_no_descriptors(caller: Caller, server: StockServer) -> None:
    def once() -> None:
        own = Caller(caller.kind)
        client = own.open(server.address, connections=2)
        client.predict("echo", {"x": X})
        with pytest.raises(RpcError):
            client.predict("status-ABORTED", {"x": X})
        with pytest.raises(DeadlineExceeded):
            client.predict("slow-100", {"x": X}, timeout=0.01)
        own.close()

    once()
    gc.collect()
    before = descriptors()
    for _ in range(10):
        once()
    gc.collect()
    deadline = time.monotonic() + 5
    while (
        descriptors() > before and time.monotonic() < deadline
    ):  # the server's own ends close when it sees it
        time.sleep(0.02)
    assert descriptors() <= before
