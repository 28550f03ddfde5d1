"""Health, metrics and the page on the gateway's port: they are the control process's, which answers them on a
unix socket of its own. What it says is passed on as it comes, so that a stream stays one. Runs on the loop.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from fastserve.gateway.refusal import Refusal

_METHODS = ("GET", "HEAD")
_CONNECT_TIMEOUT_S = 5.0
_PASSED_ON = ("Accept", "Last-Event-ID", "If-None-Match", "If-Modified-Since")
_PASSED_BACK = (
    "Content-Type",
    "Content-Encoding",
    "Vary",
    "Cache-Control",
    "ETag",
    "Last-Modified",
    "Retry-After",
    "Content-Security-Policy",
    "Referrer-Policy",
    "X-Content-Type-Options",
)


class Proxy:
    """Passes requests on to the HTTP server on the unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._session: aiohttp.ClientSession | None = None
        self._streams: set[asyncio.Task[None]] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in _METHODS:
            raise Refusal(
                405, f"Method not allowed: {request.method}", headers={"Allow": ", ".join(_METHODS)}
            )
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        # The session would ask for what it can decompress, and the answer goes on as it comes.
        headers["Accept-Encoding"] = request.headers.get("Accept-Encoding", "identity")
        try:
            async with self._client().request(
                request.method, f"http://monitor{request.raw_path}", headers=headers
            ) as answer:
                return await self._pass_back(request, answer)
        except aiohttp.ClientError as error:
            raise Refusal(
                502, f"the control process, which answers {request.raw_path}, cannot be reached: {error}"
            ) from None

    def end_streams(self) -> None:
        """Ends answers that have no end of their own."""
        for stream in self._streams:
            stream.cancel()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._path),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                auto_decompress=False,
            )
        return self._session

    async def _pass_back(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        if answer.content_length is not None or request.method == "HEAD":
            return web.Response(status=answer.status, headers=headers, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async for data in answer.content.iter_any():
                await response.write(data)
        except aiohttp.ClientError:
            # Half an answer is out: its connection's end is all that can be said. Without that, aiohttp would
            # write the end of a whole one.
            response.force_close()
            if request.transport is not None:
                request.transport.close()
            return response
        finally:
            self._streams.discard(task)
        await response.write_eof()
        return response
