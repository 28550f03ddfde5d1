"""Reading requests' bodies, within bounds of size and time. Used on the loop."""

from __future__ import annotations

import asyncio
import zlib
from types import TracebackType

import aiohttp
from aiohttp import web

from fastserve.gateway.refusal import HTTP_STATUS, InvalidArgument, Refusal

_GZIP = 16 + zlib.MAX_WBITS
_TOO_LARGE, _TOO_SLOW = 413, 408


class Budget:
    """Bytes of all bodies that are held at one time."""

    def __init__(self, total_bytes: int) -> None:
        self._left = total_bytes

    def take(self, size: int) -> None:
        """Refusal when there is no room."""
        if size > self._left:
            raise Refusal(
                HTTP_STATUS["RESOURCE_EXHAUSTED"],
                "the requests under way hold as many bytes as they may (limits.max_total_bytes)",
                close=True,
            )
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class Body:
    """One request's body, a context manager: its bytes count until the end. `data` after `read`."""

    def __init__(
        self, max_bytes: int, timeout_s: float, budget: Budget, key: str = "gateway.max_body_bytes"
    ) -> None:
        """`key`: what the configuration calls `max_bytes`."""
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._budget = budget
        self._key = key
        self._held = 0
        self.data = b""

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give_back(self._held)

    async def read(self, request: web.BaseRequest) -> bytes:
        """All of it, decompressed. Refusal."""
        length = request.content_length
        if length is not None and length > self._max_bytes:
            raise self._too_large()
        content = request.content
        if content.is_eof() and content.exception() is None:
            data = content.read_nowait()
            self._hold(len(data))
        else:
            data = await self._rest(request)
        encoding = request.headers.get("Content-Encoding")
        self.data = data if encoding is None else self._decoded(data, encoding.lower())
        return self.data

    async def _rest(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What an answer has written so far is none of its own.
            request.writer.output_size = 0
        parts = []
        try:
            async with asyncio.timeout(self._timeout_s):
                while part := await request.content.readany():
                    self._hold(len(part))
                    parts.append(part)
        except TimeoutError:
            raise Refusal(
                _TOO_SLOW, f"the request's body did not come within {self._timeout_s:g} s", close=True
            ) from None
        except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as error:
            raise Refusal(400, f"the request's body cannot be read: {error}", close=True) from None
        return b"".join(parts)

    def _hold(self, size: int) -> None:
        if self._held + size > self._max_bytes:
            raise self._too_large()
        self._budget.take(size)
        self._held += size

    def _decoded(self, data: bytes, encoding: str) -> bytes:
        if encoding in ("", "identity"):
            return data
        if encoding not in ("gzip", "x-gzip"):
            raise Refusal(
                415, f"Content-Encoding: {encoding}: expected gzip", headers={"Accept-Encoding": "gzip"}
            )
        stream = zlib.decompressobj(_GZIP)
        try:
            made = stream.decompress(data, self._max_bytes + 1)
        except zlib.error as error:
            raise InvalidArgument(f"the request's body is not gzip: {error}") from None
        if len(made) > self._max_bytes:
            raise self._too_large()
        if not stream.eof or stream.unused_data:
            how = "has something after its end" if stream.eof else "is cut short"
            raise InvalidArgument(f"the request's body is gzip that {how}")
        self._budget.take(len(made))
        self._held += len(made)
        return made

    def _too_large(self) -> Refusal:
        return Refusal(
            _TOO_LARGE,
            f"the request's body has more than {self._max_bytes} bytes ({self._key})",
            close=True,
        )
