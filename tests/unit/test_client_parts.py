"""The client's parts that need no server: options, addresses, metadata, chunks, errors; and what importing it
loads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastserve import client
from fastserve._native.client import check_metadata
from fastserve.client import (
    AsyncClient,
    Client,
    ClosedError,
    ConnectError,
    Eject,
    Hedge,
    Keepalive,
    NotFound,
    Prediction,
    Retry,
    RpcError,
    Tls,
    TlsError,
    Unavailable,
    Unknown,
)
from fastserve.client.addresses import Directory, endpoints_of, parse_targets, resolve
from fastserve.client.chunks import MIN_ROWS, chooser
from fastserve.client.errors import STATUS_NAMES, rpc_error
from fastserve.errors import FastServeError

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
HEAVY = {
    "numpy",
    "ml_dtypes",
    "tensorflow",
    "grpc",
    "google",
    "msgspec",
    "asyncio",
    "uvloop",
    "click",
    "rich",
}


# ---- importing ---------------------------------------------------------------------------------------------


def test_importing_is_light_and_fast() -> None:
    # The processor's time: on a machine that is busy with other tests, the clock's says little.
    code = "import sys, time\nstart = time.process_time()\nfrom fastserve.client import Client\n"
    code += "took = time.process_time() - start\nclient = Client('localhost:1')\n"
    code += "import json\nprint(json.dumps([took, sorted(sys.modules)]))"
    times = []
    for _ in range(5):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took, modules = json.loads(ran.stdout)
        assert not HEAVY & {name.split(".")[0] for name in modules}
        times.append(took)
    assert min(times) < 0.1


def test_asyncio_comes_with_the_async_client() -> None:
    code = "import sys\nfrom fastserve.client import AsyncClient\n"
    code += "print('asyncio' in sys.modules, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]


def test_everything_that_is_exported_is_there() -> None:
    assert [name for name in client.__all__ if not hasattr(client, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        client.Nothing  # noqa: B018


# ---- arguments ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tls": True}, TypeError, r"tls is Tls\(...\) or None, not True"),
        ({"retry": 3}, TypeError, r"retry is Retry\(...\) or None, not 3"),
        ({"balance": "random"}, ValueError, "balance is 'round_robin' or 'least_outstanding', not 'random'"),
        ({"compression": "br"}, ValueError, "compression is None, 'gzip' or 'deflate', not 'br'"),
        ({"connections": 0}, ValueError, "connections is from 1 to 1024, not 0"),
        ({"connections": 1.5}, ValueError, "connections is a whole number"),
        ({"connections": True}, TypeError, "connections is a number"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout is from"),
        ({"timeout": -1}, ValueError, "timeout is from 0"),
        ({"timeout": "1"}, TypeError, "timeout is a number, not '1'"),
        ({"timeout": float("nan")}, ValueError, "timeout is from 0"),
        ({"max_reply_bytes": 0}, ValueError, "max_reply_bytes is from 1"),
        ({"metadata": (("a b", "c"),)}, ValueError, "the name 'a b' has letters other than"),
    ],
)
def test_arguments_that_are_wrong_are_named(
    kind: type[Any], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        kind("localhost:8500", **options)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Retry(attempts=0), ValueError, "Retry: attempts is from 1 to 100, not 0"),
        (lambda: Retry(codes=("BUSY",)), ValueError, "'BUSY' is no gRPC status"),
        (lambda: Retry(codes=("OK",)), ValueError, "'OK' is no gRPC status of an error"),
        (lambda: Retry(codes="UNAVAILABLE"), TypeError, r"\('UNAVAILABLE',\)"),  # type: ignore[arg-type]
        (lambda: Retry(backoff=-1), ValueError, "Retry: backoff"),
        (lambda: Hedge(percentile=0.5), ValueError, "Hedge: percentile is from 1 to 100"),
        (lambda: Hedge(ratio=2), ValueError, "Hedge: ratio"),
        (lambda: Eject(failures=0), ValueError, "Eject: failures"),
        (lambda: Eject(at_most=1.5), ValueError, "Eject: at_most"),
        (lambda: Keepalive(after=0), ValueError, "Keepalive: after"),
        (lambda: Tls(certificate="c.pem"), ValueError, "certificate and key go together"),
    ],
)
def test_options_check_themselves(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_files_of_tls_are_named_when_they_cannot_be_read(tmp_path: Path) -> None:
    with (
        Client("localhost:1", tls=Tls(ca=tmp_path / "ca.pem")) as one,
        pytest.raises(TlsError, match=r"ca '.*ca.pem': No such file"),
    ):
        one.predict("m", {})


# ---- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("10.0.0.1:8500", ("10.0.0.1:8500", "10.0.0.1", 8500, 0)),
        ("[::1]:8500", ("[::1]:8500", "::1", 8500, 0)),
        ("unix:/run/s.sock", ("unix:/run/s.sock", "unix", b"/run/s.sock")),
        ("unix:here", ("unix:here", "unix", b"here")),
        ("ranker.example:8500", None),
    ],
)
def test_addresses_are_told_apart(text: str, endpoint: object) -> None:
    (target,) = parse_targets(text)
    assert target.literal == endpoint


@BOTH
@pytest.mark.parametrize(
    ("addresses", "error", "says"),
    [
        ("localhost", ValueError, "address 'localhost': expected \"HOST:PORT\""),
        ("http://localhost:80", ValueError, "for TLS say"),
        ("localhost:x", ValueError, 'the port is "x"'),
        ("localhost:0", ValueError, "port 0"),
        ("localhost:99999", ValueError, "99999"),
        (":8500", ValueError, "a host is missing"),
        ("::1:8500", ValueError, "in brackets"),
        ("[localhost]:8500", ValueError, "'localhost' is no IPv6 address"),
        ("[::zz]:8500", ValueError, "no IPv6 address"),
        ("[fe80::1%nosuchcard]:1", ValueError, "no network interface 'nosuchcard'"),
        ("unix:", ValueError, "path is missing"),
        ("unix:" + "x" * 200, ValueError, "at most 107 bytes"),
        ([], ValueError, "no addresses"),
        (["a:1", "a:1"], ValueError, "given twice"),
        ([b"a:1"], TypeError, "an address is text"),
        (7, TypeError, "not iterable"),
    ],
)
def test_addresses_that_are_none_are_named(
    kind: type[Any], addresses: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        kind(addresses)


def test_a_name_stands_for_all_its_addresses() -> None:
    (target,) = parse_targets("ranker.example:8500")
    stream = (socket.SOCK_STREAM, 6, "")
    found = endpoints_of(
        target,
        [
            (socket.AF_INET, *stream, ("10.0.0.1", 8500)),
            (socket.AF_INET6, *stream, ("fe80::1%lo", 8500, 0, 1)),
            (socket.AF_INET, *stream, ("10.0.0.1", 8500)),
            (socket.AF_UNIX, *stream, ("x",)),
        ],
    )
    assert found == [("10.0.0.1:8500", "10.0.0.1", 8500, 0), ("[fe80::1]:8500", "fe80::1", 8500, 1)]
    assert Directory((target,)).endpoints({target: found}) == found

    # Of several names each certificate is for its own, so the endpoint is called as the name is.
    both = parse_targets(["ranker.example:8500", "10.0.0.9:1"])
    assert Directory(both).endpoints({both[0]: found[:1]}) == [
        ("ranker.example:8500", "10.0.0.1", 8500, 0),
        ("10.0.0.9:1", "10.0.0.9", 1, 0),
    ]


def test_localhost_resolves() -> None:
    (target,) = parse_targets("localhost:8500")
    assert {endpoint[1] for endpoint in resolve(target)} <= {"127.0.0.1", "::1"}


def test_a_name_that_does_not_resolve_is_named() -> None:
    with Client("no-such-host.invalid:8500") as one, pytest.raises(ConnectError) as caught:
        one.predict("m", {})
    assert caught.value.code == "UNAVAILABLE"
    assert "no-such-host.invalid:8500: the name does not resolve" in caught.value.details


# ---- metadata ----------------------------------------------------------------------------------------------


def test_metadata_is_made_fit_for_headers() -> None:
    pairs = check_metadata([("Authorization", "Bearer x"), ("trace-bin", b"\x00\xff\x01\x02"), ("a", b"b")])
    assert pairs == ((b"authorization", b"Bearer x"), (b"trace-bin", b"AP8BAg"), (b"a", b"b"))
    assert check_metadata({"a": "b"}) == ((b"a", b"b"),)
    assert check_metadata(()) == ()


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ("a=b", TypeError, "sequence of pairs"),
        (("a", "b"), TypeError, "pairs"),
        ([("a", "b", "c")], TypeError, "pairs"),
        ([(1, "b")], TypeError, "the name 1 is not text"),
        ([("", "b")], ValueError, "the name ''"),
        ([(":path", "b")], ValueError, "letters"),
        ([("a\n", "b")], ValueError, "letters"),
        ([("é", "b")], ValueError, "letters"),
        ([("grpc-timeout", "1S")], ValueError, "gRPC's own"),
        ([("TE", "x")], ValueError, "gRPC's own"),
        ([("a", "b\r\nc: d")], ValueError, "no header may have"),
        ([("a", "é")], ValueError, "-bin"),
        ([("a", " b")], ValueError, "no header may have"),
        ([("a", 3)], TypeError, "text, not int"),
        ([("a-bin", "text")], TypeError, "bytes"),
    ],
)
def test_metadata_that_is_none_is_named(metadata: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        check_metadata(metadata)


# ---- chunks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rows", "sizes", "at_once"),
    [
        ((None, None, 1), 500, [500], 1),
        ((None, None, 4), 500, [125] * 4, 4),
        ((None, None, 3), 500, [166, 167, 167], 3),
        ((None, None, 4), 2 * MIN_ROWS + 1, [MIN_ROWS, MIN_ROWS + 1], 4),
        ((None, None, 4), 1, [1], 4),
        ((None, None, 4), 0, [0], 4),
        ((None, 2, 8), 500, [250, 250], 2),
        ((100, None, 1), 250, [100, 100, 50], 3),
        ((100, 2, 1), 250, [100, 100, 50], 2),
        ((100, None, 1), 0, [], 1),
    ],
)
def test_rows_are_cut(
    arguments: tuple[int | None, int | None, int], rows: int, sizes: list[int], at_once: int
) -> None:
    assert chooser(*arguments)(rows) == (sizes, at_once)
    assert sum(sizes) == rows


def test_chunks_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        chooser(None, None, 2)(-1)
    with pytest.raises(ValueError, match="chunk_rows is at least 1"):
        chooser(0, None, 2)
    with pytest.raises(TypeError, match="parallel is a whole number"):
        chooser(None, 2.5, 2)  # type: ignore[arg-type]


# ---- errors ------------------------------------------------------------------------------------------------


def test_every_status_has_its_class() -> None:
    kinds = {type(rpc_error(number, "why")) for number in range(1, 17)}
    assert len(kinds) == 16
    for number, name in enumerate(STATUS_NAMES[1:], 1):
        error = rpc_error(number, "why")
        assert isinstance(error, RpcError)
        assert isinstance(error, FastServeError)
        assert (error.code, error.details, str(error)) == (name, "why", f"{name}: why")
        assert type(error).__name__.upper() == name.replace("_", "")
    assert type(rpc_error(5, "")) is NotFound
    assert str(rpc_error(5, "")) == "NOT_FOUND"
    assert type(rpc_error(99, "x")) is Unknown


def test_connections_that_fail_have_their_classes() -> None:
    assert type(rpc_error(14, "10.0.0.1:1: connect: Connection refused")) is ConnectError
    assert type(rpc_error(14, "10.0.0.1:1: TLS: certificate verify failed")) is TlsError
    assert type(rpc_error(14, "overloaded")) is Unavailable
    assert issubclass(TlsError, Unavailable)


# ---- life --------------------------------------------------------------------------------------------------


def test_a_closed_client_says_so() -> None:
    with Client("127.0.0.1:1") as one:
        pass
    for call in (lambda: one.predict("m", {}), one.stats, lambda: one.predict_many("m", {})):
        with pytest.raises(ClosedError, match="closed"):
            call()
    one.close()


async def test_a_closed_async_client_says_so() -> None:
    async with AsyncClient("127.0.0.1:1") as one:
        pass
    with pytest.raises(ClosedError, match="closed"):
        await one.predict("m", {})
    await one.close()


def test_a_child_process_is_told_to_make_its_own() -> None:
    one = Client("127.0.0.1:1", retry=None)
    with pytest.raises(ConnectError):
        one.predict("m", {})
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            one.predict("m", {})
        except ClosedError as error:
            os.write(write, str(error).encode())
        one.close()
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert "make one in the child" in said
    with pytest.raises(ConnectError):
        one.predict("m", {})  # the parent's is as it was
    one.close()


def test_a_refused_connection_fails_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"127.0.0.1:{port}", retry=None) as one:
        start = time.monotonic()
        with pytest.raises(ConnectError, match=f"127.0.0.1:{port}.*refused"):
            one.predict("m", {})
        assert time.monotonic() - start < 2


def test_a_prediction_shows_what_it_is() -> None:
    import numpy as np

    answer = Prediction(y=np.zeros((2, 3), np.float32))
    answer.model, answer.version, answer.signature = "ranker", 3, "serving_default"
    assert repr(answer) == "<Prediction of 'ranker' version 3: y: float32[2, 3]>"
    assert list(answer) == ["y"]
