"""What a conformance test of the REST API is made of: a request, and the status and body it must get.

Requests are made with the standard library's client, whose bytes nobody here has touched.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 60
REST_JSON = "application/json"


@dataclass(frozen=True)
class RestCase:
    """`answer`: the JSON value of the body; of errors the text. A text that ends with "..." says only how it
    begins. `body`: text or bytes, or a value that is written as JSON."""

    name: str
    path: str
    body: Any = None
    answer: Any = None
    status: int = 200
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        assert self.headers["content-type"].startswith(REST_JSON), self
        return json.loads(self.body)


def address_of(ready: Mapping[str, Any]) -> tuple[str, int]:
    """Where the gateway of a daemon listens."""
    host, _, port = ready["gateway_addresses"][0].rpartition(":")
    return host, int(port)


def encoded(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def fetch(
    where: tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answered:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*where, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body=encoded(body), headers=dict(headers or {}))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, names, response.read())
    finally:
        connection.close()


def raw(where: tuple[str, int], data: bytes) -> bytes:
    """Sends bytes as they are; all that comes until the other side closes."""
    with socket.create_connection(where, timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        got = b""
        while part := sock.recv(65536):
            got += part
    return got


def check(where: tuple[str, int], case: RestCase) -> Answered:
    answered = fetch(where, case.method, case.path, case.body, case.headers)
    told = answered.value
    if case.status == 200:
        assert (answered.status, told) == (200, case.answer)
        return answered
    assert set(told) == {"error"}
    text = told["error"]
    if case.answer.endswith("..."):
        text = text[: len(case.answer) - 3] + "..."
    assert (answered.status, text) == (case.status, case.answer)
    assert answered.body.startswith(b'{ "error": "') and answered.body.endswith(b'" }')
    return answered


def cases(each: Iterable[RestCase]) -> dict[str, Any]:
    """Arguments of pytest.mark.parametrize."""
    listed = list(each)
    return {"argnames": "case", "argvalues": listed, "ids": [case.name for case in listed]}
