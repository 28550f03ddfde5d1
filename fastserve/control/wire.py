"""Protobuf's wire format, as far as looking into a file needs it without parsing all of it.

Used on files that may be cut short or be something else: BadWire is all that is raised, and every step
consumes at least one byte.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_VARINT_BYTES = 10


class BadWire(Exception):
    """The bytes are no message. The text says why, in a few words."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    number = 0
    for shift in range(_VARINT_BYTES):
        if at >= len(data):
            raise BadWire("it ends within a number")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at
    raise BadWire("a number has too many bytes")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        length, at = skip(data, at, kind)
        if not number or at + length > len(data):
            raise BadWire("it ends within a field")
        yield number, data[at : at + length]
        at += length


def skip(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """How long the value of a field is that is no varint, and where it begins."""
    if kind == BYTES:
        return varint(data, at)
    if kind not in (FIXED64, FIXED32):
        raise BadWire("a field is of no known kind")
    return (8 if kind == FIXED64 else 4), at
