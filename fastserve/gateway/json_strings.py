"""Strings of requests: text, and {"b64": ...} for bytes. Pure functions."""

from __future__ import annotations

import binascii
from typing import Any

B64 = "b64"
_SPACE = {ord(char): None for char in " \t\r\n\v\f"}


def is_base64(value: object) -> bool:
    """Whether a JSON value stands for bytes: an object with a string under "b64", and nothing else."""
    return type(value) is dict and len(value) == 1 and type(value.get(B64)) is str


def from_base64(value: dict[str, str]) -> bytes:
    """The bytes of such a value; padding may be left out. ValueError when it is not base64."""
    text = value[B64].translate(_SPACE)
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    return binascii.a2b_base64(text, strict_mode=True)


def as_bytes(value: Any) -> bytes | None:
    """A string's bytes, or those that a value stands for; None when it does neither. ValueError as above, and
    for text that is half a surrogate pair."""
    if type(value) is str:
        return value.encode()
    return from_base64(value) if is_base64(value) else None
