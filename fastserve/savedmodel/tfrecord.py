"""TFRecord files, read and written without TensorFlow: records of bytes, each with checksums.

A record is its length (8 bytes, little-endian), the masked CRC-32C of that, its bytes, and theirs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
# Longer data is cut into so many parts, whose checksums are computed side by side.
_LANES = 256
_LONG_BYTES = 16 * _LANES


class TFRecordError(ValueError):
    """A file is damaged or no TFRecord file. The text is TensorFlow's."""


def read_records(path: str | Path) -> Iterator[bytes]:
    """The records of a file, in order. TFRecordError at the first that is damaged; OSError. Like TensorFlow,
    takes what is left of a header at the end for nothing."""
    offset = 0
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, check = _HEADER.unpack(header)
            if _masked(header[:8]) != check:
                hint = "" if offset else " (Is this even a TFRecord file?)"
                raise TFRecordError(f"corrupted record at {offset}{hint}")
            if length + _FOOTER.size > size - file.tell():
                raise TFRecordError(
                    f"truncated record at {offset}' failed with Read less bytes than requested"
                )
            data = file.read(length)
            (check,) = _FOOTER.unpack(file.read(_FOOTER.size))
            if _masked(data) != check:
                raise TFRecordError(f"corrupted record at {offset + _HEADER.size}")
            yield data
            offset = file.tell()


def write_records(file: IO[bytes], records: Iterable[bytes]) -> int:
    """Writes records to an open file. How many there were. OSError."""
    count = 0
    for record in records:
        length = struct.pack("<Q", len(record))
        file.write(length + _FOOTER.pack(_masked(length)) + record + _FOOTER.pack(_masked(record)))
        count += 1
    return count


def crc32c(data: bytes) -> int:
    register = 0xFFFFFFFF
    if len(data) >= _LONG_BYTES:
        width = len(data) // _LANES
        whole = width * _LANES
        register = _lanes(np.frombuffer(data, np.uint8, whole).reshape(_LANES, width), register)
        data = data[whole:]
    table = _table().tolist()
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    """As records have it: so that a checksum of data with checksums in it stays a good one."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


@cache
def _table() -> npt.NDArray[np.uint32]:
    """What eight shifts make of each byte."""
    register: Any = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        register = np.where(register & 1, (register >> 1) ^ np.uint32(_POLYNOMIAL), register >> 1)
    return np.asarray(register, np.uint32)


def _lanes(parts: npt.NDArray[np.uint8], register: int) -> int:
    """Goes on from `register` with the rows of `parts`, one after the other."""
    table = _table()
    count, width = parts.shape
    # One register for each part, from nothing; and 32 more, each of which has one bit and sees zeros: what
    # they become says what as many bytes make of any register, for all this is linear.
    registers: Any = np.concatenate(
        [np.zeros(count, np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)]
    )
    columns = np.zeros((width, count + 32), np.uint8)
    columns[:, :count] = parts.T
    for column in columns:
        registers = table[(registers ^ column) & 0xFF] ^ (registers >> np.uint32(8))
    shifted = registers[count:].tolist()
    for part in registers[:count].tolist():
        moved = part
        for bit in range(32):
            if register >> bit & 1:
                moved ^= shifted[bit]
        register = moved
    return register
