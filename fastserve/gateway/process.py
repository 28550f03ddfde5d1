"""The composition root of a gateway process: what there is, in which order it starts, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from typing import Any

from fastserve.gateway.body import Budget
from fastserve.gateway.connections import Connections, Server
from fastserve.gateway.control_link import ControlLink
from fastserve.gateway.core_client import core_client
from fastserve.gateway.dispatch import Dispatcher, Handler
from fastserve.gateway.proxy import Proxy
from fastserve.gateway.rest import Rest
from fastserve.gateway.routes import Routes
from fastserve.gateway.settings import Settings
from fastserve.http_log import server_log
from fastserve.http_paths import MONITOR_PATHS

_KEEPALIVE_S = 75.0
_HEADER_MAX_BYTES = 16 << 10
_READ_BYTES = 1 << 20
# How long routes that start may hold up the word that the gateway serves.
_ROUTES_TIMEOUT_S = 30.0
_GC_THRESHOLD = 50_000
# Between the last request and the end of the connections that are idle: whoever asks again and again has had
# an answer meanwhile that says that it is the last on this connection.
_LAST_ANSWERS_S = 0.1
# When the time for answers is up, how long connections have to end, and then, twice, to be cut.
_CUT_S = 0.1
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
    link = ControlLink(received)
    gateway = Gateway(settings, link)
    await link.open(control)
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
        self._log = link.log
        core = f"unix:{settings.rest_socket}"
        self._client = core_client(core, settings.timeout_s)
        budget = Budget(settings.max_total_bytes)
        self._rest = Rest(self._client, settings, budget)
        self._proxy = Proxy(settings.monitor_socket)
        exact: dict[str, Handler] = dict.fromkeys((*MONITOR_PATHS, settings.metrics_path), self._proxy.handle)
        self._routes = Routes(settings, exact, budget, link.log)
        self._dispatcher = Dispatcher(self._rest.handle, exact, cors=settings.cors, server=core, log=link.log)
        self._http: Server | None = None
        self._servers: list[asyncio.AbstractServer] = []
        link.on["forward"] = self._forward
        link.on["lame_duck"] = lambda message: self._leave()
        link.on["routes"] = self._routes.take
        if settings.leaving:
            self._leave()

    async def open(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        self._http = Server(
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
        accepted = Connections(self._http, self._settings.max_connections, self._log)
        self._routes.open()
        for listening in self._settings.listeners:
            sock = socket.socket(fileno=listening.fd)
            sock.setblocking(False)
            start = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            # The queue of a socket that others have, too, stays as long as it is.
            self._servers.append(await start(accepted, sock=sock, backlog=_BACKLOG))

    async def settled(self) -> None:
        """Waits a while for the routes' workers: REST is served already."""
        await self._routes.settled(_ROUTES_TIMEOUT_S)

    async def drain(self, timeout_s: float) -> bool:
        """Accepts nothing more, answers what there is, and closes. Whether all was answered in time, to the
        last byte."""
        assert self._http is not None
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        for server in self._servers:
            server.close()
        self._leave()
        await self._last_answers(end)
        # From here on what still comes on a connection is thrown away.
        self._http.pre_shutdown()
        answering = asyncio.create_task(self._http.end(), name="answering")
        await asyncio.wait([answering], timeout=max(end - loop.time(), _CUT_S))
        answered = answering.done()
        if answered:
            answering.result()
        else:
            answering.cancel()
            await asyncio.wait([answering])
            await self._http.shutdown(_CUT_S)
        await self._routes.close()
        await self._proxy.close()
        await self._client.close()
        return answered

    async def _last_answers(self, end: float) -> None:
        """Waits until no request is left, whose body may still be on its way, and nobody has asked for a
        while: on a busy machine one pause may be too short. Until `end` on the loop's clock."""
        loop = asyncio.get_running_loop()
        before = -1
        while (self._dispatcher.active or before != self._dispatcher.begun) and (now := loop.time()) < end:
            before = self._dispatcher.begun
            self._proxy.end_streams()
            await asyncio.sleep(min(_LAST_ANSWERS_S, end - now))
        self._proxy.end_streams()

    def _leave(self) -> None:
        """A connection that is closed between two requests may lose the second one, which is on its way:
        clients are told before."""
        self._dispatcher.leaving = True

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
