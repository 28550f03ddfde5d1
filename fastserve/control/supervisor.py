"""The core across its lives: started, configured, restarted when it dies, drained at the end.

A core that dies takes its connections and the calls in flight with it, nothing else: the listening
sockets stay open here, so that clients that connect meanwhile wait in their queues, and the
versions that were served are loaded again without a new trial. Owned by the daemon, on the event
loop; knows the protocol's configure, serve and drain, and leaves the models to `recover` and what else a core
must know first to `prepare`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastserve.control.core_process import CoreProcess, OnRequest, Spawn, describe_exit, unimplemented
from fastserve.control.observer import Observer
from fastserve.control.shared_memory import SharedMemory
from fastserve.errors import CoreError, CoreLost, StartError
from fastserve.log import Log

# Seconds before the n-th restart in a row; the last one repeats.
BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 5.0, 10.0, 30.0)
# A core that lived this long was well: the next death counts as the first.
STABLE_S = 60.0
_CONFIGURE_TIMEOUT_S = 60.0

Recover = Callable[[CoreProcess], Awaitable[None]]


class CoreSupervisor:
    """Keeps one core running from `start` to `stop`."""

    def __init__(
        self,
        spawn: Spawn,
        configure: dict[str, Any],
        listener_fds: Sequence[int],
        log: Log,
        *,
        on_launch: Callable[[int], None] = lambda pid: None,
        on_request: OnRequest = unimplemented,
        prepare: Recover | None = None,
        observer: Observer | None = None,
        shared: SharedMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._spawn = spawn
        self._configure = configure
        self._listener_fds = listener_fds
        self._log = log
        self._on_launch = on_launch
        self._on_request = on_request
        self._prepare = prepare
        self._observer = observer or Observer()
        self._shared = shared
        self._clock = clock
        self._sleep = sleep
        self._core: CoreProcess | None = None
        self._up = asyncio.Event()
        self._serving = False
        self._recover: Recover | None = None
        self._watching: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._core.pid if self._core else None

    @property
    def up(self) -> bool:
        """Whether there is a core that knows everything it has to."""
        return self._up.is_set()

    async def start(self, recover: Recover) -> None:
        """Starts and configures the first core. StartError when that fails: then there is nothing to restart.

        `recover` brings the versions back into a core that replaces a dead one.
        """
        self._recover = recover
        began = self._clock()
        try:
            await self._launch()
        except (CoreLost, CoreError, TimeoutError, OSError) as error:
            how = f" ({describe_exit(await self._core.kill())})" if self._core else ""
            raise StartError(f"the core did not start: {error or 'no answer in time'}{how}") from None
        self._up.set()
        self._watching = asyncio.create_task(self._watch(began), name="core-supervisor")

    def adopt(self, core: CoreProcess, recover: Recover, shared: Mapping[str, int]) -> None:
        """Goes on with a core that serves already, instead of `start`: see adoption. `shared`: the
        descriptors of its memories."""
        if self._shared is not None:
            self._shared.adopt(shared)
        self._recover = recover
        self._core = core
        self._serving = True
        self._on_launch(core.pid)
        self._log.info("core adopted", pid=core.pid)
        self._observer.process("core", f"process {core.pid} adopted")
        self._up.set()
        self._watching = asyncio.create_task(self._watch(self._clock()), name="core-supervisor")

    async def process(self) -> CoreProcess:
        """The core of now, after a restart if one is going on."""
        while True:
            await self._up.wait()
            # It may have died again before this task had its turn.
            if self._core is not None:
                return self._core

    async def call(self, op: str, **params: object) -> dict[str, Any]:
        """Sends a command to the core, after a restart if one is going on. CoreError or CoreLost."""
        core = await self.process()
        try:
            return await core.call(op, **params)
        except CoreLost:
            # Its calls hear of a death first, the watch a moment later: whoever tries again must wait.
            if self._core is core:
                self._up.clear()
            raise

    async def serve(self) -> None:
        """Lets the core accept connections, and every core after it."""
        self._serving = True
        try:
            await self.call("serve")
        except CoreLost:
            # Its successor is told to serve at the end of the restart.
            await self._up.wait()

    async def lame_duck(self) -> None:
        """Lets the core say that it is not ready, though it serves until `drain`."""
        await self._end_watch()
        if self._core is not None:
            with suppress(CoreLost, CoreError):
                await self._core.call("lame_duck")

    async def drain(self, lame_duck_s: float, drain_timeout_s: float) -> bool:
        """Lets the core finish its calls and exit. False when it did not, and was killed.

        Until it returns, `kill` may end it at once.
        """
        await self._end_watch()
        if self._core is None:
            return True
        return await self._core.drain(lame_duck_s, drain_timeout_s)

    async def kill(self) -> None:
        """Ends the core at once."""
        await self._end_watch()
        if self._core is not None:
            await self._core.kill()

    async def _end_watch(self) -> None:
        if self._watching is not None and not self._watching.done():
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _launch(self) -> CoreProcess:
        self._core = None
        shared = self._memories()
        fds = [*self._listener_fds, *shared.values()]
        self._core = await CoreProcess.start(self._spawn, fds, self._log, self._on_request)
        self._on_launch(self._core.pid)
        async with asyncio.timeout(_CONFIGURE_TIMEOUT_S):
            await self._core.call("configure", **self._configure, shared=dict(shared))
            if self._prepare is not None:
                await self._prepare(self._core)
        self._log.info("core started", pid=self._core.pid)
        self._observer.process("core", f"process {self._core.pid} started")
        return self._core

    def _memories(self) -> Mapping[str, int]:
        """For the next core. One that has none serves, and counts nothing."""
        if self._shared is None:
            return {}
        try:
            return self._shared.renew()
        except OSError as error:
            self._log.warning(
                "nothing is counted or traced: memory to share with the core cannot be had; "
                "is there a limit on the size of files (ulimit -f)?",
                error=error.strerror,
            )
            self._shared.adopt({})
            return {}

    async def _watch(self, began: float) -> None:
        deaths = 0
        while True:
            assert self._core is not None
            pid = self._core.pid
            status = await self._core.wait()
            self._up.clear()
            self._core = None
            alive_s = self._clock() - began
            self._log.error("core died", how=describe_exit(status), pid=pid, after_s=alive_s)
            self._observer.process("core", f"process {pid} died: {describe_exit(status)}", alive_s)
            deaths = 1 if alive_s >= STABLE_S else deaths + 1
            began = await self._restart(deaths)

    async def _restart(self, deaths: int) -> float:
        """Brings up a core with everything that was served; returns when it was started."""
        assert self._recover is not None
        while True:
            delay_s = BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]
            if delay_s:
                self._log.info("core restarts", in_s=delay_s)
                await self._sleep(delay_s)
            began = self._clock()
            try:
                core = await self._launch()
                await self._recover(core)
                if self._serving:
                    await core.call("serve")
            except (CoreLost, CoreError, TimeoutError, OSError) as error:
                deaths += 1
                self._log.error("the core could not be restarted", error=error or type(error).__name__)
                if self._core is not None:
                    await self._core.kill()
                continue
            self.restarts += 1
            self._up.set()
            self._log.info("core is back", pid=core.pid, seconds=self._clock() - began)
            self._observer.process("core", f"process {core.pid} is back", self._clock() - began)
            return began
