"""Services: every call has an end, whenever it is cancelled and however it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastserve._native.runtime import RuntimeFailure

from fastserve.core.service import Call, Method, Services, Status


class FakeRpc:
    """A call of the front end's, and how it ended."""

    def __init__(self, path: str, *, streaming: bool = False) -> None:
        self.path = path
        self.streaming = streaming
        self.message = b"request"
        self.seconds_left: float | None = None
        self.cancelled = False
        self.receiver: Callable[[bytes | None], None] = lambda message: None
        self.on_cancel: Callable[[], None] = lambda: None
        self.sent: list[bytes] = []
        self.ended: asyncio.Future[tuple[int, str, bytes | None]] = asyncio.get_running_loop().create_future()

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def consumed(self) -> None:
        pass

    def finish(self, code: int, text: str, reply: bytes | None) -> None:
        self.ended.set_result((code, text, reply))


def started(handler: Callable[..., Awaitable[Any]], *, streaming: bool = False) -> tuple[Services, FakeRpc]:
    method = Method("/t.T/M", handler, streaming=streaming)
    services = Services(asyncio.get_running_loop(), [method], lambda *args, **fields: None)
    rpc = FakeRpc(method.path, streaming=streaming)
    services.start(rpc)
    return services, rpc


async def ended(rpc: FakeRpc) -> tuple[int, str, bytes | None]:
    async with asyncio.timeout(10):
        return await rpc.ended


async def hold(request: bytes, call: Call) -> bytes:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def echo(call: Call) -> None:
    async for message in call:
        call.send(message)


async def test_a_call_that_is_cancelled_before_its_first_step_ends() -> None:
    services, rpc = started(hold)
    rpc.cancelled = True
    rpc.on_cancel()
    assert await ended(rpc) == (1, "", None)
    services, rpc = started(hold)
    services.close()
    assert await ended(rpc) == (14, "the server is shutting down", None)


@pytest.mark.parametrize("waits", [False, True])
async def test_more_messages_than_may_wait_end_a_stream(waits: bool) -> None:
    """Whether its handler reads them or waits for something else."""

    async def other(call: Call) -> None:
        await asyncio.get_running_loop().create_future()

    _, rpc = started(other if waits else echo, streaming=True)
    for _ in range(300):
        rpc.receiver(b"m")
    assert await ended(rpc) == (8, "more than 256 messages wait to be read", None)
    assert len(rpc.sent) == 0


async def test_as_many_as_may_wait_are_read() -> None:
    _, rpc = started(echo, streaming=True)
    for _ in range(255):
        rpc.receiver(b"m")
    rpc.receiver(None)
    assert (await ended(rpc))[0] == 0
    assert len(rpc.sent) == 255


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Status(5, "none"), 5, "none"),
        (RuntimeFailure("FAILED_PRECONDITION", "not now"), 9, "not now"),
        (ValueError("ours"), 13, "ValueError: ours"),
        (Status(3, "x" * 1025), 3, "x" * 1024 + "...TRUNCATED"),
        (Status(3, "x" * 1024), 3, "x" * 1024),
        (Status(3, "x" * 1023 + "é"), 3, "x" * 1023 + "...TRUNCATED"),
    ],
)
async def test_errors_have_their_codes_and_a_length(error: Exception, code: int, text: str) -> None:
    async def fail(request: bytes, call: Call) -> bytes:
        raise error

    _, rpc = started(fail)
    assert await ended(rpc) == (code, text, None)
