"""The workers of one route: who gets which request, who is started again, and how a new file takes over.

Owned by the gateway, on its event loop. Requests wait in one queue in front of all workers, so a reload that
changes the workers loses none. Knows nothing of HTTP but status codes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from fastserve.gateway.frames import FrameError, Head
from fastserve.gateway.routes_worker import Job, LoadFailed, Log, Reply, RouteWorker, WorkerLost

# Seconds before the n-th start in a row of a worker that dies; the last one repeats.
BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 5.0, 10.0, 30.0)
# A worker that lived this long was well: its next death counts as the first.
STABLE_S = 60.0
# How often the files of a route with reload are looked at.
POLL_S = 0.5
# Workers that were replaced may finish what they have for the route's timeout and this.
_RETIRE_GRACE_S = 5.0

Start = Callable[[Callable[[RouteWorker], None]], Awaitable[RouteWorker]]
_NEVER_SEEN = (0, 0, 0)
Marks = dict[str, tuple[int, int, int] | None]


class Refused(Exception):
    """No answer of a worker's: what the client is told instead."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Pool:
    """All workers of one route, from `open` to `close`."""

    def __init__(
        self,
        path: str,
        file: str,
        start: Start,
        log: Log,
        *,
        workers: int,
        timeout_s: float,
        max_waiting: int,
        reload: bool,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`start` gives a worker that is ready, and gets whom to tell when it has room. LoadFailed."""
        self._path = path
        self._file = file
        self._start = start
        self._log = log
        self._count = workers
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._reload = reload
        self._sleep = sleep
        self._waiting: deque[Job] = deque()
        self._crew: Crew | None = None
        self._broken = ""
        self._closing = False
        # There are workers, or it has turned out that there can be none.
        self.settled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def workers(self) -> list[RouteWorker]:
        """Those that get requests now."""
        return list(self._crew.workers) if self._crew else []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open(self) -> None:
        self._running = asyncio.create_task(self._run(), name=f"route {self._path}")

    async def close(self, timeout_s: float) -> None:
        """Lets the workers finish for `timeout_s` at most, then ends them. Refuses what comes from now on."""
        self._closing = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._crew is not None:
            # Where there are workers, those that wait for one are answered, too.
            end = asyncio.get_running_loop().time() + timeout_s
            while self._crew.workers and (there := [job for job in self._waiting if not job.answered.done()]):
                left_s = end - asyncio.get_running_loop().time()
                if left_s <= 0:
                    break
                await asyncio.wait([there[0].answered], timeout=left_s)
            self._retire(self._crew, timeout_s)
            self._crew = None
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=timeout_s)
            for task in late:
                task.cancel()  # which kills
            await asyncio.gather(*late, return_exceptions=True)
        for job in self._waiting:
            if not job.answered.done():
                job.answered.set_exception(self._being_closed())

    async def ask(self, head: Head, body: bytes) -> Reply:
        """A worker's answer to a request. Refused. Cancelled when the client has gone."""
        loop = asyncio.get_running_loop()
        job = Job(head, body, loop.time() + self._timeout_s, loop.create_future())
        try:
            self._place(job)
            async with asyncio.timeout_at(job.deadline):
                return await job.answered
        except TimeoutError:
            raise self._too_late(job) from None
        except WorkerLost as error:
            raise Refused(502, f"the worker of {self._path} died before it answered ({error})") from None
        except FrameError as error:
            raise Refused(413, str(error)) from None
        finally:
            # Whoever gives up: cancelled by the client, or late.
            job.answered.cancel()
            if job.worker is not None:
                job.worker.drop(job)
            else:
                self._forget(job)

    def _place(self, job: Job) -> None:
        """Gives the job to the worker with least to do, or has it wait."""
        if self._closing:
            raise self._being_closed()
        if self._broken:
            raise Refused(503, f"{self._path} cannot be served: its file cannot be loaded; see the log")
        free = [worker for worker in self.workers if worker.free > 0]
        if free and not self._waiting:
            min(free, key=lambda worker: worker.busy).give(job)
        elif len(self._waiting) < self._max_waiting:
            self._waiting.append(job)
        else:
            raise Refused(503, f"{self._path} is overloaded: {self._max_waiting} requests are waiting")

    def _forget(self, job: Job) -> None:
        try:
            self._waiting.remove(job)
        except ValueError:
            return  # refused before it waited

    def _being_closed(self) -> Refused:
        return Refused(503, f"{self._path} is being closed")

    def _too_late(self, job: Job) -> Refused:
        if job.worker is None and not self.workers:
            return Refused(503, f"no worker of {self._path} is running; see the log")
        where = "waited for a worker" if job.worker is None else "was not answered"
        return Refused(504, f"{self._path}: the request {where} within {self._timeout_s:g} s")

    def _has_room(self, worker: RouteWorker) -> None:
        """Gives a worker what waits, until it is full."""
        while self._waiting and worker.free > 0 and self._crew is not None and worker in self._crew.workers:
            job = self._waiting.popleft()
            if not job.answered.done():
                try:
                    worker.give(job)
                except FrameError as error:
                    job.answered.set_exception(error)

    # ---- starts and reloads ---------------------------------------------------------------------

    async def _run(self) -> None:
        """Brings up a crew, and with `reload` another whenever the files change. Without any, tries again:
        what a file lacks may be elsewhere."""
        failures = 0
        while True:
            marks, began_ns = await self._marks(self._files()), time.time_ns()
            fresh = Crew(self._start, self._has_room, self._log, self._path, self._sleep)
            try:
                await fresh.begin(self._count)
            except LoadFailed as error:
                failures += 1
                marks |= await self._marks(file for file in error.files if file not in marks)
                self._say_failed(error, failures)
            else:
                failures = 0
                self._take_over(fresh)
            self.settled.set()
            if self._crew is None:
                pause = self._sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                if not self._reload:
                    await pause
                elif await first_of(self._changed(marks, began_ns), pause):
                    failures = 0
            elif self._reload:
                await self._changed(marks, began_ns)
                failures = 0
            else:
                return

    def _take_over(self, fresh: Crew) -> None:
        old, self._crew = self._crew, fresh
        self._broken = ""
        if old is not None:
            self._log("info", "route reloaded", route=self._path, file=self._file)
            self._retire(old, self._timeout_s + _RETIRE_GRACE_S)
        for worker in list(fresh.workers):
            self._has_room(worker)

    def _say_failed(self, error: LoadFailed, failures: int) -> None:
        what = "route not reloaded, its old file stays" if self._crew else "route not loaded"
        known = self._broken
        if self._crew is None:
            self._broken = str(error)
            while self._waiting:
                job = self._waiting.popleft()
                if not job.answered.done():
                    job.answered.set_exception(
                        Refused(503, f"{self._path} cannot be served: its file cannot be loaded; see the log")
                    )
        if failures == 1 or self._broken != known:
            fields = {"traceback": error.details} if error.details else {}
            self._log("error", what, route=self._path, why=str(error), **fields)

    def _retire(self, crew: Crew, timeout_s: float) -> None:
        task = asyncio.create_task(crew.retire(timeout_s), name=f"route {self._path}, old workers")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _files(self) -> list[str]:
        return sorted({self._file, *(file for worker in self.workers for file in worker.files)})

    async def _marks(self, files: Iterable[str]) -> Marks:
        """What changes when a file does; None for one that is not there. Nothing without reload."""
        return await asyncio.to_thread(lambda: {file: _mark(file) for file in files}) if self._reload else {}

    async def _changed(self, marks: Marks, began_ns: int) -> None:
        """Returns when a file is another one than in `marks`, and has stayed so from one look to the next.
        `began_ns`: when the workers of now were started, which may have imported more files since."""
        last: Marks | None = None
        while True:
            await self._sleep(POLL_S)
            now = await self._marks({*self._files(), *marks})
            for file in now.keys() - marks.keys():
                mark = now[file]
                marks[file] = mark if mark is None or mark[0] < began_ns else _NEVER_SEEN
            if now != marks and now == last:
                return
            last = now


class Crew:
    """The workers that have one state of a route's files, each started again when it dies."""

    def __init__(
        self,
        start: Start,
        on_free: Callable[[RouteWorker], None],
        log: Log,
        path: str,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._start = start
        self._on_free = on_free
        self._log = log
        self._path = path
        self._sleep = sleep
        self._keeping: list[asyncio.Task[None]] = []
        self.workers: set[RouteWorker] = set()

    async def begin(self, count: int) -> None:
        """Starts all of them. LoadFailed when one does not come up; then there is none."""
        starting = [
            asyncio.create_task(self._launch(), name=f"route {self._path}, start") for _ in range(count)
        ]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            started: list[Any] = await asyncio.gather(*starting, return_exceptions=True)
            await asyncio.gather(
                *(worker.end() for worker in started if not isinstance(worker, BaseException))
            )
            raise
        self.workers = {task.result() for task in starting}
        self._keeping = [
            asyncio.create_task(self._keep(worker), name=f"route {self._path}, worker")
            for worker in self.workers
        ]

    async def retire(self, timeout_s: float) -> None:
        """Lets every worker answer what it has, for so long, and end; cancelled: ends them at once."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        workers = list(self.workers)
        for worker in workers:
            worker.retire()
        ends = [asyncio.create_task(worker.wait(), name="worker-end") for worker in workers]
        try:
            if ends:
                await asyncio.wait(ends, timeout=timeout_s)
        finally:
            for worker in workers:
                worker.kill()
            await asyncio.gather(*ends)

    async def _launch(self) -> RouteWorker:
        return await self._start(self._on_free)

    async def _keep(self, worker: RouteWorker) -> None:
        """Replaces a worker that ends, again and again."""
        loop = asyncio.get_running_loop()
        deaths = 0
        began = loop.time()
        while True:
            how = await worker.wait()
            self.workers.discard(worker)
            lived_s = loop.time() - began
            # One that we killed has worked until then; its successor need not wait.
            deaths = 1 if worker.stuck or lived_s >= STABLE_S else deaths + 1
            why = "stuck in a hook, killed" if worker.stuck else how
            self._log("error", "route worker ended", route=self._path, how=why, after_s=lived_s)
            while True:
                await self._sleep(BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1])
                began = loop.time()
                try:
                    worker = await self._launch()
                    break
                except LoadFailed as error:
                    deaths += 1
                    self._log("error", "route worker not started", route=self._path, why=str(error))
            self.workers.add(worker)
            self._on_free(worker)


async def first_of(wanted: Coroutine[Any, Any, None], other: Awaitable[None]) -> bool:
    """Waits for either, and cancels what is left. Whether `wanted` came to its end."""
    tasks = [asyncio.ensure_future(wanted), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if tasks[0].cancelled():
        return False
    tasks[0].result()
    return True


def _mark(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
