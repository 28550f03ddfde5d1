"""The connection with the control process: settings come, the log goes. See control/gateway_process.py.

Nothing here waits for the other side: lines that it does not take are dropped. When it is gone, the gateway
goes on. Used on the loop, but for `first_line`, which comes before it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, cast

GATEWAY_FD = "FASTSERVE_GATEWAY_FD"
_UNSENT_MAX_BYTES = 256 << 10


def first_line(control: socket.socket) -> tuple[bytes, bytes]:
    """Waits for the first line; it, and what came after it. EOFError when there is none."""
    got = b""
    while b"\n" not in got:
        data = control.recv(65536)
        if not data:
            raise EOFError("the control process has gone")
        got += data
    line, _, rest = got.partition(b"\n")
    return line, rest


class ControlLink(asyncio.Protocol):
    """Made by `open`. `lost` is set when the control process has gone."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        # By a line's "event", what is done with the line.
        self.on: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._transport: asyncio.Transport | None = None
        self._received = b""

    @classmethod
    async def open(cls, control: socket.socket, received: bytes) -> ControlLink:
        """`received`: what came after the first line."""
        control.setblocking(False)
        link = cls()
        await asyncio.get_running_loop().create_connection(lambda: link, sock=control)
        link.data_received(received)
        return link

    def ready(self) -> None:
        """The gateway serves."""
        self._send({"event": "ready"})

    def log(self, level: str, message: str, **fields: Any) -> None:
        """One line of the control process's log."""
        self._send({"event": "log", "level": level, "message": message, "fields": fields})

    def _send(self, message: dict[str, Any]) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() < _UNSENT_MAX_BYTES:
            transport.write(json.dumps(message, default=str).encode() + b"\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not asyncio's

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if (act := self.on.get(message["event"])) is not None:
                act(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.lost.set()
