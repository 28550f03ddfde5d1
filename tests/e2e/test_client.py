"""The client against FastServe: cores on the null runtime, and a daemon whose core is killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from core_driver import Core, servable
from daemon_process import Daemon

from fastserve._native.client import Channel
from fastserve.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Hedge,
    InvalidArgument,
    Keepalive,
    NotFound,
    Retry,
    RpcError,
)

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    with Core() as one:
        one.serve(
            servable("m", inner=13),
            servable("m", version=2, inner=13),
            servable("slow", options="run_us=30000"),
        )
        yield one


def x_of(seed: int, rows: int = 3) -> np.ndarray[Any, Any]:
    return np.full((rows, 13), seed, np.float32)


def check(answer: Any, seed: int, rows: int = 3) -> None:
    assert np.array_equal(answer["y"], np.full((rows, 13), 0.5 * seed + 2, np.float32))


def test_calls_over_both_kinds_of_sockets(core: Core) -> None:
    for address in (core.address, core.unix_address):
        with Client(address, timeout=20) as client:
            for i in range(50):
                answer = client.predict("m", {"x": x_of(i)})
                check(answer, i)
                assert (answer.model, answer.version, answer.signature) == ("m", 2, "serving_default")
            assert client.predict("m", {"x": x_of(1)}, version=1).version == 1
            large = np.arange(13 * 20_000, dtype=np.float32).reshape(-1, 13)
            assert np.array_equal(client.predict("m", {"x": large})["y"], large * 0.5 + 2)


def test_errors_are_the_servers(core: Core) -> None:
    with Client(core.address, timeout=20) as client:
        with pytest.raises(NotFound, match="nothing"):
            client.predict("nothing", {"x": x_of(1)})
        with pytest.raises(InvalidArgument):
            client.predict("m", {"z": x_of(1)})
        with pytest.raises(InvalidArgument):
            client.predict("m", {"x": np.zeros((3, 13))})  # float64
        with pytest.raises(NotFound):
            client.predict("m", {"x": x_of(1)}, version=9)
        with pytest.raises(DeadlineExceeded):
            client.predict("slow", {"x": np.zeros((1, 1), np.float32)}, timeout=0.005)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_many_rows(core: Core, compression: str | None) -> None:
    x = np.arange(13 * 5000, dtype=np.float32).reshape(-1, 13)
    with Client(core.address, timeout=20, connections=3, compression=compression) as client:
        for options in ({}, {"chunk_rows": 300, "parallel": 4}):
            assert np.array_equal(client.predict_many("m", {"x": x}, **options)["y"], x * 0.5 + 2)


def test_many_threads(core: Core) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(150):
                check(
                    client.predict("m", {"x": x_of(number * 1000 + i, 1 + i % 5)}),
                    number * 1000 + i,
                    1 + i % 5,
                )
        except BaseException as error:
            failures.append(error)

    with Client([core.address, core.unix_address], timeout=20, connections=2) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert client.stats()["calls"] == 900


@LOOPS
def test_many_tasks(core: Core, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        async with AsyncClient([core.address, core.unix_address], timeout=20, connections=2) as client:

            async def one(number: int) -> None:
                for i in range(20):
                    check(await client.predict("m", {"x": x_of(number * 100 + i)}), number * 100 + i)

            async def given_up(number: int) -> None:
                task = asyncio.create_task(client.predict("slow", {"x": np.zeros((1, 1), np.float32)}))
                await asyncio.sleep(0.001 * number)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

            await asyncio.gather(*(one(n) for n in range(40)), *(given_up(n) for n in range(10)))
            assert all(row["outstanding"] == 0 for row in (await client.stats())["endpoints"])

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(work())


def test_what_a_loop_leaves_is_collected(core: Core) -> None:
    """Clients that nobody closed, with calls under way, go with their loops."""

    async def work() -> None:
        client = AsyncClient(core.address)
        await client.predict("m", {"x": x_of(1)})
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(client.predict("slow", {"x": np.zeros((1, 1), np.float32)})) for _ in range(3)
        ]
        await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()

    async def abandoned() -> None:
        client = AsyncClient(core.address)
        await client.predict("m", {"x": x_of(1)})
        kept = [client.predict_many("slow", {"x": np.zeros((90, 1), np.float32)}, chunk_rows=30)]
        kept[0].send(None)  # sent, and never awaited any further
        asyncio.get_running_loop().kept = kept  # type: ignore[attr-defined]

    def once() -> None:
        for leave in (work, abandoned):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(leave())
            loop.close()
            del loop
        gc.collect()

    once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        once()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [one for one in gc.get_objects() if isinstance(one, Channel)]


def test_nothing_is_left_behind(core: Core) -> None:
    """Neither memory nor descriptors, here or in the core."""
    data = np.zeros((2000, 13), np.float32)

    def work(rounds: int) -> None:
        for _ in range(rounds):
            with Client(core.address, timeout=20, connections=2) as client:
                for _ in range(20):
                    client.predict("m", {"x": data})
                client.predict_many("m", {"x": data}, chunk_rows=500)
                for call in (
                    lambda: client.predict("nothing", {"x": data}),
                    lambda: client.predict("slow", {"x": data[:1, :1]}, timeout=0.002),
                ):
                    with pytest.raises(RpcError):
                        call()
        gc.collect()

    work(15)
    descriptors, memory = len(os.listdir("/proc/self/fd")), rss_bytes()
    work(30)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert rss_bytes() - memory < 8 << 20  # of 130 MB that were sent and received
    end = time.monotonic() + 10
    while core.stats()["connections"] > 0 and time.monotonic() < end:
        time.sleep(0.02)
    assert core.stats()["connections"] == 0


def rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise KeyError("VmRSS")


# ---- faults ------------------------------------------------------------------------------------------------


class Load:
    """Threads that call without a pause until they are told to stop; what failed is kept."""

    def __init__(self, client: Client, threads: int = 4) -> None:
        self.client = client
        self.calls = 0
        self.failures: list[BaseException] = []
        self.slowest = 0.0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _work(self, number: int) -> None:
        i = 0
        while not self._over.is_set():
            i += 1
            start = time.monotonic()
            try:
                check(self.client.predict("m", {"x": x_of(number + i)}), number + i)
            except BaseException as error:
                self.failures.append(error)
            with self._lock:
                self.calls += 1
                self.slowest = max(self.slowest, time.monotonic() - start)

    def go_on(self, calls: int) -> None:
        """Until so many more have been made."""
        target, end = self.calls + calls, time.monotonic() + 30
        while self.calls < target:
            assert time.monotonic() < end, self.failures[:3]
            time.sleep(0.005)


def attempts_of(client: Client) -> tuple[int, int, dict[str, Any]]:
    stats = client.stats()
    made = sum(row["attempts"] for row in stats["endpoints"])
    return made, stats["calls"] + stats["retries"] + stats["unprocessed"] + stats["hedges"], stats


def test_a_server_that_dies_loses_no_call() -> None:
    retry = Retry(attempts=4, backoff=0.001, ratio=0.1, burst=20)
    with Core() as one, Core() as two, Client([one.address, two.address], timeout=30, retry=retry) as client:
        for each in (one, two):
            each.serve(servable("m", inner=13, options="run_us=3000"))
        with Load(client, threads=8) as load:
            load.go_on(100)
            one.stop_listening()
            one.process.kill()
            load.go_on(300)
        assert load.failures == []
        made, expected, stats = attempts_of(client)
        assert made == expected
        assert 1 <= stats["retries"] <= 20 + 0.1 * stats["calls"]
        assert stats["endpoints"][1]["attempts"] > 300


def test_a_server_that_freezes_loses_no_call() -> None:
    with (
        Core() as one,
        Core() as two,
        Client(
            [one.address, two.address],
            timeout=30,
            connect_timeout=0.3,
            retry=Retry(attempts=6, backoff=0.001, burst=50),
            keepalive=Keepalive(after=0.2, timeout=0.2),
        ) as client,
    ):
        for each in (one, two):
            each.serve(servable("m", inner=13))
        with Load(client) as load:
            load.go_on(200)
            one.process.send_signal(signal.SIGSTOP)
            load.go_on(400)
            one.process.send_signal(signal.SIGCONT)
            load.go_on(200)
        assert load.failures == []
        assert load.slowest < 5


def test_a_slow_server_is_hedged() -> None:
    with (
        Core() as one,
        Core() as two,
        Client(
            [one.address, two.address], timeout=30, hedge=Hedge(percentile=90, ratio=1.0, burst=1000)
        ) as client,
    ):
        for each in (one, two):
            each.serve(servable("m", inner=13))
        with Load(client, threads=2) as load:
            load.go_on(400)
        two_frozen = Load(client, threads=2)
        one.process.send_signal(signal.SIGSTOP)
        try:
            with two_frozen as load:
                load.go_on(100)
        finally:
            one.process.send_signal(signal.SIGCONT)
        assert two_frozen.failures == []
        assert client.stats()["hedge_wins"] > 0
        assert two_frozen.slowest < 2


def test_a_daemon_whose_core_is_killed_loses_no_call(launch: Callable[..., Daemon]) -> None:
    daemon = launch("half_plus_two", executor="threads = 1")
    address = daemon.ready["addresses"][0]
    x = np.arange(6, dtype=np.float32)
    with Client(address, timeout=60, wait_for_ready=True, retry=Retry(attempts=5)) as client:
        seen: list[Any] = []
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                try:
                    answer = client.predict("half_plus_two", {"x": x})["y"]
                    seen.append(bool(np.allclose(answer, x * 0.5 + 2)))
                except Exception as error:
                    seen.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        daemon.until(lambda: len(seen) > 100)
        first = daemon.core_pid
        os.kill(first, signal.SIGKILL)
        daemon.until(lambda: daemon.admin("stats").get("pid", first) != first)
        at = len(seen)
        daemon.until(lambda: len(seen) > at + 100)
        over.set()
        for thread in threads:
            thread.join()
        assert [one for one in seen if one is not True] == []
