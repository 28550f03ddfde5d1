"""The monitor's sockets: a unix socket in the state directory, and the addresses of [monitoring] listen.

Each has an application and a limit of connections of its own, so that whoever exhausts one of them has not
exhausted the others. Owned by the daemon, on its event loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Container, Sequence

from aiohttp import web

from fastserve.http_log import server_log
from fastserve.monitor.app import Monitor
from fastserve.monitor.live import Live
from fastserve.monitor.scrape import Scraper
from fastserve.monitor.values import View

MAX_CONNECTIONS = 256
_KEEPALIVE_S = 75.0
# A connection on which no whole request has come for so long is closed.
_SILENCE_S = 30.0
_CLOSE_TIMEOUT_S = 1.0


class MonitorServer:
    """From `open` to `close`."""

    def __init__(self, view: View, *, metrics_path: str, page: bool) -> None:
        self._metrics_path = metrics_path
        self._live = Live(view.status)
        self._scraper = Scraper(view)
        self._monitor = Monitor(view, self._live, self._scraper, page=page)
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Serves bound sockets, which stay the caller's."""
        for sock in sockets:
            runner = web.AppRunner(
                self._monitor.app(self._metrics_path),
                access_log=None,
                logger=server_log(),
                handle_signals=False,
                keepalive_timeout=_KEEPALIVE_S,
                shutdown_timeout=_CLOSE_TIMEOUT_S,
            )
            await runner.setup()
            self._runners.append(runner)
            assert runner.server is not None
            factory = bounded(runner.server, self._monitor.heard)
            loop = asyncio.get_running_loop()
            # A copy: what the loop closes at the end is not the caller's.
            own = sock.dup()
            if sock.family == socket.AF_UNIX:
                self._servers.append(await loop.create_unix_server(factory, sock=own))
            else:
                self._servers.append(await loop.create_server(factory, sock=own))

    async def close(self) -> None:
        """Ends answers under way, and hangs up."""
        for server in self._servers:
            server.close()
        await self._live.close()
        for runner in self._runners:
            await runner.cleanup()
        self._scraper.close()


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def bounded(
    server: web.Server,
    heard: Container[asyncio.BaseTransport],
    *,
    most: int = MAX_CONNECTIONS,
    silence_s: float = _SILENCE_S,
) -> Callable[[], asyncio.BaseProtocol]:
    """Makes a protocol for each connection, up to so many at a time, and hangs up on those that have asked
    nothing whole for so long; from then on keep-alive has a limit of its own."""

    def end_if_silent(protocol: web.RequestHandler) -> None:
        transport = protocol.transport
        if transport is not None and transport not in heard:
            transport.abort()

    def make() -> asyncio.BaseProtocol:
        if len(server.connections) >= most:
            return _Refused()
        protocol = server()
        asyncio.get_running_loop().call_later(silence_s, end_if_silent, protocol)
        return protocol

    return make
