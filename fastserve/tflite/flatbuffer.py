"""The few things in a flatbuffer that a TFLite model is made of: tables, vectors, strings and numbers.

Used by fastserve.tflite.read. Every offset is checked before it is followed, so that whatever the bytes are,
the worst that happens is BadFlatbuffer. Reads what is asked for, in blocks, and maps nothing: a file that
somebody cuts short meanwhile is an error and no signal.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_U8 = struct.Struct("<B")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
# More elements than any vector of a model has that is read: a damaged length ends in an error, not in a walk.
_VECTOR_MAX = 1_000_000
_BLOCK_BYTES = 1 << 14
_BLOCKS_KEPT = 256


class BadFlatbuffer(Exception):
    """The bytes are no such flatbuffer, or not all of it. The text says where."""


class Bytes:
    """`size` bytes, of which `pread(count, at)` gives some."""

    def __init__(self, size: int, pread: Callable[[int, int], bytes]) -> None:
        self.size = size
        self._pread = pread
        self._blocks: dict[int, bytes] = {}

    def get(self, at: int, count: int) -> bytes:
        """BadFlatbuffer when they are not all there."""
        if at < 0 or at + count > self.size:
            raise BadFlatbuffer(f"something is said to be at byte {at}, and it ends at {self.size}")
        block, begin = divmod(at, _BLOCK_BYTES)
        if begin + count <= _BLOCK_BYTES:
            found = self._block(block)[begin : begin + count]
        else:
            found = self._pread(count, at)
        if len(found) != count:
            raise BadFlatbuffer(f"it became shorter than {self.size} bytes while it was read")
        return found

    def number(self, kind: struct.Struct, at: int) -> int:
        (value,) = kind.unpack(self.get(at, kind.size))
        return int(value)

    def follow(self, at: int) -> int:
        """Where the offset at `at` points."""
        return at + self.number(_U32, at)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.clear()
            block = self._blocks[number] = self._pread(_BLOCK_BYTES, number * _BLOCK_BYTES)
        return block


def root(data: Bytes, identifier: bytes) -> Table:
    """The root table of a file with this identifier."""
    found = data.get(4, 4)
    if found != identifier:
        raise BadFlatbuffer(f"bytes 4 to 8 are {found!r} and not {identifier!r}")
    return Table(data, data.follow(0))


@dataclass(frozen=True, slots=True)
class Table:
    """A table at byte `at`. Fields go by their number in the schema; those that are absent have a default."""

    data: Bytes
    at: int

    def _field(self, number: int) -> int:
        """Where the field is; 0 when it is absent."""
        vtable = self.at - self.data.number(_I32, self.at)
        entry = 4 + 2 * number
        if entry + 2 > self.data.number(_U16, vtable):
            return 0
        offset = self.data.number(_U16, vtable + entry)
        return self.at + offset if offset else 0

    def _number(self, kind: struct.Struct, number: int) -> int:
        at = self._field(number)
        return self.data.number(kind, at) if at else 0

    def uint8(self, number: int) -> int:
        return self._number(_U8, number)

    def uint32(self, number: int) -> int:
        return self._number(_U32, number)

    def uint64(self, number: int) -> int:
        return self._number(_U64, number)

    def string(self, number: int) -> str:
        """ "" when it is absent. What is no UTF-8 is replaced."""
        begin, length = self._read_vector(number, 1)
        return self.data.get(begin, length).decode("utf-8", "replace")

    def int32s(self, number: int) -> tuple[int, ...]:
        """Empty when the vector is absent."""
        begin, length = self._read_vector(number, 4)
        return struct.unpack(f"<{length}i", self.data.get(begin, 4 * length))

    def tables(self, number: int) -> Iterator[Table]:
        """None when the vector is absent."""
        begin, length = self._read_vector(number, 4)
        for i in range(length):
            yield Table(self.data, self.data.follow(begin + 4 * i))

    def vector_ends(self, number: int, element_bytes: int) -> None:
        """Makes sure that a vector, if there is one, is there to its end."""
        self._vector(number, element_bytes)

    def _vector(self, number: int, element_bytes: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are."""
        at = self._field(number)
        if not at:
            return 0, 0
        at = self.data.follow(at)
        length = self.data.number(_U32, at)
        begin = at + 4
        if begin + length * element_bytes > self.data.size:
            raise BadFlatbuffer(
                f"{length} elements of {element_bytes} bytes are said to be at byte {begin}, and it ends at "
                f"{self.data.size}"
            )
        return begin, length

    def _read_vector(self, number: int, element_bytes: int) -> tuple[int, int]:
        begin, length = self._vector(number, element_bytes)
        if length > _VECTOR_MAX:
            raise BadFlatbuffer(f"{length} elements are said to be at byte {begin}")
        return begin, length
