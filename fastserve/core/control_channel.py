"""The core's end of the control protocol: JSON objects, one a line, over a socket.

The control process sends {"id": 1, "op": "load", ...}; each is answered with its id, in any order. When the
control process dies, the core goes on serving, and the next one may connect where `successor` listens.
Writing never waits: the socket's buffer takes a line or the line is dropped, because a stuck control process
must not delay a request. Used on the loop.
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


class Connection:
    """The connection with one control process. Its commands are answered there or nowhere: the next process
    counts its own from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, sock: socket.socket) -> Connection:
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=_LINE_MAX_BYTES))

    async def read(self) -> Command | None:
        """The next command; None at the end."""
        line = await self._reader.readline()
        return json.loads(line) if line else None

    def write(self, message: dict[str, Any]) -> bool:
        """False: the message is dropped."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > _BACKLOG_MAX_BYTES:
            return False
        self._writer.write(json.dumps(message).encode() + b"\n")
        return True

    async def serve(self, run: Run) -> None:
        """Runs every command as a task of its own, until the control process is gone."""
        # ValueError: a line that is too long, or no JSON. Nothing after it can be trusted.
        with suppress(ConnectionError, ValueError):
            while (command := await self.read()) is not None:
                task = asyncio.create_task(self._answer(run, command), name="command")
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        self._writer.close()

    async def close(self) -> None:
        """Answers what is answered already, then ends."""
        # The drain's own answer is written by a task that is about to finish.
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=1.0)
        self._writer.close()

    async def _answer(self, run: Run, command: Command) -> None:
        try:
            answer = await run(command["op"], command)
            self.write({"id": command["id"], "ok": True, **answer})
        except Refused as refused:
            self.write({"id": command["id"], "ok": False, "code": refused.code, "error": refused.message})
        except Exception as error:  # a defect of ours: the control process must hear of it all the same
            text = f"{type(error).__name__}: {error}"
            self.write({"id": command["id"], "ok": False, "code": "INTERNAL", "error": text})


class ControlChannel:
    """The control process of the moment, or none. Made by `open`; `configure` first, then `serve`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._earlier: list[Connection] = []
        self._serving: asyncio.Task[None] | None = None
        self.dropped = 0

    @classmethod
    async def open(cls, fd: int) -> ControlChannel:
        """Takes over the descriptor and says hello."""
        channel = cls(await Connection.open(socket.socket(fileno=fd)))
        channel.send({"event": "hello", "pid": os.getpid(), "version": __version__})
        return channel

    async def configure(self) -> Command:
        """Waits for the first command, which must be `configure`, and accepts it."""
        command = await self._connection.read()
        if command is None:
            raise SystemExit("fastserve.core: the control process ended before it said what to do")
        if command.get("op") != "configure":
            raise SystemExit(f"fastserve.core: the first command must be configure, not {command.get('op')}")
        self.send({"id": command["id"], "ok": True})
        return command

    def serve(
        self,
        run: Run,
        on_lost: Callable[[], None],
        successor: Callable[[], Awaitable[socket.socket]] | None,
    ) -> None:
        """Runs commands; `on_lost`: the control process is gone; `successor` waits for the next one."""
        self._serving = asyncio.create_task(self._serve(run, on_lost, successor), name="control-channel")

    def send(self, event: dict[str, Any]) -> bool:
        """One event for the control process. False: there is none, or it does not read."""
        sent = self._connection.write(event)
        self.dropped += not sent
        return sent

    def log(self, level: str, message: str, **fields: object) -> None:
        """One event for the control process's log."""
        self.send({"event": "log", "level": level, "message": message, "fields": fields})

    async def settled(self) -> None:
        """Returns when no command of an earlier control process is under way."""
        if tasks := [task for connection in self._earlier for task in connection.tasks]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Ends, once the answers that are ready are written."""
        if self._serving is not None:
            self._serving.cancel()
        await self._connection.close()

    async def _serve(
        self,
        run: Run,
        on_lost: Callable[[], None],
        successor: Callable[[], Awaitable[socket.socket]] | None,
    ) -> None:
        while True:
            await self._connection.serve(run)
            # What is served stays served; SIGTERM still drains.
            on_lost()
            if successor is None:
                return
            sock = await successor()
            self._earlier = [one for one in [*self._earlier, self._connection] if one.tasks]
            self._connection = await Connection.open(sock)
