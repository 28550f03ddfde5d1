"""Accepted connections, as many as there may be. Used on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web


class Server(web.Server):
    """aiohttp's, which knows how many connections it has without a list of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0
        self._ending: asyncio.Event | None = None

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self.count += 1
        super().connection_made(handler, transport)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self.count -= 1
        super().connection_lost(handler, exc)
        if self._ending is not None and self.count == 0:
            self._ending.set()

    async def end(self) -> None:
        """Waits for the requests there are, ends every connection, and waits until the kernel has all that
        was written to them: of an answer that counts as sent up to 64 KiB may still be here."""
        self._ending = asyncio.Event()
        await self.shutdown(None)
        if self.count:
            await self._ending.wait()


class Connections:
    """What a listening socket's server makes protocols with: `server`'s up to `most` at one time."""

    def __init__(self, server: Server, most: int, log: Callable[..., None]) -> None:
        self._server = server
        self._most = most
        self._log = log
        self._refused = 0

    def __call__(self) -> asyncio.BaseProtocol:
        if self._server.count < self._most:
            return self._server()
        self._refused += 1
        # The 1st, 2nd, 4th, 8th...: an attack must not fill the log.
        if self._refused & (self._refused - 1) == 0:
            what = "the gateway refuses connections: limits.max_connections reached"
            self._log("warning", what, refused=self._refused)
        return _Refused()


class _Refused(asyncio.Protocol):
    """A connection that ends at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
