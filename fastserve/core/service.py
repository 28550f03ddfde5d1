"""gRPC methods served by coroutines: everything but Predict.

A method is a path and an async function. Unary: `async def (request: bytes, call) -> bytes`. Streaming:
`async def (call) -> None`, which reads with `async for message in call` and writes with `call.send(message)`.
Raising Status ends the call with that code; the caller's deadline and cancellation cancel the coroutine. All
of it runs on the core's loop, so a handler must never block or compute for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastserve._native.front_end import Rpc
from fastserve._native.runtime import RuntimeFailure

OK = 0
CANCELLED = 1
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

_MESSAGES_WAITING_MAX = 16  # of one stream, not read yet; a client that sends more is cut off

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
    drain ends such calls as it ends streams."""

    path: str
    handler: Callable[..., Awaitable[Any]]
    streaming: bool = False
    waits: bool = False


class Call:
    """A call, as its coroutine sees it."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()

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

    def received(self, message: bytes | None) -> bool:
        """The front end has a message, or None for their end. False: more than may wait."""
        self._messages.put_nowait(message)
        return self._messages.qsize() <= _MESSAGES_WAITING_MAX

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
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

    def paths(self) -> dict[str, bool]:
        """Path -> whether it streams, for the front end."""
        return {path: method.streaming for path, method in self._methods.items()}

    def start(self, rpc: Rpc) -> None:
        """A call has begun: the front end's hook."""
        method = self._methods[rpc.path]
        call = Call(rpc)
        task = self._loop.create_task(self._run(method, call, rpc), name=rpc.path)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        rpc.on_cancel = task.cancel
        if rpc.streaming or method.waits:
            self._endless.add(task)
            task.add_done_callback(self._endless.discard)
        if rpc.streaming:

            def receive(message: bytes | None) -> None:
                if not call.received(message):
                    task.cancel()

            rpc.receiver = receive

    def end_streams(self) -> None:
        """Cancels the streaming calls, which may have no end of their own, and those that wait for others."""
        for task in list(self._endless):
            task.cancel()

    def close(self) -> None:
        """Cancels what is in progress."""
        for task in list(self._tasks):
            task.cancel()

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
        except TimeoutError:
            code, message = DEADLINE_EXCEEDED, "Deadline Exceeded"
        except asyncio.CancelledError:
            code, message = (CANCELLED, "") if rpc.cancelled else (UNAVAILABLE, "the server is shutting down")
        except Exception as error:  # a handler's defect: this call fails, the server goes on
            code, message = INTERNAL, f"{type(error).__name__}: {error}"
            self._log("error", "a method failed", method=method.path, error=message)
        rpc.finish(code, message, reply)
