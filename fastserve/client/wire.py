"""protobuf's wire format in Python, for messages that are small or rare: ModelSpecs, metadata, status.

What is large or made for every call is read and written in C. Refuses what csrc/wire.h refuses: tags of more
than five bytes, varints of more than ten, lengths beyond the message, groups that do not match.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)

MAX_DEPTH = 100
MAX_BYTES = (1 << 31) - 1


class MessageError(ValueError):
    """The bytes are not the message that they should be."""


def varint(value: int) -> bytes:
    """`value` of -2^63 to 2^64 - 1; negative numbers take ten bytes, as int64 and enums do."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_head(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a message, a string or a packed list."""
    return varint(number << 3 | BYTES) + varint(length)


def field_bytes(number: int, data: bytes) -> bytes:
    return field_head(number, len(data)) + data


def field_text(number: int, text: str) -> bytes:
    """Nothing for an empty text, which is what proto3 reads where there is no field."""
    return field_bytes(number, text.encode()) if text else b""


def field_int(number: int, value: int) -> bytes:
    """Nothing for 0, as for an empty text."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def fields(data: bytes, what: str) -> Iterator[tuple[int, int | bytes]]:
    """The number and value of each field of a message: an int for varints, bytes for what has a length. What
    is of fixed size is skipped: no message that is read here has such fields. `what` names the message in
    errors. MessageError."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at, 5, what)
        tag &= 0xFFFFFFFF
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise MessageError(f"{what}: a field has number 0")
        if kind == VARINT:
            value, at = _varint(data, at, 10, what)
            yield number, value & (1 << 64) - 1
        elif kind == GROUP:
            at = _skip_group(data, at, number, MAX_DEPTH, what)
        else:
            start, at = _extent(data, at, kind, what)
            if kind == BYTES:
                yield number, data[start:at]


def message_of(value: int | bytes, what: str) -> bytes:
    """The bytes of a field that is a message, or a list of them. MessageError where it is a number."""
    if isinstance(value, int):
        raise MessageError(f"{what}: a number where a message belongs")
    return value


def text_of(value: int | bytes, what: str) -> str:
    """A string field. MessageError where it is none."""
    try:
        return message_of(value, what).decode()
    except UnicodeDecodeError:
        raise MessageError(f"{what}: a string is not UTF-8") from None


def int64_of(value: int | bytes, what: str) -> int:
    """An int64 field. MessageError where it is none."""
    if not isinstance(value, int):
        raise MessageError(f"{what}: bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def int32_of(value: int | bytes, what: str) -> int:
    """An int32 field or an enum: the low 32 bits. MessageError where it is none."""
    low = int64_of(value, what) & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def _varint(data: bytes, at: int, longest: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * longest, 7):
        if at >= len(data):
            raise MessageError(f"{what}: cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MessageError(f"{what}: a number of more than {longest} bytes")


def _extent(data: bytes, at: int, kind: int, what: str) -> tuple[int, int]:
    """Where a field that is not a varint and not a group begins and ends."""
    if kind == BYTES:
        length, at = _varint(data, at, 5, what)
    elif kind in (FIXED32, FIXED64):
        length = 4 if kind == FIXED32 else 8
    else:
        raise MessageError(f"{what}: a field of wire type {kind}")
    if length > len(data) - at:
        raise MessageError(f"{what}: cut short")
    return at, at + length


def _skip_group(data: bytes, at: int, number: int, depth: int, what: str) -> int:
    if depth == 0:
        raise MessageError(f"{what}: groups within groups, deeper than {MAX_DEPTH}")
    while True:
        tag, at = _varint(data, at, 5, what)
        tag &= 0xFFFFFFFF
        inner, kind = tag >> 3, tag & 7
        if inner == 0:
            raise MessageError(f"{what}: a field has number 0")
        if kind == END_GROUP:
            if inner != number:
                raise MessageError(f"{what}: a group ends that had not begun")
            return at
        if kind == GROUP:
            at = _skip_group(data, at, inner, depth - 1, what)
        elif kind == VARINT:
            _, at = _varint(data, at, 10, what)
        else:
            _, at = _extent(data, at, kind, what)
