"""A route's pool with workers that a test plays: who gets what, and how long dying ones wait."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from fastserve.gateway.routes_pool import BACKOFF_S, Pool, Refused
from fastserve.gateway.routes_worker import Job, LoadFailed, Reply, RouteWorker, WorkerLost

HEAD = {"method": "POST"}


class Worker:
    """Answers when told, dies when told."""

    def __init__(self, on_free: Callable[[Any], None], places: int) -> None:
        self.on_free = on_free
        self.places = places
        self.jobs: list[Job] = []
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.stuck = False
        self.files: list[str] = []

    @property
    def busy(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        return 0 if self.died.done() else self.places - len(self.jobs)

    def give(self, job: Job) -> None:
        job.worker = self  # type: ignore[assignment]
        self.jobs.append(job)

    def answer(self) -> None:
        job = self.jobs.pop(0)
        job.answered.set_result(Reply(200, [], b""))
        self.on_free(self)

    def die(self) -> None:
        self.died.set_result("SIGSEGV")
        for job in self.jobs:
            job.answered.set_exception(WorkerLost("SIGSEGV"))

    def drop(self, job: Job) -> None: ...

    def retire(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.died.done():
            self.died.set_result("retired")

    async def wait(self) -> str:
        return await asyncio.shield(self.died)

    async def end(self) -> str:
        self.kill()
        return await self.wait()


class Rig:
    def __init__(
        self, *, workers: int = 1, places: int = 1, max_waiting: int = 10, reload: bool = False
    ) -> None:
        self.made: list[Worker] = []
        self.slept: list[float] = []
        self.fail_next: list[str] = []
        self.log: list[str] = []
        self._places = places
        self.pool = Pool(
            "/r", "/nowhere/r.py", self._start, lambda level, message, **fields: self.log.append(message),
            workers=workers, timeout_s=5.0, max_waiting=max_waiting, reload=reload, sleep=self._sleep,
        )  # fmt: skip

    async def _start(self, on_free: Callable[[Any], None]) -> Any:
        await asyncio.sleep(0)
        if self.fail_next:
            raise LoadFailed(self.fail_next.pop(0))
        self.made.append(Worker(on_free, self._places))
        return self.made[-1]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def ask(self) -> asyncio.Task[Reply]:
        return asyncio.create_task(self.pool.ask(HEAD, b""))

    async def turn(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)


async def test_requests_go_to_the_worker_with_least_to_do() -> None:
    rig = Rig(workers=2, places=3)
    rig.pool.open()
    await rig.turn()
    asked = [rig.ask() for _ in range(5)]
    await rig.turn()
    assert sorted(worker.busy for worker in rig.made) == [2, 3]
    for worker in rig.made:
        while worker.jobs:
            worker.answer()
    assert all(reply.status == 200 for reply in await asyncio.gather(*asked))
    await rig.pool.close(1)


async def test_requests_that_come_before_the_workers_wait_in_their_order() -> None:
    rig = Rig()
    asked = [rig.ask() for _ in range(3)]
    await rig.turn()
    assert rig.pool.waiting == 3
    rig.pool.open()
    await rig.turn()
    for place in range(3):
        rig.made[0].answer()
        await rig.turn()
        assert [task.done() for task in asked] == [i <= place for i in range(3)]
    await rig.pool.close(1)


async def test_a_worker_that_dies_again_and_again_waits_longer_each_time() -> None:
    rig = Rig()
    rig.pool.open()
    await rig.turn()
    for _ in range(len(BACKOFF_S) + 2):
        rig.made[-1].die()
        await rig.turn()
    assert tuple(rig.slept) == (*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1])
    rig.fail_next = ["gone", "gone"]
    rig.made[-1].stuck = True  # killed by us: its successor starts at once, and only then waits
    rig.made[-1].die()
    await rig.turn()
    assert tuple(rig.slept[-3:]) == BACKOFF_S[:3]
    assert rig.log.count("route worker not started") == 2
    await rig.pool.close(1)


async def test_a_dead_workers_requests_are_lost_and_those_that_wait_are_not() -> None:
    rig = Rig()
    rig.pool.open()
    await rig.turn()
    first, second = rig.ask(), rig.ask()
    await rig.turn()
    rig.made[0].die()
    await rig.turn()
    with pytest.raises(Refused, match="died before it answered") as lost:
        await first
    assert lost.value.status == 502
    rig.made[1].answer()
    assert (await second).status == 200
    await rig.pool.close(1)


async def test_one_worker_that_does_not_start_ends_the_others() -> None:
    rig = Rig(workers=3)
    rig.fail_next = ["no memory"]
    asked = rig.ask()
    rig.pool.open()
    await rig.turn()
    with pytest.raises(Refused) as refused:
        await asked
    assert refused.value.status == 503
    assert rig.log == ["route not loaded"]
    assert len(rig.made) == 5 and [worker.died.done() for worker in rig.made] == [True] * 2 + [False] * 3
    await rig.pool.close(1)
    assert all(worker.died.done() for worker in rig.made)


async def test_who_has_gone_leaves_the_queue() -> None:
    rig = Rig(max_waiting=1)
    rig.pool.open()
    await rig.turn()
    first, second = rig.ask(), rig.ask()
    await rig.turn()
    with pytest.raises(Refused, match="overloaded"):
        await rig.pool.ask(HEAD, b"")
    second.cancel()
    await rig.turn()
    assert rig.pool.waiting == 0
    third = rig.ask()
    await rig.turn()
    rig.made[0].answer()
    await rig.turn()
    rig.made[0].answer()
    assert (await first).status == (await third).status == 200
    await rig.pool.close(1)


async def test_a_closed_pool_refuses_at_once() -> None:
    rig = Rig()
    rig.pool.open()
    await rig.turn()
    closing = asyncio.create_task(rig.pool.close(1))
    await rig.turn()
    for _ in range(2):  # while it closes, and then
        async with asyncio.timeout(1):
            with pytest.raises(Refused, match="being closed") as refused:
                await rig.pool.ask(HEAD, b"")
        assert refused.value.status == 503
        await closing


async def test_with_reload_too_a_first_start_that_fails_is_tried_again_without_a_change() -> None:
    rig = Rig(reload=True)
    rig.fail_next = ["no such host", "no such host", "another reason"]
    rig.pool.open()
    async with asyncio.timeout(10):
        while not rig.pool.workers:  # noqa: ASYNC110 - files are looked at in a thread
            await asyncio.sleep(0.001)
    assert {BACKOFF_S[1], BACKOFF_S[2], BACKOFF_S[3]} <= set(rig.slept)
    assert rig.log == ["route not loaded"] * 2  # each reason once
    await rig.pool.close(1)


@pytest.mark.parametrize("what", ["socket.socketpair", "asyncio.create_subprocess_exec", "connection"])
async def test_a_worker_for_whom_there_is_no_descriptor_is_one_that_did_not_start(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    loop = asyncio.get_running_loop()
    if what == "connection":
        monkeypatch.setattr(loop, "create_connection", none)
    else:
        monkeypatch.setattr(f"fastserve.gateway.routes_worker.{what}", none)
    with pytest.raises(LoadFailed, match="no process for a worker: Too many open files"):
        await RouteWorker.start({"path": "/r", "file": "r.py"}, print, lambda worker: None)
