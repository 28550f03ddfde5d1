"""One life of a gateway process: starting it, what it is told, and what it says.

A socket pair, JSON, one object a line. The gateway's first line is its settings; later ones are {"event":
"forward", "headers": [...]}, {"event": "routes", "routes": [...]} and {"event": "lame_duck"}. It sends
{"event": "ready"} once it serves, and {"event": "log", ...}. Nothing that it does needs this connection: when
the control process dies, it goes on serving. Used by gateway_supervisor, on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastserve.errors import StartError
from fastserve.log import Log

GATEWAY_FD = "FASTSERVE_GATEWAY_FD"
_LINE_MAX_BYTES = 1 << 20
_START_TIMEOUT_S = 60.0
_DRAIN_GRACE_S = 5.0
# Once it has ended, its last lines are read so long: what it has left behind may hold the socket open.
_LAST_WORDS_S = 1.0
_LEVELS = ("debug", "info", "warning", "error")


class Child(Protocol):
    """What is needed of its process."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


# Starts it with this environment added to the usual one, and these descriptors kept open in it.
SpawnGateway = Callable[[Mapping[str, str], Sequence[int]], Awaitable[Child]]


class GatewayProcess:
    """A running gateway process. Made by `start`."""

    def __init__(
        self, process: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="gateway-lines")

    @classmethod
    async def start(
        cls, spawn: SpawnGateway, settings: Mapping[str, Any], fds: Sequence[int], log: Log
    ) -> GatewayProcess:
        """Starts one. `ready` says when it serves. OSError when there can be no process."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await spawn({GATEWAY_FD: str(theirs.fileno())}, [theirs.fileno(), *fds])
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_MAX_BYTES)
        except BaseException:
            ours.close()
            raise
        gateway = cls(process, reader, writer, log)
        gateway._send(settings)
        return gateway

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Waits until it serves. StartError when it ends before, or takes too long."""
        ended = asyncio.create_task(self._process.wait(), name="gateway-end")
        ready = asyncio.create_task(self._ready.wait(), name="gateway-ready")
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await asyncio.wait([ended, ready], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise StartError(f"the gateway said nothing for {_START_TIMEOUT_S:g} s after its start") from None
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)
        if not self._ready.is_set():
            raise StartError("the gateway ended before it served; what it said is in the log")

    def forward(self, headers: Sequence[str]) -> None:
        """The request headers that it passes on to the core, from here on."""
        self._send({"event": "forward", "headers": list(headers)})

    def routes(self, routes: Sequence[Mapping[str, Any]]) -> None:
        """The routes of the web service, from here on."""
        self._send({"event": "routes", "routes": list(routes)})

    def lame_duck(self) -> None:
        """It is to end soon, and lets its clients know."""
        self._send({"event": "lame_duck"})

    async def wait(self) -> int:
        """Waits until it has ended and its last words are read; its status as subprocess has it."""
        status = await self._process.wait()
        await asyncio.wait([self._reading], timeout=_LAST_WORDS_S)
        self._reading.cancel()
        self._writer.close()
        return status

    async def drain(self, timeout_s: float) -> bool:
        """Lets it answer what it has, and end. False when it did not, and was killed."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(timeout_s + _DRAIN_GRACE_S):
                return await self.wait() == 0
        except TimeoutError:
            self._log.error("the gateway did not end in time and was killed", pid=self.pid)
            await self.kill()
            return False

    async def kill(self) -> int:
        """Ends it at once."""
        if self._process.returncode is None:
            self._process.kill()
        return await self.wait()

    def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        while True:
            try:
                line = await self._reader.readline()
            except ValueError as error:
                # Beyond the limit: that line is lost, what follows is not.
                self._log.error("the gateway sent a line that is too long", error=error)
                continue
            except ConnectionError as error:
                self._log.error("the gateway's control socket failed", error=error)
                return
            if not line:
                return
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            event, fields = message.get("event"), message.get("fields")
        except (ValueError, AttributeError):
            self._log.error("the gateway sent a line that is not a JSON object", line=line[:200])
            return
        if event == "ready":
            self._ready.set()
        elif event == "log":
            level = message.get("level")
            self._log.event(
                level if level in _LEVELS else "info",
                str(message.get("message", "")),
                process="gateway",
                **{
                    f"{key}_" if key in ("level", "event", "process") else str(key): value
                    for key, value in (fields.items() if isinstance(fields, dict) else ())
                },
            )
