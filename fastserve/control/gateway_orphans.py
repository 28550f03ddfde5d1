"""The gateway of a control process that has died: it goes on serving, and ends when the next one's does.

Its processes are not ours to command: they are known by what the state directory remembers, held by
descriptors, and signalled. Used by the daemon at its start, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from fastserve.control.foreign_process import ForeignProcess
from fastserve.control.state import StateDir
from fastserve.log import Log

_GRACE_S = 5.0


class GatewayOrphans:
    """Made by `find`; then `end`, or `leave` them as they are."""

    def __init__(self, processes: list[ForeignProcess], state: StateDir, log: Log) -> None:
        self._processes = processes
        self._state = state
        self._log = log
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    def find(cls, state: StateDir, log: Log) -> GatewayOrphans:
        """Those that still run. They stay in `state` until they have ended, beside those that are started
        meanwhile: this control process may die before."""
        found = []
        for pid in state.orphaned_gateways():
            with suppress(OSError):
                process = ForeignProcess(pid)
                # Held by now; until then its id could have come to mean another.
                if pid in state.orphaned_gateways():
                    found.append(process)
                else:
                    process.leave()
        if found:
            pids = [process.pid for process in found]
            log.info("found the gateway of an earlier fastserve", pids=pids)
            state.remember_old_gateways(pids)
        return cls(found, state, log)

    def begin_end(self, drain_timeout_s: float, others: Coroutine[Any, Any, None] | None) -> None:
        """As `end`, once `others` serve, without waiting for it."""

        async def end() -> None:
            if others is not None:
                await others
            await self.end(drain_timeout_s)

        self._ending = asyncio.create_task(end(), name="end-gateway")

    async def end(self, drain_timeout_s: float) -> None:
        """Lets them answer what they have, and end; kills what does not."""
        if not self._processes:
            return
        await asyncio.gather(*(self._end(process, drain_timeout_s) for process in self._processes))
        self._processes = []
        self._state.remember_old_gateways([])

    def leave(self) -> None:
        """Looks at them no more."""
        if self._ending is not None:
            self._ending.cancel()
        for process in self._processes:
            process.leave()

    async def _end(self, process: ForeignProcess, drain_timeout_s: float) -> None:
        process.terminate()
        try:
            async with asyncio.timeout(drain_timeout_s + _GRACE_S):
                await process.wait()
        except TimeoutError:
            self._log.warning("the gateway of an earlier fastserve did not drain", pid=process.pid)
            process.kill()
            await process.wait()
