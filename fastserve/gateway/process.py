"""The composition root of a gateway process: what there is, in which order it starts, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from typing import Any

from aiohttp import web

from fastserve.client.aio import AsyncClient
from fastserve.gateway.body import Budget
from fastserve.gateway.control_link import ControlLink
from fastserve.gateway.dispatch import Dispatcher, Handler
from fastserve.gateway.proxy import Proxy
from fastserve.gateway.rest import Rest
from fastserve.gateway.routes import Routes
from fastserve.gateway.settings import Settings
from fastserve.http_log import server_log

_KEEPALIVE_S = 75.0
_HEADER_MAX_BYTES = 16 << 10
_READ_BYTES = 1 << 20
_CONNECT_MAX_S = 3600.0
# The core's own limits are what counts.
_REPLY_MAX_BYTES = (1 << 31) - 1
# How long routes that start may hold up the word that the gateway serves.
_ROUTES_TIMEOUT_S = 30.0
_GC_THRESHOLD = 50_000
_BACKLOG = 4096  # as control/listeners.py has it
# Without a control process, how often it is looked whether the core is still there, and how often it may not.
_LOOK_S = 5.0
_MISSES = 12


async def serve(control: socket.socket, received: bytes, settings: Settings) -> int:
    """Serves until SIGTERM, or until neither a control process nor a core is left. The exit status: 0 when
    every request was answered."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # SIGINT reaches the whole foreground group: what it means is the control process's decision.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    link = await ControlLink.open(control, received)
    gateway = Gateway(settings, link)
    await gateway.open()
    stopped = asyncio.create_task(stop.wait(), name="stop")
    settled = asyncio.create_task(gateway.settled(), name="settled")
    await asyncio.wait([stopped, settled], return_when=asyncio.FIRST_COMPLETED)
    settled.cancel()
    gc.collect()
    gc.freeze()
    # A request's JSON is hundreds of lists, none of them in a cycle.
    gc.set_threshold(_GC_THRESHOLD)
    link.ready()
    alone = asyncio.create_task(_end_without_core(link, settings.rest_socket, stop), name="alone")
    await stopped
    alone.cancel()
    return 0 if await gateway.drain(settings.drain_timeout_s) else 1


class Gateway:
    """Everything that a gateway process consists of."""

    def __init__(self, settings: Settings, link: ControlLink) -> None:
        self._settings = settings
        # There is one server: it is never given up. While a core restarts, its socket's queue takes
        # connections, which may wait for as long as a request.
        core = f"unix:{settings.rest_socket}"
        self._client = AsyncClient(
            core,
            eject=None,
            keepalive=None,
            connect_timeout=min(settings.timeout_s, _CONNECT_MAX_S),
            max_reply_bytes=_REPLY_MAX_BYTES,
        )
        budget = Budget(settings.max_total_bytes)
        self._rest = Rest(self._client, settings, budget)
        self._proxy = Proxy(settings.monitor_socket)
        exact: dict[str, Handler] = dict.fromkeys(
            (
                "/",
                "/healthz",
                "/readyz",
                "/status.json",
                "/history.json",
                "/events",
                settings.metrics_path,
            ),
            self._proxy.handle,
        )
        self._routes = Routes(settings, exact, budget, link.log)
        self._dispatcher = Dispatcher(self._rest.handle, exact, cors=settings.cors, server=core, log=link.log)
        self._http: web.Server | None = None
        self._servers: list[asyncio.AbstractServer] = []
        link.on["forward"] = self._forward
        link.on["routes"] = self._routes.take

    async def open(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self._http = web.Server(
            self._dispatcher,
            access_log=None,
            logger=server_log(),
            # Whoever hangs up is not worked for any more: the call is cancelled, too.
            handler_cancellation=True,
            # Bodies are decompressed by us, within bounds.
            auto_decompress=False,
            keepalive_timeout=_KEEPALIVE_S,
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
            read_bufsize=_READ_BYTES,
        )
        self._routes.open()
        for listening in self._settings.listeners:
            sock = socket.socket(fileno=listening.fd)
            sock.setblocking(False)
            start = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            # The queue of a socket that others have, too, stays as long as it is.
            self._servers.append(await start(self._http, sock=sock, backlog=_BACKLOG))

    async def settled(self) -> None:
        """Waits a while for the routes' workers: REST is served already."""
        await self._routes.settled(_ROUTES_TIMEOUT_S)

    async def drain(self, timeout_s: float) -> bool:
        """Accepts nothing more, answers what there is, and closes. Whether all was answered in time."""
        assert self._http is not None
        for server in self._servers:
            server.close()
        self._proxy.end_streams()
        self._http.pre_shutdown()
        await self._http.shutdown(timeout_s)
        answered = self._dispatcher.active == 0
        await self._routes.close()
        await self._proxy.close()
        await self._client.close()
        return answered

    def _forward(self, message: dict[str, Any]) -> None:
        self._rest.forward(tuple(message["headers"]))
        self._routes.forward(tuple(message["headers"]))


async def _end_without_core(link: ControlLink, path: str, stop: asyncio.Event) -> None:
    """Sets `stop` when the control process has gone and the core, too, so that nobody can be answered. While
    there is a core, or one that comes soon, another control process will take over."""
    await link.lost.wait()
    # Nobody may be reading what this process writes to its standard output and error.
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)
    missed = 0
    while missed < _MISSES:
        await asyncio.sleep(_LOOK_S)
        missed = 0 if _listens(path) else missed + 1
    stop.set()


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True
