"""Accepted connections, as many as there may be. Used on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aiohttp import web


class Connections:
    """What a listening socket's server makes protocols with: `server`'s up to `most` at one time."""

    def __init__(self, server: web.Server, most: int, log: Callable[..., None]) -> None:
        self._server = server
        self._most = most
        self._log = log
        self._refused = 0

    def __call__(self) -> asyncio.BaseProtocol:
        if len(self._server.connections) < self._most:
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
