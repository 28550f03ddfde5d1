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
# Of what a line of the log may have; the other side reads lines of 1 MiB at most.
_LINE_MAX_BYTES = 64 << 10
_CUT_CHARS = 2000
_MOST_FIELDS = 20


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
    """Not connected before `open`. `lost` is set when the control process has gone."""

    def __init__(self, received: bytes = b"") -> None:
        """`received`: what came after the first line."""
        self.lost = asyncio.Event()
        # By a line's "event", what is done with the line.
        self.on: dict[str, Callable[[dict[str, Any]], None]] = {}
        self._transport: asyncio.Transport | None = None
        self._received = received

    async def open(self, control: socket.socket) -> None:
        """Connects, and takes what there is already: whoever wants lines is in `on` by now."""
        control.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=control)
        self.data_received(b"")

    def ready(self) -> None:
        """The gateway serves."""
        self._send({"event": "ready"})

    def log(self, level: str, message: str, **fields: Any) -> None:
        """One line of the control process's log."""
        line = {"event": "log", "level": level, "message": message, "fields": fields}
        if len(_text(line)) > _LINE_MAX_BYTES:
            short = {
                name[:_CUT_CHARS]: str(value)[:_CUT_CHARS]
                for name, value in list(fields.items())[:_MOST_FIELDS]
            }
            line |= {"level": level[:_CUT_CHARS], "message": message[:_CUT_CHARS], "fields": short}
        self._send(line)

    def _send(self, message: dict[str, Any]) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() < _UNSENT_MAX_BYTES:
            transport.write(_text(message) + b"\n")

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


def _text(message: dict[str, Any]) -> bytes:
    return json.dumps(message, default=str).encode()
