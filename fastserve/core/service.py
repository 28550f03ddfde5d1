"""gRPC methods served by coroutines: everything that the engine does not serve.

A method is a path and an async function. Unary: `async def (request: bytes, call) -> bytes`. Streaming:
`async def (call) -> None`, which reads with `async for message in call` and writes with `call.send(message)`.
Raising Status ends the call with that code, and so does a RuntimeFailure of the native code; the caller's
deadline and cancellation cancel the coroutine. All of it runs on the core's loop, so a handler must never
block or compute for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastserve._native.front_end import Rpc
from fastserve._native.runtime import RuntimeFailure
from fastserve.call_names import CODES

OK = 0
CANCELLED = 1
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

_MESSAGES_WAITING_MAX = 256  # of one stream, not read yet; a client that sends more is cut off
_OVERRUN = f"more than {_MESSAGES_WAITING_MAX} messages wait to be read"
_TEXT_MAX_BYTES = 1024  # of an error; TensorFlow Serving cuts longer ones there, too

Logger = Callable[..., None]


class Status(Exception):
    """Ends a call with a gRPC code and message."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Method:
    """One gRPC method. `path` is "/package.Service/Method". `waits`: for somebody else, who may never come; a
    drain ends such calls as it ends streams. `max_bytes`: of a message; the loop reads them in Python, and a
    larger one is RESOURCE_EXHAUSTED before it is looked at."""

    path: str
    handler: Callable[..., Awaitable[Any]]
    streaming: bool = False
    waits: bool = False
    max_bytes: int = 16 << 10


class Call:
    """A call, as its coroutine sees it."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.overrun = False

    @property
    def admin(self) -> bool:
        """Whether it came to the admin address."""
        admin: bool = self._rpc.admin
        return admin

    def admit(self, model: str) -> None:
        """Raises Status when the caller may not use `model`: its token is missing, or is not one of the
        model's."""
        try:
            self._rpc.admit(model)
        except RuntimeFailure as failure:
            code = PERMISSION_DENIED if failure.code == "PERMISSION_DENIED" else UNAUTHENTICATED
            raise Status(code, failure.message) from None

    def send(self, message: bytes) -> None:
        """One message of a streaming reply."""
        self._rpc.send(message)

    def resolve(self, spec: bytes) -> tuple[str, int]:
        """The model and version that a serialized ModelSpec means for this caller, as a Predict's would. Ends
        the call when there is none, or when it may not use that model (RuntimeFailure)."""
        resolved: tuple[str, int] = self._rpc.resolve(spec)
        return resolved

    def received(self, message: bytes | None) -> bool:
        """The front end has a message, or None for their end. False: more than may wait."""
        self._messages.put_nowait(message)
        self.overrun = self.overrun or self._messages.qsize() > _MESSAGES_WAITING_MAX
        return not self.overrun

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            if self.overrun:
                raise Status(RESOURCE_EXHAUSTED, _OVERRUN)
            self._rpc.consumed()
            yield message


class Services:
    """The methods there are, and a task for each call in progress."""

    def __init__(self, loop: asyncio.AbstractEventLoop, methods: Iterable[Method], log: Logger) -> None:
        self._loop = loop
        self._methods = {method.path: method for method in methods}
        self._tasks: set[asyncio.Task[None]] = set()
        self._endless: set[asyncio.Task[None]] = set()
        self._log = log

    def paths(self) -> dict[str, tuple[bool, int]]:
        """Path -> whether it streams, and the largest message, for the front end."""
        return {path: (method.streaming, method.max_bytes) for path, method in self._methods.items()}

    def start(self, rpc: Rpc) -> None:
        """A call has begun: the front end's hook."""
        method = self._methods[rpc.path]
        call = Call(rpc)
        task = self._loop.create_task(self._run(method, call, rpc), name=rpc.path)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        rpc.on_cancel = lambda: self._cancel(task)
        if rpc.streaming or method.waits:
            self._endless.add(task)
            task.add_done_callback(self._endless.discard)
        if rpc.streaming:

            def receive(message: bytes | None) -> None:
                if not call.received(message):
                    self._cancel(task)

            rpc.receiver = receive

    def end_streams(self) -> None:
        """Cancels the streaming calls, which may have no end of their own, and those that wait for others."""
        for task in list(self._endless):
            self._cancel(task)

    def close(self) -> None:
        """Cancels what is in progress."""
        for task in list(self._tasks):
            self._cancel(task)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        """In its turn: a task that is cancelled before its first step never takes one, and its call would
        have no end."""
        self._loop.call_soon(task.cancel)

    async def _run(self, method: Method, call: Call, rpc: Rpc) -> None:
        reply: bytes | None = None
        code, message = OK, ""
        try:
            async with asyncio.timeout(rpc.seconds_left):
                if method.streaming:
                    await method.handler(call)
                else:
                    reply = await method.handler(rpc.message, call)
        except Status as status:
            code, message = status.code, status.message
        except RuntimeFailure as failure:
            code, message = CODES.index(failure.code), failure.message
        except TimeoutError:
            code, message = DEADLINE_EXCEEDED, "Deadline Exceeded"
        except asyncio.CancelledError:
            if rpc.cancelled:
                code = CANCELLED
            elif call.overrun:
                code, message = RESOURCE_EXHAUSTED, _OVERRUN
            else:
                code, message = UNAVAILABLE, "the server is shutting down"
        except Exception as error:  # a handler's defect: this call fails, the server goes on
            code, message = INTERNAL, f"{type(error).__name__}: {error}"
            self._log("error", "a method failed", method=method.path, error=message)
        rpc.finish(code, _cut(message), reply)


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= _TEXT_MAX_BYTES:
        return text
    return data[:_TEXT_MAX_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
