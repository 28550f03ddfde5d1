from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastserve.errors import FastServeError

DECODE_LIMIT_BYTES: int

class ReplyError(FastServeError): ...

def encode_request(
    model: str,
    inputs: Mapping[str, Any],
    version: int | None = None,
    label: str | None = None,
    signature: str | None = None,
    outputs: Iterable[str] | None = None,
    first_row: int = 0,
    rows: int | None = None,
) -> bytes: ...
def decode_reply(
    reply: Any, into: dict[str, Any] | None = None, limit_bytes: int = ...
) -> tuple[dict[str, Any], tuple[str, int | None, str]]: ...
def join_replies(
    replies: Sequence[Any], rows: Sequence[int], limit_bytes: int = ...
) -> tuple[dict[str, Any], tuple[str, int | None, str]]: ...
