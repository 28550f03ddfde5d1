"""Accepting connections on the sockets that the control process has bound.

Each is driven by the loop, or given to the next of the front end's epoll threads when it has any; one that
speaks TLS always is. The sockets stay open in the control process, so that clients can connect while a core
restarts. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastserve._native.front_end import TRANSPORTS, Connection, FrontEnd

_ACCEPTS_AT_ONCE = 64
_BACKLOG = 4096  # as control/listeners.py has it
_RETRY_S = 0.1  # after the process ran out of descriptors


@dataclass(frozen=True)
class Listening:
    """One listening socket. `admin`: what is for the admin address only may be asked for here. `transport`:
    "grpc", or for whom the gateway calls, "rest" or "web"; it is what calls are counted by. `held`: it is
    kept for the next control process, and another process accepts here."""

    socket: socket.socket
    address: str
    tls: bool
    admin: bool
    transport: str
    held: bool


class Listener:
    """Hands accepted connections to the front end, up to `max_connections` of them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        front_end: FrontEnd,
        listeners: list[dict[str, Any]],
        max_connections: int,
        log: Callable[..., None],
    ) -> None:
        self._loop = loop
        self._front_end = front_end
        self._max_connections = max_connections
        self._log = log
        self._listening = [
            Listening(
                socket.socket(fileno=listener["fd"]),
                str(listener.get("address", "")),
                bool(listener.get("tls")),
                bool(listener.get("admin")),
                str(listener.get("transport", "grpc")),
                bool(listener.get("held")),
            )
            for listener in listeners
        ]
        for listening in self._listening:
            if listening.transport not in TRANSPORTS:
                raise ValueError(f"transport {listening.transport!r}: one of {', '.join(TRANSPORTS)}")
        self.started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0

    def sockets(self) -> list[tuple[str, int]]:
        """Address and descriptor of each listening socket; none after `close`."""
        return [(listening.address, listening.socket.fileno()) for listening in self._listening]

    @property
    def needs_tls(self) -> bool:
        """Whether some of its connections speak TLS."""
        return any(listening.tls for listening in self._listening)

    def start(self) -> None:
        self.started = True
        for listening in self._listening:
            if listening.held:
                continue
            listening.socket.setblocking(False)
            self._loop.add_reader(listening.socket.fileno(), self._accept, listening)

    def take_rest(self) -> None:
        """Accepts what waits in the queues: when a socket's last copy is closed, that is reset."""
        for listening in self._listening if self.started else ():
            if not listening.held:
                self._accept(listening, _BACKLOG)

    def close(self) -> None:
        """Stops accepting. The control process's copies of the sockets stay open."""
        for listening in self._listening:
            self._loop.remove_reader(listening.socket.fileno())
            listening.socket.close()
        self._listening = []

    def connections(self) -> int:
        count: int = self._front_end.connection_count()
        return count

    def _accept(self, listening: Listening, most: int = _ACCEPTS_AT_ONCE) -> None:
        for _ in range(most):
            try:
                sock, _address = listening.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait_for_descriptors(listening, error)
                return
            if self.connections() + len(self._tasks) >= self._max_connections:
                self._refuse(sock)
                continue
            if listening.tls or self._front_end.io_threads:
                self._adopt(sock, listening)
                continue
            task = self._loop.create_task(self._connect(sock, listening), name="accept")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket, listening: Listening) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._front_end, listening.admin, listening.transport), sock
            )
        except OSError:
            sock.close()  # it had gone before it began

    def _adopt(self, sock: socket.socket, listening: Listening) -> None:
        try:
            self._front_end.adopt(sock.fileno(), listening.tls, listening.admin, listening.transport)
        except MemoryError:
            sock.close()
            return
        sock.detach()  # the thread's from here on

    def _refuse(self, sock: socket.socket) -> None:
        sock.close()
        self._refused += 1
        # The 1st, 2nd, 4th, 8th...: an attack must not fill the log.
        if self._refused & (self._refused - 1) == 0:
            self._log("warning", "connections refused: limits.max_connections reached", refused=self._refused)

    def _wait_for_descriptors(self, listening: Listening, error: OSError) -> None:
        """Out of descriptors or memory: the backlog keeps the clients meanwhile."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self._log("error", "accept failed", error=str(error))
        self._loop.remove_reader(listening.socket.fileno())
        self._loop.call_later(_RETRY_S, self._resume, listening)

    def _resume(self, listening: Listening) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening.socket.fileno(), self._accept, listening)
