"""One life of the core: starting its process, the protocol with it, and how it ended.

The protocol is JSON, one object a line, over a socket pair. The control process sends
{"id": 1, "op": "load", ...}, the core answers {"id": 1, "ok": true, ...} or {"id": 1, "ok": false,
"code": "INVALID_ARGUMENT", "error": "..."} in any order, and sends events of its own: "hello" first
of all, "log", and "request": a client's call that is the control process's to answer, by the command
"respond". Used by the supervisor, on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastserve.errors import CoreError, CoreLost
from fastserve.log import Log

CONTROL_FD = "FASTSERVE_CONTROL_FD"
_LINE_MAX_BYTES = 64 << 20
_UNIMPLEMENTED, _INTERNAL = 12, 13
_DRAIN_GRACE_S = 5.0
# Of a process that is not our child: only its parent learns its status.
EXIT_UNKNOWN = -1000
_LEVELS = ("debug", "info", "warning", "error")


class Process(Protocol):
    """What is needed of asyncio.subprocess.Process."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def kill(self) -> None: ...


# Starts the core with this environment added to the usual one, and these descriptors kept open in it.
Spawn = Callable[[Mapping[str, str], Sequence[int]], Awaitable[Process]]


# Answers a client's call: from the method's name and the message to gRPC code, message and reply.
OnRequest = Callable[[str, bytes], Awaitable[tuple[int, str, bytes]]]


async def unimplemented(method: str, message: bytes) -> tuple[int, str, bytes]:
    """For who answers no calls."""
    return _UNIMPLEMENTED, f"{method} is not served", b""


