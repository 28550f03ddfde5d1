"""The core's end of the control protocol: JSON objects, one a line, over a socket.

The control process sends {"id": 1, "op": "load", ...}; each is answered with its id, in any order. When the
control process dies, the core goes on serving. Writing never waits: the socket's buffer takes a line or the
line is dropped, because a stuck control process must not delay a request.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastserve.version import __version__

_LINE_MAX_BYTES = 64 << 20
_BACKLOG_MAX_BYTES = 8 << 20

Command = dict[str, Any]
Run = Callable[[str, Command], Awaitable[dict[str, Any]]]


class Refused(Exception):
    """A command that cannot be done. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ControlChannel:
    """Made by `open`; `configure` first, then `serve`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self.dropped = 0

    @classmethod
    async def open(cls, fd: int) -> ControlChannel:
        """Takes over the descriptor and says hello."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=_LINE_MAX_BYTES)
        channel = cls(reader, writer)
        channel._write({"event": "hello", "pid": os.getpid(), "version": __version__})
        return channel

    async def configure(self) -> Command:
        """Waits for the first command, which must be `configure`, and accepts it."""
        line = await self._reader.readline()
        if not line:
            raise SystemExit("fastserve.core: the control process ended before it said what to do")
        command: Command = json.loads(line)
        if command.get("op") != "configure":
            raise SystemExit(f"fastserve.core: the first command must be configure, not {command.get('op')}")
        self._write({"id": command["id"], "ok": True})
        return command

    def serve(self, run: Run, on_lost: Callable[[], None]) -> None:
        """Runs every further command as a task of its own, and `on_lost` when the control process is gone."""
        self._serving = asyncio.create_task(self._serve(run, on_lost), name="control-channel")

    def send(self, event: dict[str, Any]) -> bool:
        """One event for the control process. False: there is none, or it does not read."""
        return self._write(event)

    def log(self, level: str, message: str, **fields: object) -> None:
        """One event for the control process's log."""
        self._write({"event": "log", "level": level, "message": message, "fields": fields})

    async def close(self) -> None:
        """Answers what is answered already, then ends."""
        if self._serving is not None:
            self._serving.cancel()
        # The drain's own answer is written by a task that is about to finish.
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        self._writer.close()

    async def _serve(self, run: Run, on_lost: Callable[[], None]) -> None:
        with suppress(ConnectionError):
            await self._read(run)
        # What is served stays served; SIGTERM still drains.
        self._writer.close()
        on_lost()

    async def _read(self, run: Run) -> None:
        while line := await self._reader.readline():
            task = asyncio.create_task(self._answer(run, json.loads(line)), name="command")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, run: Run, command: Command) -> None:
        try:
            answer = await run(command["op"], command)
            self._write({"id": command["id"], "ok": True, **answer})
        except Refused as refused:
            self._write({"id": command["id"], "ok": False, "code": refused.code, "error": refused.message})
        except Exception as error:  # a defect of ours: the control process must hear of it all the same
            text = f"{type(error).__name__}: {error}"
            self._write({"id": command["id"], "ok": False, "code": "INTERNAL", "error": text})

    def _write(self, message: dict[str, Any]) -> bool:
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > _BACKLOG_MAX_BYTES:
            self.dropped += 1
            return False
        self._writer.write(json.dumps(message).encode() + b"\n")
        return True
