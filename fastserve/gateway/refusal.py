"""What a request is refused with: an HTTP status, and {"error": ...} as the body.

The statuses are TensorFlow Serving's for each gRPC code. Pure functions.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from fastserve.client.errors import RpcError

JSON = "application/json"

HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


class Refusal(Exception):
    """Ends a request. `close`: the connection, too, since what comes on it is not what it should be."""

    def __init__(
        self, status: int, text: str, *, close: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.close = close
        self.headers = headers

    def response(self) -> web.Response:
        response = web.Response(
            status=self.status, body=error_body(self.text), content_type=JSON, headers=self.headers
        )
        if self.close:
            response.force_close()
        return response


class InvalidArgument(Refusal):
    """What TensorFlow Serving calls INVALID_ARGUMENT."""

    def __init__(self, text: str) -> None:
        super().__init__(HTTP_STATUS["INVALID_ARGUMENT"], text)


def json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type=JSON)


def refusal_of(error: RpcError, server: str) -> Refusal:
    """What the core said, or the client of it, which begins with the `server`'s name."""
    text = error.details.removeprefix(f"{server}: ")
    return Refusal(HTTP_STATUS.get(error.code, 500), text or error.code)


def error_body(text: str) -> bytes:
    return b'{ "error": ' + orjson.dumps(text.encode("utf-8", "replace").decode()) + b" }"
