"""One life of a route's worker process, seen from the gateway: started, given jobs, ended.

Owned by the route's pool, on the gateway's event loop. A job that has been given stays the worker's until it
answers or dies, even when nobody waits for the answer any more: its place is taken until then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastserve.gateway.frames import FrameError, Head, Peer

# As worker.py has them; importing it would bring what only workers need.
WORKER_FD = "FASTSERVE_WORKER_FD"
PARENT_PID = "FASTSERVE_WORKER_PARENT"

# From the process's start to the end of the file's setup().
START_TIMEOUT_S = 120.0
# Once its end has been seen, what it has said last is read so long; and the other way round.
_LAST_WORDS_S = 1.0
# How soon a worker that was told to drop a job must have done so, or be taken for stuck: a plain hook can
# only be stuck, while async ones share a thread that may be short of processor time.
STUCK_AFTER_S = {False: 0.1, True: 2.0}


class LoadFailed(Exception):
    """The route's file cannot be used, or the worker did not start. `files`: those that it is made of."""

    def __init__(self, why: str, details: str = "", files: list[str] | None = None) -> None:
        super().__init__(why)
        self.details = details
        self.files = files or []


class WorkerLost(Exception):
    """The worker died before it answered."""


@dataclass(frozen=True)
class Reply:
    """As worker_answer.Answer."""

    status: int | str
    headers: list[tuple[str, str]]
    body: bytes
    error: str | None = None


@dataclass(eq=False)
class Job:
    """One request on its way through a pool. `answered` ends with a Reply or WorkerLost; cancelled when
    nobody waits any more."""

    head: Head
    body: bytes
    deadline: float
    answered: asyncio.Future[Reply]
    worker: RouteWorker | None = field(default=None, repr=False)
    number: int = 0


class Log(Protocol):
    """As ControlLink.log."""

    def __call__(self, level: str, message: str, **fields: Any) -> None: ...


