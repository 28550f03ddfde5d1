"""What the admin socket's verbs do: status, reload, load, unload, labels, and the core's own list and stats.

Called by the admin socket with a request's object; an answer is an object, too. Owned by the daemon, on the
event loop. The commands of the shell that use them are in cli_admin.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastserve.control.manager import Manager
from fastserve.control.memory import MemoryBudget
from fastserve.control.reload import Reloader
from fastserve.control.supervisor import CoreSupervisor
from fastserve.errors import CoreError

Request = Mapping[str, Any]
Answer = dict[str, Any]
Verb = Callable[[Request], Awaitable[Answer]]


class AdminVerbs:
    """A method for each verb. CoreError says what is wrong with a request, CoreLost that there is no core."""

    def __init__(
        self, core: CoreSupervisor, manager: Manager, memory: MemoryBudget, reloader: Reloader
    ) -> None:
        self._core = core
        self._manager = manager
        self._memory = memory
        self._reloader = reloader
        self.ready = False

    def table(self) -> dict[str, Verb]:
        return {
            "status": self.status,
            "reload": self.reload,
            "load": self.load,
            "unload": self.unload,
            "labels": self.labels,
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
        }

    async def reload(self, request: Request) -> Answer:
        return {"changed": await self._reloader.from_file()}

    async def load(self, request: Request) -> Answer:
        self._manager.load(_text(request, "model"), _version(request))
        return {}

    async def unload(self, request: Request) -> Answer:
        self._manager.unload(_text(request, "model"), _version(request))
        return {}

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


def _version(request: Request) -> int | None:
    value = request.get("version")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise CoreError("INVALID_ARGUMENT", '"version" must be a whole number, or be left out')
    return value
