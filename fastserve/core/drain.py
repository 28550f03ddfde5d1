"""Ending without losing a call: not ready, lame duck, two GOAWAYs, and the calls in flight answered.

Runs on the core's loop, once, whoever asks first: the control process, or SIGTERM when that has gone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastserve._native.front_end import FrontEnd
from fastserve.core.health import Health
from fastserve.core.listener import Listener
from fastserve.core.service import Services

_GOAWAY_S = 0.1  # between the notice and the last word: a round trip's time for calls on their way


class Drain:
    """`done` is set when nothing is left to answer, or the time is up."""

    def __init__(
        self,
        front_end: FrontEnd,
        health: Health,
        services: Services,
        listener: Listener,
        server: dict[str, Any],
    ) -> None:
        self._front_end = front_end
        self._health = health
        self._services = services
        self._listener = listener
        self._server = server
        self._task: asyncio.Task[int] | None = None
        self.done = asyncio.Event()

    @property
    def begun(self) -> bool:
        return self._task is not None

    def begin_default(self) -> None:
        """SIGTERM: drains as configured."""
        self._begin(self._server["lame_duck_s"], self._server["drain_timeout_s"])

    async def run(self, lame_duck_s: float, drain_timeout_s: float) -> int:
        """Drains. Returns the calls that were left without an answer."""
        return await asyncio.shield(self._begin(lame_duck_s, drain_timeout_s))

    def _begin(self, lame_duck_s: float, drain_timeout_s: float) -> asyncio.Task[int]:
        if self._task is None:
            self._task = asyncio.create_task(self._drain(lame_duck_s, drain_timeout_s), name="drain")
        return self._task

    async def _drain(self, lame_duck_s: float, drain_timeout_s: float) -> int:
        try:
            self._health.draining()
            await asyncio.sleep(lame_duck_s)
            self._listener.take_rest()
            self._listener.close()
            self._front_end.shutdown_notice()
            await asyncio.sleep(_GOAWAY_S)
            self._front_end.shutdown()
            self._services.end_streams()
            try:
                async with asyncio.timeout(drain_timeout_s):
                    await self._front_end.all_closed()
            except TimeoutError:
                pass
            left: int = self._front_end.active_calls()
            return left
        finally:
            self.done.set()
