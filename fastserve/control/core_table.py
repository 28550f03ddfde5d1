"""What the core is told of models beside their versions: labels, request logs, the states behind
GetModelStatus.

The core answers GetModelStatus from the table that it was told last, also when this process has gone. Owned
by the manager, on the event loop; one task tells what is new, and a new core is told everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastserve.control.core_process import CoreProcess
from fastserve.control.supervisor import CoreSupervisor
from fastserve.errors import CoreError, CoreLost
from fastserve.log import Log

States = Mapping[str, list[dict[str, Any]]]
Labels = Mapping[str, Mapping[str, int]]
Logs = Mapping[str, dict[str, Any] | None]


class CoreTable:
    """Tells the core what `states`, `labels` and `logs` give, after every `changed`."""

    def __init__(
        self,
        core: CoreSupervisor,
        states: Callable[[], States],
        labels: Callable[[], Labels],
        logs: Callable[[], Logs],
        log: Log,
    ) -> None:
        self._core = core
        self._states = states
        self._labels = labels
        self._logs = logs
        self._log = log
        self._dirty = asyncio.Event()
        self._told_core: CoreProcess | None = None
        self._told_states: States | None = None
        self._told_labels: dict[str, Mapping[str, int]] = {}
        self._told_logs: dict[str, dict[str, Any] | None] = {}
        # Whether it may log what nobody here has told it to.
        self.adopted = False
        # One telling at a time, or an older one might come last.
        self._turn = asyncio.Lock()

    def changed(self) -> None:
        self._dirty.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self.tell()
            except CoreLost:
                continue  # its successor is told by fill
            except CoreError as error:
                self._log.error("the core refuses its table", error=error)

    async def tell(self) -> None:
        """Tells what is new. CoreError, CoreLost."""
        core = await self._core.process()
        async with self._turn:
            if self._told_core not in (None, core):
                return  # another has taken its place, and was told
            self._told_core = core
            await self._tell(core)

    async def fill(self, core: CoreProcess) -> None:
        """Tells a core everything, before it serves. CoreError, CoreLost."""
        async with self._turn:
            self._told_core, self._told_states, self._told_labels = core, None, {}
            self._told_logs, self.adopted = {}, False
            await self._tell(core)

    async def _tell(self, core: CoreProcess) -> None:
        labels = self._labels()
        for model in {**self._told_labels, **labels}:
            wanted = dict(labels.get(model, {}))
            if wanted != self._told_labels.get(model, {}):
                await core.call("labels", model=model, labels=wanted)
                self._told_labels[model] = wanted
        logs = self._logs()
        for model in {**self._told_logs, **logs}:
            settings = logs.get(model)
            unsure = self.adopted and model not in self._told_logs
            if unsure or settings != self._told_logs.get(model):
                await core.call("logging", model=model, settings=settings)
                self._told_logs[model] = settings
        states = self._states()
        if states != self._told_states:
            await core.call("status", models=states)
            self._told_states = states
