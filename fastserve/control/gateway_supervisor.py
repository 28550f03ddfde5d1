"""The gateway's processes across their lives: started, started again when one dies, drained at the end.

A gateway process takes its connections and the requests in flight with it, nothing else: the listening
sockets stay open here and in the core. Owned by the daemon, on the event loop; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastserve.control.core_process import describe_exit
from fastserve.control.gateway_process import GatewayProcess, SpawnGateway
from fastserve.control.observer import Observer
from fastserve.control.supervisor import BACKOFF_S, STABLE_S
from fastserve.errors import StartError
from fastserve.log import Log


class GatewaySupervisor:
    """Keeps `processes` gateway processes running from `start` to `drain` or `kill`."""

    def __init__(
        self,
        spawn: SpawnGateway,
        settings: Mapping[str, Any],
        fds: Sequence[int],
        processes: int,
        log: Log,
        *,
        remember: Callable[[Sequence[int]], None] = lambda pids: None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`settings`: what each is told, and `fds`: what it keeps open. `remember` gets the process ids
        whenever they change."""
        self._spawn = spawn
        self._settings = dict(settings)
        self._fds = fds
        self._log = log
        self._remember = remember
        self._observer = observer or Observer()
        self._clock = clock
        self._sleep = sleep
        self._running: list[GatewayProcess | None] = [None] * processes
        self._serving = [False] * processes
        self._watching: list[asyncio.Task[None]] = []
        self._were_up = asyncio.Event()
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        return [process.pid for process in self._running if process is not None]

    @property
    def up(self) -> bool:
        """Whether all of them serve."""
        return all(self._serving)

    async def all_up(self) -> None:
        """Waits until all of them have served at one time."""
        await self._were_up.wait()

    async def start(self, *, must: bool = True) -> None:
        """Starts them all and waits until they serve. `must`: StartError when one does not; otherwise it is
        tried again as one that has died."""
        began = self._clock()
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(self._running)):
                    group.create_task(self._launch(place), name="gateway-start")
        except BaseExceptionGroup as group_error:
            failure = next((e for e in group_error.exceptions if isinstance(e, (StartError, OSError))), None)
            if failure is None:
                raise
            if must:
                await self.kill()
                raise StartError(f"the gateway did not start: {failure}") from None
            self._log.error("the gateway did not start", error=failure)
        for place in range(len(self._running)):
            self._watching.append(
                asyncio.create_task(self._watch(place, began), name=f"gateway-supervisor-{place}")
            )

    def forward(self, headers: Sequence[str]) -> None:
        """The request headers that are passed on to the core, from here on."""
        if list(headers) == self._settings["forward"]:
            return
        self._settings["forward"] = list(headers)
        for process in self._running:
            if process is not None:
                process.forward(headers)

    def routes(self, routes: Sequence[Mapping[str, Any]]) -> None:
        """The routes of the web service, from here on."""
        if list(routes) == self._settings["routes"]:
            return
        self._settings["routes"] = list(routes)
        for process in self._running:
            if process is not None:
                process.routes(routes)

    def lame_duck(self) -> None:
        """Lets them tell their clients to go, though they serve until `drain`; those to come, too."""
        self._settings["leaving"] = True
        for process in self._running:
            if process is not None:
                process.lame_duck()

    async def drain(self, timeout_s: float) -> bool:
        """Lets them answer what they have, and end. False when one did not, and was killed.

        Until it returns, `kill` may end them at once."""
        await self._end_watches()
        running = [process for process in self._running if process is not None]
        return all(await asyncio.gather(*(process.drain(timeout_s) for process in running)))

    async def kill(self) -> None:
        """Ends them at once."""
        await self._end_watches()
        for process in self._running:
            if process is not None:
                await process.kill()

    async def _end_watches(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching = []

    async def _launch(self, place: int) -> GatewayProcess:
        process = await GatewayProcess.start(self._spawn, self._settings, self._fds, self._log)
        self._running[place] = process
        self._remember(self.pids)
        try:
            await process.ready()
        except BaseException:
            # StartError, or a stop: a process that does not serve is of no use.
            await process.kill()
            self._running[place] = None
            raise
        self._log.info("gateway started", pid=process.pid)
        self._serving[place] = True
        if all(self._serving):
            self._were_up.set()
        return process

    async def _watch(self, place: int, began: float) -> None:
        deaths = 0
        while True:
            process = self._running[place]
            if process is not None:
                status = await process.wait()
                self._running[place] = None
                self._serving[place] = False
                alive_s = self._clock() - began
                how = describe_exit(status)
                self._log.error("gateway died", how=how, pid=process.pid, after_s=alive_s)
                self._observer.process("gateway", f"process {process.pid} died: {how}", alive_s)
                if alive_s >= STABLE_S:
                    deaths = 0
            deaths += 1
            delay_s = BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]
            if delay_s:
                self._log.info("gateway restarts", in_s=delay_s)
                await self._sleep(delay_s)
            began = self._clock()
            try:
                await self._launch(place)
            except (StartError, OSError) as error:
                self._log.error("the gateway could not be restarted", error=error)
                continue
            self.restarts += 1
