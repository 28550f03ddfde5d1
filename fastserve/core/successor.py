"""Where a control process finds a core whose own has died: a unix socket that the one before has bound.

One process at a time: the next is accepted when the connection with the one before has ended. It sends a line
and, with it, the pipe that its log reads the core's output from; it gets a hello and duplicates (SCM_RIGHTS)
of the listening sockets and of this one, so that it can start other cores on them, and of the memories that
the core shares with it. Used on the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import Any

_PATIENCE_S = 10.0
_RETRY_S = 0.1
_GREETING_MAX_BYTES = 4096

# The hello, and the descriptors that go with it.
HandOver = Callable[[], tuple[dict[str, Any], list[int]]]


class Successor:
    """Waits for control processes on a listening socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, hand_over: HandOver) -> None:
        self._loop = loop
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._hand_over = hand_over

    def fileno(self) -> int:
        return self._sock.fileno()

    async def next(self) -> socket.socket:
        """The connection with the next control process, which has got its hello."""
        while True:
            try:
                sock, _address = await self._loop.sock_accept(self._sock)
            except OSError:
                await asyncio.sleep(_RETRY_S)  # out of descriptors
                continue
            output = None
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    output = await self._greeting(sock)
                self._greet(sock)
            except (OSError, TimeoutError, ValueError):
                sock.close()  # who does not keep to the protocol, or has gone
                if output is not None:
                    os.close(output)
                continue
            except BaseException:
                sock.close()
                raise
            send_output_to(output)
            return sock

    async def _greeting(self, sock: socket.socket) -> int | None:
        """Waits for the other side's line; the descriptor that came with it."""
        sock.setblocking(False)
        got, fds = b"", []
        try:
            while not got.endswith(b"\n"):
                await self._readable(sock)
                data, more, _flags, _address = socket.recv_fds(sock, _GREETING_MAX_BYTES, 4)
                fds += more
                got += data
                if not data or len(got) > _GREETING_MAX_BYTES:
                    raise ValueError("not a control process")
            return fds.pop(0) if fds else None
        finally:
            for fd in fds:
                os.close(fd)

    async def _readable(self, sock: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(sock.fileno())

    def _greet(self, sock: socket.socket) -> None:
        hello, fds = self._hand_over()
        line = json.dumps(hello).encode() + b"\n"
        # The socket's buffer is empty, and the line is short.
        if socket.send_fds(sock, [line], fds) != len(line):
            raise OSError("the hello was not taken whole")


def send_output_to(fd: int | None) -> None:
    """Lets standard output and error go to `fd`, which is closed, or with None to nowhere: the pipe of a
    control process that has died is a broken one."""
    target = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if fd is None else fd
    for number in (1, 2):
        os.dup2(target, number)
    os.close(target)
