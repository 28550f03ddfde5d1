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
import uvloop
from stock_server import StockServer

from fastserve.client import (
    AsyncClient,
    Cancelled,
    Client,
    ClosedError,
    ConnectError,
    DeadlineExceeded,
    Internal,
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
    with StockServer(
        methods={"/test.Raw/Echo": lambda data, _: data, "/test.Raw/Nothing": lambda *_: b""}
    ) as one:
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
        with pytest.raises(Unavailable, match="flaky: 5.*5 attempts"):
            client.predict("flaky-100", {"x": X})
        with pytest.raises(RpcError):
            client.predict("status-ABORTED", {"x": X})
        assert own.calls["status-ABORTED"] == 1  # not among the codes


def test_waiting_for_a_server_that_is_not_there_yet(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    client = caller.open(address, wait_for_ready=True)
    started: list[StockServer] = []
    timer = threading.Timer(0.3, lambda: started.append(StockServer(address=address)))
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
        assert (one.calls["sum"], two.calls["sum"]) == (4, 4)


def test_a_name_and_both_kinds_of_sockets(caller: Caller, tmp_path: Path, server: StockServer) -> None:
    with StockServer(address=f"unix:{tmp_path}/s.sock") as local:
        client = caller.open(local.address, f"localhost:{server.port}", retry=Retry(attempts=3))
        for _ in range(6):
            assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
        assert local.calls["echo"] > 0


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


class Certificates:
    """An authority, a server's certificate for localhost and 127.0.0.1, a client's, and those of a
    stranger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ca", "stranger"):
            self._openssl(
                "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            )  # fmt: skip
        self._issue("server", "ca", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self._issue("other-host", "ca", "subjectAltName=DNS:elsewhere.example")
        self._issue("client", "ca", "subjectAltName=DNS:client")
        self._issue("strange-client", "stranger", "subjectAltName=DNS:client")

    def path(self, name: str) -> Path:
        return self.folder / name

    def pem(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def server(self, name: str = "server", *, ask: bool = False) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.pem(f"{name}.key"), self.pem(f"{name}.pem"))],
            root_certificates=self.pem("ca.pem") if ask else None,
            require_client_auth=ask,
        )

    def _issue(self, name: str, authority: str, extension: str) -> None:
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        (self.folder / "extension").write_text(extension)
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "2", "-extfile", "extension", "-out", f"{name}.pem",
        )  # fmt: skip

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[StockServer]:
    with StockServer(credentials=certificates.server()) as one:
        yield one


def test_tls(caller: Caller, secure: StockServer, certificates: Certificates) -> None:
    for ca in (certificates.path("ca.pem"), str(certificates.path("ca.pem")), certificates.pem("ca.pem")):
        for address in (secure.address, f"localhost:{secure.port}"):
            client = caller.open(address, tls=Tls(ca=ca))
            assert client.predict("echo", {"x": X})["x"].shape == (4, 3)
    large = np.arange(1_000_000)
    assert np.array_equal(client.predict("echo", {"x": large})["x"], large)


def test_both_sides_show_certificates(caller: Caller, certificates: Certificates) -> None:
    with StockServer(credentials=certificates.server(ask=True)) as own:
        ours = Tls(
            ca=certificates.path("ca.pem"),
            certificate=certificates.path("client.pem"),
            key=certificates.path("client.key"),
        )
        assert caller.open(own.address, tls=ours).predict("echo", {"x": X})["x"].shape == (4, 3)
        for tls in (
            Tls(ca=certificates.path("ca.pem")),
            Tls(
                ca=certificates.path("ca.pem"),
                certificate=certificates.path("strange-client.pem"),
                key=certificates.path("strange-client.key"),
            ),
        ):
            with pytest.raises(Unavailable):
                caller.open(own.address, tls=tls, retry=None).predict("echo", {"x": X}, timeout=5)


def test_certificates_that_do_not_verify_are_refused(
    caller: Caller, secure: StockServer, certificates: Certificates
) -> None:
    with pytest.raises(TlsError, match="verify failed"):
        caller.open(secure.address, tls=Tls(ca=certificates.path("stranger.pem")), retry=None).predict(
            "echo", {}
        )
    with pytest.raises(TlsError, match="verify failed"):  # the system's list does not have it
        caller.open(secure.address, tls=Tls(), retry=None).predict("echo", {})
    with StockServer(credentials=certificates.server("other-host")) as elsewhere:
        trusting = {"ca": certificates.path("ca.pem")}
        with pytest.raises(TlsError):
            caller.open(elsewhere.address, tls=Tls(**trusting), retry=None).predict("echo", {})
        named = Tls(**trusting, server_name="elsewhere.example")
        assert caller.open(elsewhere.address, tls=named).predict("echo", {"x": X})["x"].shape == (4, 3)
        open_to_all = Tls(verify=False)
        assert caller.open(elsewhere.address, tls=open_to_all).predict("echo", {"x": X})["x"].shape == (4, 3)


def test_plain_and_tls_do_not_understand_each_other(
    caller: Caller, server: StockServer, secure: StockServer, certificates: Certificates
) -> None:
    with pytest.raises(Unavailable):
        caller.open(server.address, tls=Tls(ca=certificates.path("ca.pem")), retry=None).predict(
            "echo", {}, timeout=5
        )
    with pytest.raises(Unavailable):
        caller.open(secure.address, retry=None).predict("echo", {}, timeout=5)


def test_pem_that_is_none_is_named(caller: Caller, certificates: Certificates) -> None:
    with pytest.raises(TlsError):
        caller.open("127.0.0.1:1", tls=Tls(ca=b"not a certificate")).predict("echo", {})
    mixed = Tls(certificate=certificates.path("client.pem"), key=certificates.path("server.key"))
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
        slow = pool.submit(client.predict, "slow-1000", {"x": X})
        start = time.monotonic()
        for _ in range(20):
            client.predict("echo", {"x": X})
        assert time.monotonic() - start < 0.9
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
            while server.calls["slow-20001"] < 1 or server.calls["slow-20002"] < 3:
                await asyncio.sleep(0.01)
            for task in (one, many):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            while server.cancelled["slow-20001"] < 1 or server.cancelled["slow-20002"] < 3:
                await asyncio.sleep(0.01)
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
        task = asyncio.create_task(client.predict("slow-500", {"x": X}))
        await asyncio.sleep(0.05)
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
