"""The core that a daemon begins with: a new one, one that an earlier control process left, or both for a
while.

An orphan that is what the configuration asks for is adopted, versions and all. Any other goes on serving
until a new core on the same sockets has taken its place. Used by the daemon at its start, on the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastserve.config import Model
from fastserve.control.adoption import ControlListener, Orphan, find_orphan, settings_digest
from fastserve.control.core_process import CoreProcess, OnRequest
from fastserve.control.listeners import Listener, Listeners
from fastserve.control.manager import Manager
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.log import Log

_UNAVAILABLE = 14  # gRPC's code


class FirstCore:
    """Made by `find`; then `choose`; then `adopt` when `adopted`, else `replaced` once the new core
    serves."""

    def __init__(self, state: StateDir, orphan: Orphan | None, log: Log) -> None:
        self._state = state
        self._orphan = orphan
        self._log = log
        self._adopting: tuple[Any, ControlListener] | None = None
        self._on_request: OnRequest | None = None
        self.adopted = False
        self.digest = ""
        self.control: ControlListener

    @classmethod
    async def find(cls, state: StateDir, log: Log, env: Mapping[str, str]) -> FirstCore:
        """Looks for an orphan. StartError when there is one that does not answer."""
        orphan = await find_orphan(state, log, env)
        if orphan is not None:
            log.info("found the core of an earlier fastserve", pid=orphan.pid)
        return cls(state, orphan, log)

    @property
    def listeners(self) -> Sequence[Listener]:
        """The sockets that the orphan serves, for the addresses that are still wanted."""
        return self._orphan.listeners if self._orphan else ()

    def choose(
        self,
        configure: Mapping[str, Any],
        env: Mapping[str, str],
        library_version: str,
        listeners: Listeners,
    ) -> ControlListener:
        """Decides whether the orphan is adopted; where this daemon's successor will find the core."""
        self.digest = settings_digest(configure, env, library_version)
        orphan = self._orphan
        self.adopted = orphan is not None and orphan.fits(self.digest, listeners)
        made = [(row["note"] or {}).get("work_dir") for row in orphan.servables] if orphan else []
        self._state.remove_prepared(path for path in made if path)
        if orphan is not None and self.adopted:
            self._adopting = orphan.adopt(self._state, self._answer)
            self.control = self._adopting[1]
        else:
            self.control = ControlListener.bind(self._state, orphan)
        return self.control

    async def adopt(
        self,
        core: CoreSupervisor,
        models: Sequence[Model],
        manager: Manager,
        on_request: OnRequest,
        prepare: Callable[[CoreProcess], Awaitable[None]],
    ) -> None:
        """Takes the orphan over, and starts the manager with what is published there. `prepare` comes before:
        no new model may be open for a moment."""
        assert self._orphan is not None and self._adopting is not None
        self._on_request = on_request
        await self._orphan.settle()
        await prepare(self._adopting[0])
        there = [row for row in self._orphan.servables if row["state"] == "published"]
        # Before the supervisor has it: should it have died meanwhile, its successor is filled with `there`.
        manager.start(models, there)
        core.adopt(self._adopting[0], manager.recover, self._orphan.shared)
        await manager.retire_strangers(there)

    async def replaced(self, drain_timeout_s: float) -> None:
        """A new core serves, or nobody is to serve any more: the orphan answers what it has, and ends. It is
        no lame duck: who comes now gets to the other core."""
        if self._orphan is None:
            return
        self._log.info("the core of an earlier fastserve is replaced", pid=self._orphan.pid)
        if not await self._orphan.drain(0.0, drain_timeout_s):
            self._log.warning("the core of an earlier fastserve did not drain", pid=self._orphan.pid)
        self.control.take_over()

    async def leave(self) -> None:
        """Leaves an orphan that was neither adopted nor replaced as it was: serving."""
        if self._orphan is not None:
            await self._orphan.leave()

    async def _answer(self, method: str, message: bytes) -> tuple[int, str, bytes]:
        if self._on_request is None:
            return _UNAVAILABLE, "the server is starting", b""
        return await self._on_request(method, message)
