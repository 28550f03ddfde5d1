"""Frames: how the gateway and a route's worker talk over their socket pair.

A frame is the lengths of its head and its body (two uint32, little-endian), the head, a JSON object whose
"op" says what it is, and the body, bytes. `FrameReader` does no I/O; `Peer` puts it on a stream socket. Used
in both processes, on their event loops.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import orjson

_LENGTHS = struct.Struct("<II")
MAX_HEAD_BYTES = 4 << 20
MAX_BODY_BYTES = (1 << 31) - 1
_READ_BYTES = 256 << 10

Head = dict[str, Any]


class FrameError(Exception):
    """What came is no frame. Nothing after it can be trusted."""


def frame(head: Head, body: bytes = b"") -> list[bytes]:
    """A frame, to be written in this order. FrameError when it is too large."""
    text = orjson.dumps(head)
    if len(text) > MAX_HEAD_BYTES or len(body) > MAX_BODY_BYTES:
        raise FrameError(f"a frame of {len(text)} + {len(body)} bytes is too large")
    return (
        [_LENGTHS.pack(len(text), len(body)) + text, body] if body else [_LENGTHS.pack(len(text), 0) + text]
    )


class FrameReader:
    """Frames out of bytes: fill `room()`, then tell `filled` how much there is.

    What has come of a large frame is moved to memory of its size once, and the rest is received there.
    """

    def __init__(self) -> None:
        self._small = memoryview(bytearray(_READ_BYTES))
        self._have = 0
        # A frame that the small buffer does not hold: its memory, how much of it is there.
        self._large: memoryview | None = None
        self._large_have = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            return self._large[self._large_have :]
        return self._small[self._have :]

    def filled(self, count: int) -> list[tuple[Head, bytes]]:
        """The frames that `count` more bytes have completed. FrameError."""
        if self._large is not None:
            self._large_have += count
            if self._large_have < len(self._large):
                return []
            large, self._large = self._large, None
            return [_parse(large)]
        self._have += count
        frames = []
        at = 0
        while self._have - at >= _LENGTHS.size:
            size = _size(self._small[at : self._have])
            if self._have - at < size:
                if size > len(self._small):
                    self._large = memoryview(bytearray(size))
                    self._large_have = self._have - at
                    self._large[: self._large_have] = self._small[at : self._have]
                    at = self._have
                break
            frames.append(_parse(self._small[at : at + size]))
            at += size
        rest = self._have - at
        self._small[:rest] = bytes(self._small[at : self._have])
        self._have = rest
        return frames


def _size(data: memoryview) -> int:
    head, body = _LENGTHS.unpack_from(data)
    if head > MAX_HEAD_BYTES or body > MAX_BODY_BYTES:
        raise FrameError(f"a frame of {head} + {body} bytes")
    return _LENGTHS.size + int(head) + int(body)


def _parse(data: memoryview) -> tuple[Head, bytes]:
    length, _ = _LENGTHS.unpack_from(data)
    end = _LENGTHS.size + length
    try:
        head = orjson.loads(data[_LENGTHS.size : end])
    except orjson.JSONDecodeError as error:
        raise FrameError(f"a head that is not JSON: {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("op"), str):
        raise FrameError("a head that does not say what it is")
    return head, bytes(data[end:])


class Peer(asyncio.BufferedProtocol):
    """One end of the pair: calls `on_frame` for each frame, `on_lost` once at the end, with why; ""
    when it was closed."""

    def __init__(self, on_frame: Callable[[Head, bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._why = ""

    def send(self, head: Head, body: bytes = b"") -> None:
        """Does nothing once the other end has gone. FrameError when it is too large."""
        data = frame(head, body)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an instance of it where uvloop makes it for a unix socket.
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for head, body in self._reader.filled(nbytes):
                self._on_frame(head, body)
        except FrameError as error:
            self._why = str(error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self._why or (str(exc) if exc else ""))
