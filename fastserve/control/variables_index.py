"""Reads variables.index: which shards hold a SavedModel's variables, and how long each must be.

Called by complete.py, in threads of the control process; also on files that are still being written, or are
no index at all: whatever the bytes, it ends soon and raises nothing but BadIndex and OSError. It knows the
layout of the file (a sorted table as LevelDB writes it, with TensorFlow's BundleHeaderProto under the empty
key and a BundleEntryProto under each other) and no other file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from fastserve.control.wire import BadWire, fields, varint

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48  # two block handles, padding, the magic number
_TRAILER_BYTES = 5  # of each block: how it is compressed, and a checksum
_BLOCK_MAX_BYTES = 64 << 20  # blocks are a few KiB, or as large as one key
_SHARDS_MAX = 100_000  # the names have five digits
_CRC_MASK_DELTA = 0xA282EAD8


class BadIndex(Exception):
    """The file is no index, or not all of it. The text is for people and begins after the file's name."""


class Compressed(Exception):
    """The index is whole but has a compressed block: what the shards must hold cannot be said."""


def shard_sizes(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """For each shard the least number of bytes that it must have. BadIndex, Compressed or OSError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _FOOTER_BYTES:
            raise BadIndex(f"has {size} bytes, an index has {_FOOTER_BYTES} or more: not all of it is there")
        try:
            return _shard_sizes(file, size)
        except BadWire as error:
            raise BadIndex(f"is damaged ({error}): copy it again") from None


def _shard_sizes(file: BinaryIO, size: int) -> tuple[int, ...]:
    footer = _read(file, size - _FOOTER_BYTES, _FOOTER_BYTES)
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise BadIndex(f"does not end, after {size} bytes, as an index does: not all of it is there")
    _, at = varint(footer, 0)  # the handle of the block with statistics, which is not read
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    length, _ = varint(footer, at)
    needed: list[int] = []
    first, end = True, 0
    for _, handle in _entries(_block(file, offset, length, size)):
        offset, at = varint(handle, 0)
        length, _ = varint(handle, at)
        if offset < end:  # blocks follow one another; this also bounds the work
            raise BadWire("its blocks overlap")
        end = offset + length + _TRAILER_BYTES
        for key, value in _entries(_block(file, offset, length, size)):
            if first != (key == b""):
                raise BadWire("it has no header" if first else "it has two headers")
            if first:
                needed = [0] * _shard_count(value)
            else:
                _count(value, needed)
            first = False
    if first:
        raise BadWire("it has no header")
    return tuple(needed)


def _shard_count(header: bytes) -> int:
    numbers = {field: value for field, value in fields(header) if isinstance(value, int)}
    shards = numbers.get(1, 0)
    if not 1 <= shards <= _SHARDS_MAX:
        raise BadWire(f"it speaks of {shards} shards")
    return shards


def _count(entry: bytes, needed: list[int]) -> None:
    """Makes the shard that holds this tensor at least as long as the tensor's end."""
    numbers = {field: value for field, value in fields(entry) if isinstance(value, int)}
    shard, offset, size = (numbers.get(field, 0) for field in (3, 4, 5))
    if shard >= len(needed):
        raise BadWire(f"an entry is in shard {shard} of {len(needed)}")
    needed[shard] = max(needed[shard], offset + size)


def _block(file: BinaryIO, offset: int, length: int, size: int) -> bytes:
    """The content of one block, checked against its checksum."""
    if offset + length + _TRAILER_BYTES > size - _FOOTER_BYTES or length > _BLOCK_MAX_BYTES:
        raise BadWire("a block lies outside of it")
    data = _read(file, offset, length + _TRAILER_BYTES)
    kind = data[length]
    stored = int.from_bytes(data[length + 1 :], "little")
    crc = crc32c(data[: length + 1])
    if ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF != stored:
        raise BadWire("a block does not have its checksum")
    if kind != 0:
        raise Compressed
    return data[:length]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: each key says how much of the one before it begins with."""
    if len(block) < 4:
        raise BadWire("a block is too short")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise BadWire("a block has too many restarts")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise BadWire("an entry does not fit into its block")
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise BadIndex("became shorter while it was read: not all of it is there")
    return data


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The CRC with Castagnoli's polynomial. For small data: about 50 ns a byte."""
    crc, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
