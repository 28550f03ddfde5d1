"""Accepting connections on the sockets that the control process has bound.

Each is driven by the loop, or given to the next of the front end's epoll threads when it has any. The
sockets stay open in the control process, so that clients can connect while a core restarts. Runs on the loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from fastserve._native.front_end import Connection, FrontEnd

_ACCEPTS_AT_ONCE = 64
_RETRY_S = 0.1  # after the process ran out of descriptors


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
        self._sockets = [socket.socket(fileno=listener["fd"]) for listener in listeners]
        self._addresses = [str(listener.get("address", "")) for listener in listeners]
        self.started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = 0

    def sockets(self) -> list[tuple[str, int]]:
        """Address and descriptor of each listening socket; none after `close`."""
        return [
            (address, sock.fileno()) for address, sock in zip(self._addresses, self._sockets, strict=False)
        ]

    def start(self) -> None:
        self.started = True
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def close(self) -> None:
        """Stops accepting. The control process's copies of the sockets stay open."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets = []

    def connections(self) -> int:
        count: int = self._front_end.connection_count()
        return count

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait_for_descriptors(listener, error)
                return
            if self.connections() + len(self._tasks) >= self._max_connections:
                self._refuse(sock)
                continue
            if self._front_end.io_threads:
                self._adopt(sock)
                continue
            task = self._loop.create_task(self._connect(sock), name="accept")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._front_end), sock)
        except OSError:
            sock.close()  # it had gone before it began

    def _adopt(self, sock: socket.socket) -> None:
        try:
            self._front_end.adopt(sock.fileno())
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

    def _wait_for_descriptors(self, listener: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: the backlog keeps the clients meanwhile."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self._log("error", "accept failed", error=str(error))
        self._loop.remove_reader(listener.fileno())
        self._loop.call_later(_RETRY_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