class CoreProcess:
    """A running core. Made by `start`; `call` may be used by any number of tasks at once."""

    def __init__(
        self,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Log,
        on_request: OnRequest = unimplemented,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log
        self.on_request = on_request
        self._requests: set[asyncio.Task[None]] = set()
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(), name="core-replies")

    @classmethod
    async def start(
        cls,
        spawn: Spawn,
        listener_fds: Sequence[int],
        log: Log,
        on_request: OnRequest = unimplemented,
        hello_timeout_s: float = 60.0,
    ) -> CoreProcess:
        """Starts a core and waits for its hello. CoreLost when it ends before, or is silent for too long."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await spawn({CONTROL_FD: str(theirs.fileno())}, [theirs.fileno(), *listener_fds])
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_MAX_BYTES)
        except BaseException:
            ours.close()
            raise
        core = cls(process, reader, writer, log, on_request)
        try:
            async with asyncio.timeout(hello_timeout_s):
                await asyncio.shield(core._hello)
        except TimeoutError:
            await core.kill()
            raise CoreLost(f"the core said nothing for {hello_timeout_s:g} s after its start") from None
        except BaseException:
            await core.kill()
            raise
        return core

    @classmethod
    async def adopt(cls, process: Process, sock: socket.socket, received: bytes, log: Log) -> CoreProcess:
        """A core that another control process has started. It has said hello on `sock`, then `received`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LINE_MAX_BYTES)
        reader.feed_data(received)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        core = cls(process, reader, asyncio.StreamWriter(transport, protocol, reader, loop), log)
        core._hello.set_result(None)
        return core

    @property
    def pid(self) -> int:
        return self._process.pid

    async def call(self, op: str, **params: object) -> dict[str, Any]:
        """The core's answer. CoreError when it refuses, CoreLost when it ends before it answers."""
        if self._reading.done():
            raise CoreLost("the core has ended")
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, "op": op, **params}).encode() + b"\n")
            await self._writer.drain()
            reply = await answer
        except ConnectionError:
            raise CoreLost("the core has ended") from None
        finally:
            del self._calls[number]
        if reply.get("ok") is not True:
            raise CoreError(str(reply.get("code", "UNKNOWN")), str(reply.get("error", "no reason given")))
        return reply

    async def wait(self) -> int:
        """Waits until the process has ended and its last words are read; its status as subprocess has it."""
        status = await self._process.wait()
        await asyncio.wait([self._reading])
        self._writer.close()
        return status

    async def drain(self, lame_duck_s: float, drain_timeout_s: float) -> bool:
        """Lets it finish its calls and exit. False when it did not, and was killed.

        Until it returns, `kill` may end it at once.
        """
        asked = asyncio.create_task(
            self.call("drain", lame_duck_s=lame_duck_s, drain_timeout_s=drain_timeout_s), name="core-drain"
        )
        try:
            async with asyncio.timeout(lame_duck_s + drain_timeout_s + _DRAIN_GRACE_S):
                status = await self.wait()
                # Its last words are read: the answer is among them, or asking fails.
                await asyncio.wait([asked])
        except TimeoutError:
            self._log.error("the core did not end in time and was killed", pid=self.pid)
            await self.kill()
            return False
        finally:
            asked.cancel()
            # Whatever it answered, the exit is what counts.
            answers: list[Any] = await asyncio.gather(asked, return_exceptions=True)
        answered = [answer for answer in answers if isinstance(answer, dict)]
        for answer in answered:
            if answer.get("unanswered"):
                self._log.warning("calls were left without an answer", calls=answer["unanswered"])
        drained = status == 0 or (status == EXIT_UNKNOWN and bool(answered))
        if not drained:
            self._log.error("the core died while it drained", how=describe_exit(status), pid=self.pid)
        return drained

    async def leave(self) -> None:
        """Ends the connection, not the core."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._end_calls()
        self._writer.close()

    async def kill(self) -> int:
        """Ends it at once."""
        if self._process.returncode is None:
            self._process.kill()
        return await self.wait()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(line)
        except (ConnectionError, ValueError) as error:
            # ValueError: a line beyond the limit. Nothing after it can be trusted.
            self._log.error("the core's control socket failed", error=error)
        # An end of file comes before the exit when the core is dying, and without one when it is stuck.
        if self._process.returncode is None:
            try:
                async with asyncio.timeout(5.0):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        self._end_calls()

    def _end_calls(self) -> None:
        lost = CoreLost("the core has ended")
        everyone: list[asyncio.Future[Any]] = [*self._calls.values(), self._hello]
        for waiting in everyone:
            if not waiting.done():
                waiting.set_exception(lost)
        # Nobody may be waiting for the hello any more.
        self._hello.exception()
        for request in self._requests:
            request.cancel()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            event, number = message.get("event"), message.get("id")
        except (ValueError, AttributeError):
            self._log.error("the core sent a line that is not a JSON object", line=line[:200])
            return
        if event == "hello":
            if not self._hello.done():
                self._hello.set_result(None)
        elif event == "request":
            request = asyncio.create_task(self._answer(message), name="core-request")
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)
        elif event == "log":
            level = message.get("level")
            fields = message.get("fields")
            self._log.event(
                level if level in _LEVELS else "info",
                str(message.get("message", "")),
                process="core",
                **{
                    f"{key}_" if key in ("level", "event", "process") else str(key): value
                    for key, value in (fields.items() if isinstance(fields, dict) else ())
                },
            )
        elif number in self._calls and not self._calls[number].done():
            self._calls[number].set_result(message)

    async def _answer(self, event: dict[str, Any]) -> None:
        """A client's call that the core has passed on."""
        method = str(event.get("method"))
        try:
            code, text, reply = await self.on_request(method, b64decode(event["message"], validate=True))
        except Exception as error:  # a defect of the handler's: its caller must hear of it all the same
            self._log.error("a request failed", method=method, error=f"{type(error).__name__}: {error}")
            code, text, reply = _INTERNAL, f"{type(error).__name__}: {error}", b""
        try:
            await self.call(
                "respond",
                request=event.get("request"),
                code=code,
                message=text,
                reply=b64encode(reply).decode(),
            )
        except CoreLost:
            return
        except CoreError as error:
            self._log.error("the core did not take an answer", method=method, error=error)


def describe_exit(status: int) -> str:
    """An exit status in words: "exit code 3", "SIGSEGV"."""
    if status == EXIT_UNKNOWN:
        return "an unknown status: it was adopted"
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
