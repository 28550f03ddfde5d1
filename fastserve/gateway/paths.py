"""The paths of TensorFlow Serving's REST API. Pure functions, which remember their answers.

A path is taken as it came, query included, as TensorFlow Serving takes it. Letters of either case will do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from fastserve.gateway.refusal import InvalidArgument

_NAME = r"/v1/models(?:/([^/:]+))"
_VERSION = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_CALL = re.compile(rf"{_NAME}{_VERSION}:(classify|regress|predict)", re.IGNORECASE | re.ASCII)
_LOOK = re.compile(rf"{_NAME}?{_VERSION}(?:/(metadata))?", re.IGNORECASE | re.ASCII)
_VERSION_MAX = (1 << 63) - 1
_VERSION_DIGITS = len(str(_VERSION_MAX))


@dataclass(frozen=True)
class Place:
    """What a path names. `verb`: "predict", "classify", "regress", "metadata" or "status"."""

    model: str
    version: int | None
    label: str | None
    verb: str


@lru_cache(maxsize=1024)
def place_of(method: str, path: str) -> Place:
    """InvalidArgument for a path that is none, or that its method is not for."""
    found = {"POST": _CALL, "GET": _LOOK}[method].fullmatch(path) if method in ("POST", "GET") else None
    if found is None:
        raise InvalidArgument(f"Malformed request: {method} {path}")
    name, version, label, what = found.groups()
    number = _number(version) if version else None
    if not name:
        raise InvalidArgument("Missing model name in request.")
    return Place(
        _decoded(name, "model name"),
        number,
        _decoded(label, "model version label") if label else None,
        what.lower() if what else "status",
    )


def _number(version: str) -> int:
    digits = version.lstrip("0")
    # Python does not convert what is very long.
    if len(digits) > _VERSION_DIGITS or (number := int(digits or "0")) > _VERSION_MAX:
        raise InvalidArgument(f"Failed to convert version: {version} to numeric.")
    return number


def _decoded(text: str, what: str) -> str:
    try:
        # Latin-1 bytes above 127 that were not quoted, as aiohttp decodes a request's line.
        return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"Failed to decode {what}:{text}") from None
