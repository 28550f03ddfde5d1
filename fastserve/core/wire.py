"""protobuf's encoding, as far as the core's own methods need it: small messages, read and written by hand.

protobuf itself would cost the serving process megabytes and half a second, for messages of a few fields.
Predict is read by csrc/predict.c. Used by the services that are coroutines, on the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VARINT, FIXED64, BYTES, _GROUP, _GROUP_END, FIXED32 = range(6)
_VARINT_MAX_BYTES = 10
_NUMBER_MAX = (1 << 29) - 1

# A field's number and wire type. One that has another type than its message's definition says is unknown.
Field = tuple[int, int]


class Malformed(ValueError):
    """The bytes are no protobuf message."""


def fields(message: bytes) -> Iterator[tuple[Field, Any]]:
    """The fields and their values in the order of the bytes: bytes for BYTES, otherwise int. What is in
    groups is passed over. Malformed, as soon as the message turns out to be none."""
    at, end = 0, len(message)
    groups: list[int] = []
    while at < end:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _NUMBER_MAX:
            raise Malformed
        value: int | bytes = 0
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == _GROUP:
            groups.append(number)
            continue
        elif kind == _GROUP_END:
            if not groups or groups.pop() != number:
                raise Malformed
            continue
        elif kind in (BYTES, FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
            if kind == BYTES:
                size, at = _varint(message, at)
            if size > end - at:
                raise Malformed
            data = message[at : at + size]
            value = data if kind == BYTES else int.from_bytes(data, "little")
            at += size
        else:
            raise Malformed
        if not groups:
            yield (number, kind), value
    if groups:
        raise Malformed


def text(value: bytes) -> str:
    """A string field's value."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Malformed from None


def int64(value: int) -> int:
    """An int64 field's value."""
    return value - (1 << 64) if value >> 63 else value


def put_int(number: int, value: int) -> bytes:
    """A field with an integer; nothing for 0, which is what absence means."""
    return _put_varint(number << 3 | VARINT) + _put_varint(value & (1 << 64) - 1) if value else b""


def put_bytes(number: int, value: bytes) -> bytes:
    """A field with a message, which is there even when it is empty."""
    return _put_varint(number << 3 | BYTES) + _put_varint(len(value)) + value


def put_text(number: int, value: str) -> bytes:
    """A field with a string; nothing for an empty one."""
    return put_bytes(number, value.encode("utf-8", "replace")) if value else b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, cut to 64 bits, and where the next byte is."""
    value = 0
    for shift, byte in enumerate(message[at : at + _VARINT_MAX_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at + shift + 1
    raise Malformed


def _put_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
