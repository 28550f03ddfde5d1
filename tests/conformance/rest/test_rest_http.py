"""HTTP around the REST API: compression, other origins, bodies that are too large or too slow, bytes that are
no request."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from conformance.rest.rest_case import PATIENCE_S, RestCase, address_of, check, fetch, raw
from daemon_process import Daemon

HALF = "/v1/models/half_plus_two:predict"
BODY = b'{"instances": [[1.0]]}'
ANSWER = {"predictions": [[2.5]]}
GZIP = {"Content-Encoding": "gzip"}
LIMIT = 4096


@pytest.fixture(scope="module")
def strict(serve: Any) -> tuple[str, int]:
    """With small limits, and open to other origins."""
    daemon = serve(
        {"half_plus_two": "", "many": ""},
        f'[gateway]\nlisten = ["127.0.0.1:0"]\nmax_body_bytes = {LIMIT}\ntimeout_s = 1.0\ncors = true',
    )
    return address_of(daemon.ready)


@pytest.fixture
def connection(strict: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(strict, timeout=PATIENCE_S) as sock:
        yield sock


def head(*lines: str, method: str = "POST", path: str = HALF) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def received(sock: socket.socket) -> tuple[int, Any]:
    """One answer on a connection: its status and the JSON of its body."""
    with sock.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            if name.lower() == "content-length":
                length = int(value)
        body = file.read(length)
    return status, json.loads(body) if body else None


# ---- compression -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gzip", "GZIP", "x-gzip"])
def test_a_compressed_body(rest: tuple[str, int], name: str) -> None:
    headers = {"Content-Encoding": name}
    assert fetch(rest, "POST", HALF, gzip.compress(BODY), headers).value == ANSWER


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (BODY, "the request's body is not gzip: ..."),
        (gzip.compress(BODY)[:-3], "the request's body is gzip that is cut short"),
        (gzip.compress(BODY) + b"x", "the request's body is gzip that has something after its end"),
        (gzip.compress(b""), "JSON Parse error: The document is empty"),
    ],
)
def test_compression_that_is_wrong(rest: tuple[str, int], body: bytes, text: str) -> None:
    check(rest, RestCase("", HALF, body, text, 400, headers=GZIP))


def test_another_encoding(rest: tuple[str, int]) -> None:
    answered = fetch(rest, "POST", HALF, zlib.compress(BODY), {"Content-Encoding": "deflate"})
    assert (answered.status, answered.headers["accept-encoding"]) == (415, "gzip")


def test_a_body_that_grows_too_large(strict: tuple[str, int]) -> None:
    bomb = gzip.compress(b" " * (1 << 20))
    assert len(bomb) < LIMIT
    text = f"the request's body has more than {LIMIT} bytes (gateway.max_body_bytes)"
    check(strict, RestCase("", HALF, bomb, text, 413, headers=GZIP))


# ---- size and time -----------------------------------------------------------------------------


def test_a_body_of_just_the_limit(strict: tuple[str, int]) -> None:
    assert fetch(strict, "POST", HALF, BODY.ljust(LIMIT)).value == ANSWER
    assert fetch(strict, "POST", HALF, BODY.ljust(LIMIT + 1)).status == 413


def test_a_length_that_is_too_large_is_refused_before_the_body(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {1 << 40}"))
    assert received(connection)[0] == 413


def test_chunks_that_are_too_many(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    connection.sendall(chunk * 5)
    assert received(connection)[0] == 413


def test_a_body_in_chunks(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    for byte in BODY:
        connection.sendall(b"1\r\n%c\r\n" % byte)
    connection.sendall(b"0\r\n\r\n")
    assert received(connection) == (200, ANSWER)


def test_a_body_that_does_not_come(connection: socket.socket) -> None:
    began = time.monotonic()
    connection.sendall(head(f"Content-Length: {len(BODY)}") + BODY[:5])
    status, told = received(connection)
    assert (status, told["error"]) == (408, "the request's body did not come within 1 s")
    assert 0.9 < time.monotonic() - began < 30


def test_a_client_that_asks_before_it_sends(connection: socket.socket) -> None:
    connection.sendall(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        got += connection.recv(100)
    assert got == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY)
    assert received(connection) == (200, ANSWER)


def test_a_model_that_takes_too_long(strict: tuple[str, int]) -> None:
    body = {"signature_name": "slow", "instances": [3000.0]}
    answered = fetch(strict, "POST", "/v1/models/many:predict", body)
    assert answered.status == 504 and "error" in answered.value


def test_a_client_that_hangs_up_harms_nobody(strict: tuple[str, int]) -> None:
    for sent in (head("Content-Length: 100"), head("Content-Length: 100") + b"{", b"POST "):
        with socket.create_connection(strict, timeout=PATIENCE_S) as sock:
            sock.sendall(sent)
    assert fetch(strict, "POST", HALF, BODY).value == ANSWER


def test_requests_on_one_connection(connection: socket.socket) -> None:
    request = head(f"Content-Length: {len(BODY)}") + BODY
    for _ in range(3):
        connection.sendall(request)
        assert received(connection) == (200, ANSWER)


def test_requests_sent_at_once_are_answered_in_order(rest: tuple[str, int]) -> None:
    requests = b""
    for value in (1, 2, 3):
        body = b'{"instances": [[%d]]}' % value
        requests += head(f"Content-Length: {len(body)}") + body
    last = head("Content-Length: 0", "Connection: close")
    got = raw(rest, requests + last)
    found = [got.find(b'{"predictions":[[%s]]}' % value) for value in (b"2.5", b"3.0", b"3.5")]
    assert -1 not in found and found == sorted(found)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"POST /v1/models/x:predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/models/x:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models/x HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "no HTTP", "no length", "no chunk", "a long header"],
)
def test_what_is_no_request_is_a_bad_one(rest: tuple[str, int], data: bytes) -> None:
    assert raw(rest, data).split(b" ")[1] == b"400"
    assert fetch(rest, "POST", HALF, BODY).value == ANSWER


def test_what_callers_do_wrong_is_not_in_the_log(rest: tuple[str, int], daemon: Daemon) -> None:
    raw(rest, b"hello\r\n\r\n")
    fetch(rest, "POST", HALF, b"{")
    with socket.create_connection(rest, timeout=PATIENCE_S) as sock:
        sock.sendall(head("Content-Length: 100"))
    assert fetch(rest, "POST", HALF, BODY).value == ANSWER
    wrong = [
        line for line in daemon.log.splitlines() if "gateway output" in line or "a request failed" in line
    ]
    assert wrong == []


# ---- other origins -----------------------------------------------------------------------------

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}


def test_other_origins_may_ask_where_that_is_allowed(strict: tuple[str, int], rest: tuple[str, int]) -> None:
    for path, status in ((HALF, 200), ("/v1/models/nope:predict", 404)):
        answered = fetch(strict, "POST", path, BODY)
        assert answered.status == status and CORS.items() <= answered.headers.items()
    assert not CORS.keys() & fetch(rest, "POST", HALF, BODY).headers.keys()


def test_a_browser_asks_first(strict: tuple[str, int]) -> None:
    answered = fetch(strict, "OPTIONS", HALF, headers={"Origin": "https://page.example"})
    assert (answered.status, answered.body) == (200, b"") and CORS.items() <= answered.headers.items()
    answered = check(
        strict, RestCase("", HALF, None, "Origin header is missing in CORS preflight", 400, "OPTIONS")
    )
    assert CORS.items() <= answered.headers.items()


# ---- the control process's part ------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/metrics.txt", "/favicon.ico"])
def test_methods_and_paths_of_others(rest: tuple[str, int], path: str) -> None:
    answered = fetch(rest, "POST", path, b"{}")
    if path == "/healthz":
        assert (answered.status, answered.headers["allow"]) == (405, "GET, HEAD")
    else:
        assert (answered.status, answered.value) == (404, {"error": f"Not found: {path}"})
