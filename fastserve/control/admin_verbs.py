"""What the admin socket's verbs do: status, reload, load, unload, labels, recordings, traces, and the core's
own list and stats.

Called by the admin socket with a request's object; an answer is an object, too. Owned by the daemon, on the
event loop. The commands of the shell that use them are in cli_admin.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastserve.control.manager import Manager
from fastserve.control.memory import MemoryBudget
from fastserve.control.recorder import Recorder
from fastserve.control.reload import Reloader
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.traces import Traces
from fastserve.errors import CoreError, CoreLost

# A core that is being restarted has no figures, and status does not wait for it.
_FIGURES_TIMEOUT_S = 1.0

Request = Mapping[str, Any]
Answer = dict[str, Any]
Verb = Callable[[Request], Awaitable[Answer]]


class AdminVerbs:
    """A method for each verb. CoreError says what is wrong with a request, CoreLost that there is no core."""

    def __init__(
        self,
        core: CoreSupervisor,
        manager: Manager,
        memory: MemoryBudget,
        reloader: Reloader,
        traces: Traces,
    ) -> None:
        self._core = core
        self._manager = manager
        self._memory = memory
        self._reloader = reloader
        self._traces = traces
        self._recorder = Recorder(core, manager, reloader.config.server.state_dir)
        self.ready = False

    def table(self) -> dict[str, Verb]:
        return {
            "status": self.status,
            "reload": self.reload,
            "load": self.load,
            "unload": self.unload,
            "labels": self.labels,
            "record": self.record,
            "record_progress": lambda request: self._recorder.progress(_text(request, "model")),
            "record_end": lambda request: self._recorder.end(_text(request, "model")),
            "trace": lambda request: self._traces.begin(_number(request, "seconds", 5.0)),
            "trace_progress": self.trace_progress,
            "trace_end": lambda request: self._traces.end(),
            "list": lambda request: self._core.call("list"),
            "stats": lambda request: self._core.call("stats"),
        }

    async def status(self, request: Request) -> Answer:
        """Everything that there is to know of models and versions, and something of the core."""
        return {
            "pid": os.getpid(),
            "ready": self.ready,
            "core": {
                "pid": self._core.pid,
                "restarts": self._core.restarts,
                "rss_bytes": self._memory.core_bytes(),
                "memory_limit_bytes": self._memory.limit_bytes,
            },
            "models": self._manager.status(),
            "logs": await self.logs(),
            "tracing": self._traces.stats(),
        }

    async def logs(self) -> list[Answer]:
        """The figures of request logs, where there are any."""
        if not self._manager.logging:
            return []
        with suppress(CoreError, CoreLost, TimeoutError):
            async with asyncio.timeout(_FIGURES_TIMEOUT_S):
                answer = await self._core.call("log_stats")
            return [row for row in answer["logs"] if row["path"]]
        return []

    async def reload(self, request: Request) -> Answer:
        return {"changed": await self._reloader.from_file()}

    async def load(self, request: Request) -> Answer:
        self._manager.load(_text(request, "model"), _version(request))
        return {}

    async def unload(self, request: Request) -> Answer:
        self._manager.unload(_text(request, "model"), _version(request))
        return {}

    async def record(self, request: Request) -> Answer:
        return await self._recorder.begin(
            _text(request, "model"),
            int(_number(request, "records", 100)),
            _number(request, "sampling_rate", 1.0),
            _number(request, "timeout_s", 60.0),
        )

    async def trace_progress(self, request: Request) -> Answer:
        return self._traces.progress()

    async def labels(self, request: Request) -> Answer:
        new, removed = request.get("set", {}), request.get("remove", [])
        if not isinstance(new, dict) or not all(isinstance(v, int) and v >= 0 for v in new.values()):
            raise CoreError("INVALID_ARGUMENT", '"set" must be an object of labels and versions')
        if not isinstance(removed, list):
            raise CoreError("INVALID_ARGUMENT", '"remove" must be a list of labels')
        return {"labels": await self._manager.set_labels(_text(request, "model"), new, removed)}


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise CoreError("INVALID_ARGUMENT", f'"{key}" must be a string')
    return value


def _number(request: Request, key: str, default: float) -> float:
    value = request.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CoreError("INVALID_ARGUMENT", f'"{key}" must be a number')
    return value


def _version(request: Request) -> int | None:
    value = request.get("version")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise CoreError("INVALID_ARGUMENT", '"version" must be a whole number, or be left out')
    return value