class RouteWorker:
    """A running worker. Made by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: Log, path: str, on_free: Callable[[RouteWorker], None]
    ) -> None:
        self._process = process
        self._log = log
        self._path = path
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self.peer = Peer(self._frame, self._lost)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._jobs: dict[int, Job] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._killing: asyncio.TimerHandle | None = None
        self._last = 0
        self._concurrent = False
        self._places = 0
        self._retired = False
        self._told = False
        self.stuck = False
        self.files: list[str] = []

    @classmethod
    async def start(
        cls,
        settings: Mapping[str, Any],
        log: Log,
        on_free: Callable[[RouteWorker], None],
        *,
        concurrency: int = 1,
        timeout_s: float = START_TIMEOUT_S,
    ) -> RouteWorker:
        """A worker that has imported the file and run its setup(). `concurrency`: requests that async hooks
        get at once. LoadFailed."""
        try:
            return await cls._start(settings, log, on_free, concurrency, timeout_s)
        except OSError as error:
            why = f"no process for a worker: {error.strerror or error}"
            raise LoadFailed(why, files=[settings["file"]]) from None

    @classmethod
    async def _start(
        cls,
        settings: Mapping[str, Any],
        log: Log,
        on_free: Callable[[RouteWorker], None],
        concurrency: int,
        timeout_s: float,
    ) -> RouteWorker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "fastserve.gateway.worker",
                    env={
                        **os.environ,
                        "PYTHONUNBUFFERED": "1",
                        WORKER_FD: str(theirs.fileno()),
                        PARENT_PID: str(os.getpid()),
                    },
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        worker = cls(process, log, str(settings["path"]), on_free)
        try:
            ours.setblocking(False)
            try:
                await worker._loop.create_connection(lambda: worker.peer, sock=ours)
            except OSError:
                ours.close()
                worker._closed.set()
                worker.kill()
                raise
            worker.peer.send({"op": "configure", **settings})
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(worker._ready)
        except TimeoutError:
            await worker.end()
            raise LoadFailed(
                f"{settings['file']}: not imported and set up within {timeout_s:g} s",
                files=[settings["file"]],
            ) from None
        except LoadFailed as error:
            how = await worker.end()
            if not worker._told:
                raise LoadFailed(f"{error}: {how}", files=[settings["file"]]) from None
            raise
        except BaseException:
            await worker.end()
            raise
        worker._places = concurrency if worker._concurrent else 1
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> int:
        return len(self._jobs)

    @property
    def free(self) -> int:
        """How many more jobs it takes."""
        if self._retired or self.stuck or self._closed.is_set():
            return 0
        return self._places - len(self._jobs)

    def give(self, job: Job) -> None:
        """Hands a job over; there must be room for it. FrameError when it is too large."""
        self._last += 1
        left_s = job.deadline - self._loop.time()
        self.peer.send({"op": "request", "id": self._last, "left_s": left_s, **job.head}, job.body)
        job.number, job.worker = self._last, self
        self._jobs[self._last] = job

    def drop(self, job: Job) -> None:
        """Nobody waits for this job any more. A worker that does not let go of it is killed: at once when the
        job's time is up, otherwise when it is."""
        if job.number not in self._jobs:
            return
        self.peer.send({"op": "cancel", "id": job.number})
        at = max(job.deadline, self._loop.time()) + STUCK_AFTER_S[self._concurrent]
        self._timers[job.number] = self._loop.call_at(at, self._is_stuck)

    def retire(self) -> None:
        """No more jobs: it ends when those that it has are answered."""
        self._retired = True
        self.peer.send({"op": "stop"})

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """Waits until it has ended, in words; jobs that it has not answered are lost then."""
        status = await self._process.wait()
        with suppress(TimeoutError):
            # A process that a hook has left behind may hold the socket open.
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._closed.wait()
        self.peer.close()
        for timer in (*self._timers.values(), *([self._killing] if self._killing else ())):
            timer.cancel()
        how = describe_exit(status)
        for job in self._jobs.values():
            if not job.answered.done():
                job.answered.set_exception(WorkerLost(how))
        self._jobs.clear()
        return how

    async def end(self) -> str:
        """Ends it, if it has not just ended by itself."""
        if self._closed.is_set():
            self._kill_soon()
        else:
            self.kill()
        how = await self.wait()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()
        return how

    def _kill_soon(self) -> None:
        """What has closed its connection is about to end: how it does is worth knowing."""
        if self._killing is None and self._process.returncode is None:
            self._killing = self._loop.call_later(_LAST_WORDS_S, self.kill)

    def _is_stuck(self) -> None:
        self.stuck = True
        self.kill()

    def _frame(self, head: Head, body: bytes) -> None:
        try:
            self._take(head, body)
        except (KeyError, TypeError, ValueError) as error:
            raise FrameError(f"{head['op']}: {error!r}") from None

    def _take(self, head: Head, body: bytes) -> None:
        if "files" in head:
            self.files = [str(file) for file in head["files"]]
        match head["op"]:
            case "answer":
                number = int(head["id"])
                job = self._jobs.pop(number)
                if timer := self._timers.pop(number, None):
                    timer.cancel()
                if not job.answered.done():
                    headers = [(str(name), str(value)) for name, value in head["headers"]]
                    job.answered.set_result(Reply(head["status"], headers, body, head["error"]))
                if self.free > 0:
                    self._on_free(self)
            case "log":
                self._log(str(head["level"]), str(head["event"]), route=self._path, **head["fields"])
            case "ready":
                self._concurrent = bool(head["concurrent"])
                if not self._ready.done():
                    self._ready.set_result(None)
            case "failed":
                self._told = True
                if not self._ready.done():
                    self._ready.set_exception(LoadFailed(str(head["why"]), str(head["details"]), self.files))

    def _lost(self, why: str) -> None:
        self._closed.set()
        if not self._ready.done():
            self._ready.set_exception(LoadFailed(why or "the worker ended before it was ready"))
        if not self._retired:
            self._kill_soon()


def describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
