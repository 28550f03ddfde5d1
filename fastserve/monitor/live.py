"""The status once a second to everybody who listens, as server-sent events.

It is made once for all of them, and only while there is somebody. Who does not read is not waited for: a
listener that is behind by a few messages is hung up on, and may come again. On the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

MAX_LISTENERS = 64
# Messages that one listener may be behind: what the socket does not take waits here.
_BEHIND = 3


class Live:
    """Owns its listeners and, from the first of them to `close`, the task that tells them."""

    def __init__(
        self,
        message: Callable[[], bytes],
        *,
        every_s: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._message = message
        self._every_s = every_s
        self._sleep = sleep
        self._listeners: dict[asyncio.Queue[bytes | None], web.Request] = {}
        self._telling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answers one listener until it goes, is too slow, or the daemon ends."""
        if self._closed or len(self._listeners) >= MAX_LISTENERS:
            return web.json_response(
                {"error": f"{MAX_LISTENERS} listen already" if not self._closed else "the daemon ends"},
                status=503,
                headers={"Retry-After": "5"},
            )
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        self._listeners[queue] = request
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="monitor-live")
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        try:
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n" + event(self._message()))
            while (message := await queue.get()) is not None:
                await response.write(message)
        except ConnectionError:
            pass  # it has gone, or was hung up on
        finally:
            self._listeners.pop(queue, None)
        return response

    async def close(self) -> None:
        """Ends all listeners' answers."""
        self._closed = True
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        for queue, request in list(self._listeners.items()):
            self._put(queue, request, None)

    async def _tell(self) -> None:
        while self._listeners:
            await self._sleep(self._every_s)
            message = event(self._message())
            for queue, request in list(self._listeners.items()):
                self._put(queue, request, message)

    def _put(self, queue: asyncio.Queue[bytes | None], request: web.Request, message: bytes | None) -> None:
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            self._listeners.pop(queue, None)
            if request.transport is not None:
                # What waits to be written fails with this, and its answer ends.
                request.transport.abort()


def event(data: bytes) -> bytes:
    """`data` is JSON of one line."""
    return b"data: " + data + b"\n\n"
