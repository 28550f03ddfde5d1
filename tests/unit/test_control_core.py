"""The protocol with the core, and the core across its lives, against a core that is made up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.fake_core import Died, FakeCores

from fastserve.control.core_process import CoreProcess, describe_exit
from fastserve.control.shared_memory import SharedMemory
from fastserve.control.supervisor import BACKOFF_S, STABLE_S, CoreSupervisor
from fastserve.errors import CoreError, CoreLost, StartError
from fastserve.log import Log


class Clock:
    """Time that passes only in sleeps, and where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def log_lines(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Any:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    yield Log(fd, json_lines=True, level="debug")
    os.close(fd)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something has happened."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0)


# ---- one life ----------------------------------------------------------------------------------


async def test_answers_find_their_calls_in_any_order(log: Log) -> None:
    cores = FakeCores()
    gate = asyncio.Event()

    async def slow(command: dict[str, Any]) -> dict[str, Any]:
        await gate.wait()
        return {"which": "slow"}

    cores.answers = {"load": slow, "list": lambda command: {"which": "fast", "echo": command["x"]}}
    core = await CoreProcess.start(cores.spawn, [], log)
    load = asyncio.create_task(core.call("load"))
    fast = await core.call("list", x=[1, "ä"])
    assert (fast["which"], fast["echo"]) == ("fast", [1, "ä"])
    assert not load.done()
    gate.set()
    assert (await load)["which"] == "slow"
    await core.kill()


async def test_a_refusal_carries_code_and_text(log: Log) -> None:
    cores = FakeCores()
    cores.answers["load"] = lambda command: {"ok": False, "code": "NOT_FOUND", "error": "no such file"}
    core = await CoreProcess.start(cores.spawn, [], log)
    with pytest.raises(CoreError, match="no such file") as caught:
        await core.call("load")
    assert caught.value.code == "NOT_FOUND"
    await core.kill()


async def test_calls_in_flight_end_when_the_core_dies(log: Log) -> None:
    cores = FakeCores()
    cores.answers["load"] = lambda command: asyncio.sleep(3600)
    core = await CoreProcess.start(cores.spawn, [], log)
    loads = [asyncio.create_task(core.call("load")) for _ in range(3)]
    await until(lambda: len(cores.now.commands) == 3)
    cores.now.die(-signal.SIGSEGV)
    for load in loads:
        with pytest.raises(CoreLost):
            await load
    assert await core.wait() == -signal.SIGSEGV
    with pytest.raises(CoreLost):
        await core.call("list")


async def test_a_core_that_dies_before_its_hello(log: Log) -> None:
    cores = FakeCores()
    cores.hello = False
    starting = asyncio.create_task(CoreProcess.start(cores.spawn, [], log))
    await until(lambda: bool(cores.lives))
    cores.now.die(3)
    with pytest.raises(CoreLost):
        await starting


async def test_a_core_that_says_nothing_is_killed(log: Log) -> None:
    cores = FakeCores()
    cores.hello = False
    with pytest.raises(CoreLost, match=r"said nothing for 0\.01 s"):
        await CoreProcess.start(cores.spawn, [], log, hello_timeout_s=0.01)
    assert cores.now.returncode == -signal.SIGKILL


async def test_events_of_the_core_are_logged(log: Log, log_lines: Callable[[], list[dict[str, Any]]]) -> None:
    cores = FakeCores()
    core = await CoreProcess.start(cores.spawn, [], log)
    cores.now.send(
        {"event": "log", "level": "warning", "message": "slow", "fields": {"model": "m", "level": 1}}
    )
    cores.now.send(b"no JSON\n")
    cores.now.send(b"[1]\n")
    cores.now.send({"event": "log", "level": "strange", "message": "x", "fields": None})
    cores.now.send({"event": "unknown"})
    cores.now.send({"id": 77, "ok": True})
    assert (await core.call("list"))["ok"]
    lines = log_lines()
    assert [(line["level"], line["event"]) for line in lines] == [
        ("warning", "slow"),
        ("error", "the core sent a line that is not a JSON object"),
        ("error", "the core sent a line that is not a JSON object"),
        ("info", "x"),
    ]
    assert (lines[0]["process"], lines[0]["model"], lines[0]["level_"]) == ("core", "m", 1)
    await core.kill()


async def test_a_clients_request_is_answered_by_the_handler(log: Log) -> None:
    cores = FakeCores()
    asked = []
    gate = asyncio.Event()

    async def handler(method: str, message: bytes) -> tuple[int, str, bytes]:
        asked.append((method, message))
        await gate.wait()
        return (3, "no", b"") if message == b"bad" else (0, "", b"r\x00" + message)

    core = await CoreProcess.start(cores.spawn, [], log, handler)
    for number, message in ((7, "bad"), (8, "good")):
        cores.now.request(number, "Reload", message.encode())
    await until(lambda: len(asked) == 2)
    assert (await core.call("list"))["ok"]  # nothing else waits for it
    gate.set()
    await until(lambda: cores.now.ops().count("respond") == 2)
    assert asked == [("Reload", b"bad"), ("Reload", b"good")]
    assert cores.now.responses() == {7: (3, "no", b""), 8: (0, "", b"r\x00good")}
    await core.kill()


async def test_a_handler_that_fails_is_an_internal_error(
    log: Log, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    cores = FakeCores()

    async def handler(method: str, message: bytes) -> tuple[int, str, bytes]:
        raise KeyError("platform")

    core = await CoreProcess.start(cores.spawn, [], log, handler)
    cores.now.request(1, "Reload", b"")
    cores.now.send({"event": "request", "request": 2, "method": "Reload", "message": "not base64"})
    await until(lambda: cores.now.ops().count("respond") == 2)
    answers = cores.now.responses()
    assert answers[1] == (13, "KeyError: 'platform'", b"")
    assert answers[2][0] == 13
    assert [line["event"] for line in log_lines()] == ["a request failed", "a request failed"]
    await core.kill()


async def test_without_a_handler_requests_are_not_served(log: Log) -> None:
    cores = FakeCores()
    core = await CoreProcess.start(cores.spawn, [], log)
    cores.now.request(1, "Reload", b"")
    await until(lambda: cores.now.ops() == ["respond"])
    assert cores.now.responses() == {1: (12, "Reload is not served", b"")}
    await core.kill()


async def test_a_request_ends_with_its_core(log: Log) -> None:
    cores = FakeCores()
    ended = asyncio.Event()

    async def handler(method: str, message: bytes) -> tuple[int, str, bytes]:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return 0, "", b""

    core = await CoreProcess.start(cores.spawn, [], log, handler)
    cores.now.request(1, "Reload", b"")
    await core.call("list")
    await core.kill()
    async with asyncio.timeout(10):
        await ended.wait()


def test_exits_in_words() -> None:
    assert [describe_exit(status) for status in (0, 3, -9, -11, -77)] == [
        "exit code 0",
        "exit code 3",
        "SIGKILL",
        "SIGSEGV",
        "signal 77",
    ]


# ---- across lives ------------------------------------------------------------------------------


class Supervised:
    """A supervisor with one thing to bring back after a restart."""

    def __init__(self, log: Log) -> None:
        self.cores = FakeCores()
        self.clock = Clock()
        self.launched: list[int] = []
        self.core = CoreSupervisor(
            self.cores.spawn,
            {"listeners": [], "limits": {"x": 1}},
            [],
            log,
            on_launch=self.launched.append,
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    async def recover(self, core: CoreProcess) -> None:
        await core.call("load", servable={"model": "m", "version": 1})

    async def back(self, restarts: int) -> None:
        await until(lambda: self.core.restarts == restarts)


async def test_the_first_core_is_configured(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    assert it.cores.now.ops() == ["configure"]
    assert it.cores.now.commands[0]["limits"] == {"x": 1}
    assert it.core.pid == 1000 and it.launched == [1000]
    await it.core.kill()
    assert it.cores.now.returncode == -signal.SIGKILL


async def test_a_core_that_dies_is_back_with_what_was_served(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    await it.core.serve()
    it.cores.now.die(-signal.SIGABRT)
    await it.back(1)
    assert it.cores.now.ops() == ["configure", "load m:1", "serve"]
    assert it.launched == [1000, 1001]
    assert (await it.core.call("list"))["ok"]
    await it.core.kill()


async def test_each_core_has_memories_of_its_own(log: Log, tmp_path: Path) -> None:
    it = Supervised(log)
    shared = SharedMemory({"metrics": 1 << 20, "more": 4096})
    it.core = CoreSupervisor(it.cores.spawn, {"listeners": []}, [], log, shared=shared)
    assert shared.current("metrics") is None
    await it.core.start(it.recover)
    first = {name: os.dup(fd) for name, fd in it.cores.now.commands[0]["shared"].items()}
    assert list(first) == ["metrics", "more"] and os.fstat(first["more"]).st_size == 4096
    assert it.cores.now.listener_fds == list(it.cores.now.commands[0]["shared"].values())
    os.pwrite(first["metrics"], b"counted", 0)
    it.cores.now.die(1)
    await it.back(1)
    second = it.cores.now.commands[0]["shared"]
    assert second == {name: shared.current(name) for name in first}
    assert os.pread(second["metrics"], 7, 0) == bytes(7)
    assert os.pread(first["metrics"], 7, 0) == b"counted"  # for who has kept it
    await it.core.kill()
    for fd in first.values():
        os.close(fd)
    shared.close()


async def test_a_core_is_not_told_to_serve_before_the_daemon_says_so(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    it.cores.now.die(1)
    await it.back(1)
    assert it.cores.now.ops() == ["configure", "load m:1"]
    await it.core.kill()


async def test_calls_wait_while_the_core_is_away(log: Log) -> None:
    it = Supervised(log)
    gate = asyncio.Event()
    await it.core.start(it.recover)

    async def load(command: dict[str, Any]) -> None:
        await gate.wait()

    it.cores.answers["load"] = load
    it.cores.now.die(1)
    await until(lambda: len(it.cores.lives) == 2)
    waiting = asyncio.create_task(it.core.call("stats"))
    await until(lambda: it.cores.now.ops() == ["configure", "load m:1"])
    assert not waiting.done()
    gate.set()
    assert (await waiting)["ok"]
    await it.core.kill()


async def test_deaths_in_a_row_wait_longer_and_longer(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    for restarts in range(1, len(BACKOFF_S) + 2):
        it.cores.now.die(1)
        await it.back(restarts)
    # The first restart comes at once; the last delay repeats.
    assert it.clock.slept == [*BACKOFF_S[1:], BACKOFF_S[-1]]
    it.clock.now += STABLE_S
    it.clock.slept.clear()
    it.cores.now.die(1)
    await it.back(len(BACKOFF_S) + 2)
    assert it.clock.slept == []
    await it.core.kill()


async def test_a_restart_that_fails_is_tried_again(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    answers: list[Any] = [Died(-6), Died(-6), None]

    def load(command: dict[str, Any]) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    it.cores.answers["load"] = load
    it.cores.now.die(1)
    await it.back(1)
    assert len(it.cores.lives) == 4
    assert it.clock.slept == list(BACKOFF_S[1:3])
    await it.core.kill()


async def test_a_core_that_cannot_be_started_again_for_a_while(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    it.cores.spawn_error = OSError(11, "Resource temporarily unavailable")
    it.cores.now.die(1)
    await until(lambda: len(it.clock.slept) >= 2)
    it.cores.spawn_error = None
    await it.back(1)
    assert it.cores.now.ops() == ["configure", "load m:1"]
    await it.core.kill()


@pytest.mark.parametrize("how", ["dies", "refuses", "spawn"])
async def test_a_first_core_that_fails_ends_the_start(log: Log, how: str) -> None:
    it = Supervised(log)

    def configure(command: dict[str, Any]) -> dict[str, Any]:
        if how == "dies":
            raise Died(7)
        return {"ok": False, "code": "INTERNAL", "error": "no library"}

    it.cores.answers["configure"] = configure
    if how == "spawn":
        it.cores.spawn_error = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(StartError, match="the core did not start") as caught:
        await it.core.start(it.recover)
    assert {"dies": "exit code 7", "refuses": "no library", "spawn": "No such file"}[how] in str(caught.value)
    assert all(core.returncode is not None for core in it.cores.lives)


async def test_a_drain_ends_the_core_and_is_not_a_death(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    assert await it.core.drain(1.5, 30) is True
    drain = it.cores.now.commands[-1]
    assert (drain["op"], drain["lame_duck_s"], drain["drain_timeout_s"]) == ("drain", 1.5, 30)
    assert len(it.cores.lives) == 1


async def test_a_core_that_does_not_drain_in_time_is_killed(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastserve.control.core_process._DRAIN_GRACE_S", 0.01)
    it = Supervised(log)
    it.cores.answers["drain"] = lambda command: asyncio.sleep(3600)
    await it.core.start(it.recover)
    assert await it.core.drain(0, 0.01) is False
    assert it.cores.now.returncode == -signal.SIGKILL


async def test_a_core_that_dies_while_it_drains(log: Log) -> None:
    it = Supervised(log)

    def drain(command: dict[str, Any]) -> None:
        raise Died(-11)

    it.cores.answers["drain"] = drain
    await it.core.start(it.recover)
    assert await it.core.drain(0, 1) is False
    assert len(it.cores.lives) == 1


async def test_a_drain_while_the_core_is_away_has_nothing_to_wait_for(log: Log) -> None:
    it = Supervised(log)
    await it.core.start(it.recover)
    it.cores.spawn_error = OSError("no")
    it.cores.now.die(1)
    await until(lambda: len(it.clock.slept) >= 1)
    assert await it.core.drain(0, 30) is True
    assert len(it.cores.lives) == 1
