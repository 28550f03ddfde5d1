"""What a hook returned, as an HTTP answer: status, headers and bytes. Pure; called by a route's worker."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from fastserve.web import Response

JSON = "application/json"
_ERROR_CHARS = 10_000
# The gateway's own: what it says of the connection and of the body's length.
_NOT_THEIRS = {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade"}


@dataclass(frozen=True)
class Answer:
    """`error`: a refusal's text instead of a body; `status` may be the name of a gRPC code then."""

    status: int | str
    headers: list[tuple[str, str]]
    body: bytes
    error: str | None = None


def answer_of(returned: Any) -> Answer:
    """TypeError, with what would be right, for what cannot be sent."""
    given = returned if isinstance(returned, Response) else Response(returned)
    body, kind = _encode(given.body)
    headers = [
        (name.lower(), value) for name, value in given.headers.items() if name.lower() not in _NOT_THEIRS
    ]
    named = {name for name, _ in headers}
    if given.content_type is not None:
        headers = [(name, value) for name, value in headers if name != "content-type"]
        headers.append(("content-type", given.content_type))
    elif kind and "content-type" not in named:
        headers.append(("content-type", kind))
    return Answer(given.status, headers, body)


def refusal(status: int | str, message: str) -> Answer:
    """An error, which the gateway puts into the form that the REST API has. `status`, or a gRPC code's
    name."""
    return Answer(status, [], b"", printable(message[:_ERROR_CHARS]))


def printable(text: str) -> str:
    """Text that JSON can hold: without half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _encode(body: Any) -> tuple[bytes, str]:
    """The bytes and the content type."""
    if body is None:
        return b"", ""
    if isinstance(body, str):
        return body.encode("utf-8", "replace"), "text/plain; charset=utf-8"
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), "application/octet-stream"
    if isinstance(body, (dict, list, tuple, Mapping, np.ndarray, np.generic, bool, int, float)):
        return to_json(body), JSON
    raise TypeError(
        f"postprocess returned {type(body).__name__}: expected a dict or a list (they become JSON), an "
        "array, str, bytes, or a fastserve.web.Response"
    )


def to_json(value: Any) -> bytes:
    """JSON with arrays in it. Strings of a model, which are bytes, become text where they are UTF-8,
    otherwise {"b64": "..."}, as the REST API has it; NaN and infinities become null."""
    keys = orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=_default, option=orjson.OPT_SERIALIZE_NUMPY | keys)
    except TypeError:
        # Arrays that orjson refuses without asking, such as those of the other byte order.
        return orjson.dumps(value, default=_default, option=keys)


def _default(value: Any) -> Any:
    """What orjson cannot write itself: arrays that are not contiguous or of other dtypes, bytes."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "V":  # bfloat16 and the like, which numpy itself does not know
            return value.astype(np.float32, order="C")
        if value.dtype.kind in "fiub" and not value.flags.c_contiguous:
            return np.ascontiguousarray(value)
        return value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
