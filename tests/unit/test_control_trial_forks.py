"""Trials that the fork server forks: all that others are, and what happens when there is no server."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from unit import fake_trial

from fastserve.config import Model, TensorFlow
from fastserve.control import trial_forks
from fastserve.control.trial_forks import TrialForks
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.xla_cache import XlaCache
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log

TESTS = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(TESTS)])}
MODULE = "unit.fake_trial"
ARGV = [sys.executable, fake_trial.__file__]
FAILURES: list[dict[str, Any]] = [
    {"error": "variables/ is missing"},
    {"exit": 0},
    {"signal": 9},
    {"signal": 11},
    {"signal": 11, "stderr": "the last words"},
    {"garbage": True},
    {"report": "no object"},
]


class Bench:
    """A runner with a fork server, and what it logged."""

    def __init__(self, directory: Path, *, argv: list[str] | None = None, **options: Any) -> None:
        self.directory = directory
        self._file = os.open(directory / "log", os.O_RDWR | os.O_CREAT)
        log = Log(self._file)
        runner_options = {name: options.pop(name) for name in ("nice", "cache") if name in options}
        library_dir = options.pop("library_dir", "")
        self.forks = TrialForks(library_dir, options.pop("env", ENV), log, **{"module": MODULE, **options})
        self.runner = TrialRunner(argv or ["/no/such/program"], ENV, log, forks=self.forks, **runner_options)
        self.stages: list[dict[str, Any]] = []

    def request(self, orders: dict[str, Any], runtime: str = "tensorflow") -> dict[str, Any]:
        (self.directory / "trial.json").write_text(json.dumps(orders))
        request = trial_request(
            Model(name="m", base_path="/x", xla="full"),
            VersionPath(7, str(self.directory)),
            TensorFlow(library_dir="/tf"),
            previous_choice=None,
            prepared_dir="/prepared",
        )
        request["model"]["runtime"] = runtime
        return request

    async def trial(self, orders: dict[str, Any], timeout_s: float = 60, **options: Any) -> Trial:
        self.stages.clear()
        request = self.request(orders, options.pop("runtime", "tensorflow"))
        return await self.runner.run(request, timeout_s, self.stages.append, **options)

    async def told(self, **options: Any) -> dict[str, Any]:
        """What a trial says of its process."""
        await self.trial({"tell": True}, **options)
        return next(stage for stage in self.stages if stage["stage"] == "tell")

    async def begun(self, orders: dict[str, Any], timeout_s: float = 60) -> tuple[asyncio.Task[Trial], int]:
        """A trial that is under way, and its process id."""
        begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_stage(stage: dict[str, Any]) -> None:
            if stage["stage"] == "tell":
                begun.set_result(stage["pid"])

        request = self.request({"tell": True, **orders})
        running = asyncio.create_task(self.runner.run(request, timeout_s, on_stage))
        return running, await begun

    @property
    def why(self) -> list[str]:
        """Why trials were started without the server."""
        lines = (self.directory / "log").read_text().splitlines()
        return [line.split("why=")[1] for line in lines if "trial without the fork server" in line]

    async def close(self) -> None:
        await self.forks.close()
        os.close(self._file)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def one(**options: Any) -> Bench:
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield one
    for bench in made:
        await bench.close()


def ends(pid: int, timeout_s: float = 30) -> bool:
    """Whether a process ends within that time, or has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def all_children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Children of the tests before, such as daemons that several tests ask."""
    OTHERS.clear()
    OTHERS.update(all_children())


def children() -> set[int]:
    """Those of this test."""
    return all_children() - OTHERS


async def outcome(runner: TrialRunner, request: dict[str, Any]) -> Trial | str:
    try:
        return await runner.run(request, 60, lambda stage: None)
    except ModelError as error:
        return str(error)


# ---- all that others are -----------------------------------------------------------------------


@pytest.mark.parametrize("orders", [{"report": {"xla_choice": "full"}}, *FAILURES], ids=str)
async def test_a_forked_trial_ends_as_any_other(bench: Bench, orders: dict[str, Any]) -> None:
    started = TrialRunner(ARGV, ENV, Log(level="error"))
    request = bench.request(orders)
    assert await outcome(bench.runner, request) == await outcome(started, request)
    assert bench.why == []


async def test_it_is_a_process_of_its_own_like_any_other(bench: Bench) -> None:
    forked = await bench.told()
    runner = TrialRunner([sys.executable, "-P", "-m", MODULE], ENV, Log(level="error"))
    stages: list[dict[str, Any]] = []
    await runner.run(bench.request({"tell": True}), 60, stages.append)
    started = stages[1]
    for told in (forked, started):
        assert told["group"] == told.pop("pid"), "killed with what it starts"
        del told["group"]
    assert started["fds"].pop("0") in ("socket", "pipe")
    assert forked["fds"].pop("0") == "pipe"
    assert forked == started
    assert forked["parent"] == os.getpid() and forked["threads"] == 1


async def test_each_trial_is_a_fork_of_the_same_server(bench: Bench) -> None:
    first = (await bench.told())["pid"]
    server = bench.forks.pid
    assert (await bench.told())["pid"] != first
    assert server is not None and bench.forks.pid == server
    assert bench.stages[0]["oom_score_adj"] == 1000
    assert children() == {server}


async def test_nothing_is_left_open(bench: Bench) -> None:
    await bench.told()
    before = set(os.listdir("/proc/self/fd"))
    server = set(os.listdir(f"/proc/{bench.forks.pid}/fd"))
    for orders in ({}, {"exit": 3}, {"signal": 11}, {"garbage": True}):
        await outcome(bench.runner, bench.request(orders))
    assert set(os.listdir("/proc/self/fd")) == before
    assert set(os.listdir(f"/proc/{bench.forks.pid}/fd")) == server


async def test_it_gets_the_cache(make: Callable[..., Bench], tmp_path: Path) -> None:
    cache = XlaCache(tmp_path / "xla", "key", Log(level="error"))
    bench = make(cache=cache)
    told = await bench.told()
    assert told["environment"]["TF_XLA_FLAGS"] == f'--tf_xla_persistent_cache_directory="{cache.directory}"'
    assert bench.stages[0]["cache"] == str(cache.directory)
    assert "TF_XLA_FLAGS" not in (await bench.told(use_cache=False))["environment"]
    assert bench.why == []


async def test_it_gives_way(make: Callable[..., Bench]) -> None:
    bench = make(nice=19)
    bench.runner.give_way = False
    await bench.told()
    assert bench.stages[0]["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    await bench.forks.close()
    bench.runner.give_way = True
    running, pid = await bench.begun({"hang": True})
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 5
    if os.getpriority(os.PRIO_PROCESS, pid) == 19:
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        # The server itself has given way only while it started.
        assert os.getpriority(os.PRIO_PROCESS, bench.forks.pid or 0) == os.getpriority(os.PRIO_PROCESS, 0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_one_that_hangs_is_killed_with_its_children(bench: Bench, tmp_path: Path) -> None:
    await bench.trial({})  # so that the time is the trial's alone
    running, pid = await bench.begun({"hang": True}, 1.0)
    with pytest.raises(ModelError, match=r"not done within trial_timeout_s = 1$"):
        await running
    assert ends(pid, 0)
    if (tmp_path / "grandchild").exists():
        assert ends(int((tmp_path / "grandchild").read_text() or pid))


async def test_one_that_is_cancelled_is_killed(bench: Bench) -> None:
    running, pid = await bench.begun({"hang": True})
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ends(pid, 0)
    assert children() == {bench.forks.pid}


async def test_one_that_is_cancelled_while_it_is_forked_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.trial({})
    forking = asyncio.Event()
    say = trial_forks._Server.say

    async def slowly(*args: Any) -> None:
        forking.set()
        await asyncio.sleep(0)
        await say(*args)

    monkeypatch.setattr(trial_forks._Server, "say", slowly)
    running = asyncio.create_task(bench.trial({"hang": True}))
    await forking.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children() == {bench.forks.pid}
    monkeypatch.undo()
    assert (await bench.trial({})).servable["model"] == "m"


async def test_one_that_takes_too_much_memory_is_killed(bench: Bench) -> None:
    with pytest.raises(ModelError, match="of memory, and 100 MiB are left for it"):
        await bench.trial({"hog": 300 << 20}, memory_limit_bytes=100 << 20)
    assert (await bench.trial({}, memory_limit_bytes=100 << 20)).servable["model"] == "m"


# ---- the server ends ---------------------------------------------------------------------------


async def test_without_its_server_a_trial_goes_on(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    running, _ = await bench.begun({"wait": str(tmp_path / "gate")})
    server = bench.forks.pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    assert ends(server)
    await asyncio.to_thread((tmp_path / "gate").write_text, "")
    assert (await running).servable["model"] == "m"


async def test_after_its_end_one_trial_is_started_and_the_next_forked(make: Callable[..., Bench]) -> None:
    bench = make(argv=ARGV)
    await bench.trial({})
    server = bench.forks.pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    assert ends(server)
    assert (await bench.told())["command"] == ARGV
    assert bench.why == ['"it ended with SIGKILL"']
    assert bench.forks.pid is None
    assert (await bench.told())["command"][1:] == ["-P", "-m", MODULE]
    assert len(bench.why) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"library_dir": "/nowhere"}, "cannot open TensorFlow's library: /nowhere/libtensorflow_framework"),
        ({"module": "no_such_module"}, "it ended with exit code 1"),
    ],
)
async def test_one_that_cannot_start_is_done_without(
    make: Callable[..., Bench], options: dict[str, Any], why: str
) -> None:
    bench = make(argv=ARGV, **options)
    for count in (1, 2):
        assert (await bench.told())["command"] == ARGV
        assert len(bench.why) == count and why in bench.why[-1]
    assert children() == set()


async def test_what_always_fails_is_given_up(make: Callable[..., Bench]) -> None:
    bench = make(argv=ARGV, module="no_such_module")
    for count in (1, 2, 3, 3, 3):
        assert (await bench.told())["command"] == ARGV
        assert len(bench.why) == count
    assert (bench.directory / "log").read_text().count("given up") == 1


async def test_the_id_of_one_that_has_ended_is_nobodys(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another process's by the time the next trial comes."""
    bench = make(argv=ARGV)
    await bench.told()
    server = bench.forks.pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    async with asyncio.timeout(20):
        while server in children():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: killed.append(group))
    assert (await bench.told())["command"] == ARGV and len(bench.why) == 1
    assert server not in killed


ANSWERS = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.recv(9999); {}; s.recv(9999); {}"


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        ("s.send(b'what?')", "", "it answered with what is no JSON object"),
        ("s.send(b'[]')", "", "it answered with what is no JSON object"),
        ("s.send(b'{}')", "", "it is not ready"),
        ("s.recv(1)", "", "it was not ready within 2 s"),
        ("s.send(b'{\"ready\": true}')", "s.send(b'{\"pid\": null}')", "it gave no process id"),
        ("s.send(b'{\"ready\": true}')", "s.recv(1)", "it did not answer within 1 s"),
        ("s.send(b'{\"ready\": true}')", "sys.exit(3)", "it ended with exit code 3"),
    ],
)
async def test_one_that_talks_nonsense_is_done_without(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, first: str, then: str, why: str
) -> None:
    code = ANSWERS.format(first, then)
    monkeypatch.setattr(trial_forks, "child_argv", lambda module: [sys.executable, "-c", code])
    bench = make(argv=ARGV, start_s=2.0, fork_s=1.0)
    assert (await bench.told())["command"] == ARGV
    assert bench.why == [f'"{why}"']
    assert children() == set()


async def test_one_that_does_not_answer_while_a_trial_is_cancelled_is_ended(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ANSWERS.format("s.send(b'{\"ready\": true}')", "print('asked', flush=True); s.recv(1)")
    monkeypatch.setattr(trial_forks, "child_argv", lambda module: [sys.executable, "-c", code])
    bench = make(argv=ARGV, fork_s=1.0)
    asked = asyncio.Event()
    monkeypatch.setattr(bench.forks._log, "event", lambda *args, **fields: asked.set())
    running = asyncio.create_task(bench.trial({}))
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (bench.forks.pid, children()) == (None, set())


async def test_a_process_with_threads_is_not_forked(make: Callable[..., Bench], tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        f"from {MODULE} import main\n"
    )
    env = {**ENV, "PYTHONPATH": os.pathsep.join([ENV["PYTHONPATH"], str(tmp_path)])}
    bench = make(argv=ARGV, env=env, module="threaded")
    bench.runner._env = env
    assert (await bench.told())["command"] == ARGV
    assert bench.why == ['"the process to fork from has 2 threads"']


async def test_an_environment_that_differs_in_more_than_it_may_is_a_process_of_its_own(
    make: Callable[..., Bench],
) -> None:
    bench = make(argv=ARGV)
    bench.runner._env = {**ENV, "TF_CPP_VMODULE": "x"}
    told = await bench.told()
    assert (told["command"], told["environment"]["TF_CPP_VMODULE"]) == (ARGV, "x")
    assert (bench.why, bench.forks.pid) == ([], None)


async def test_what_other_runtimes_open_is_a_process_of_its_own(make: Callable[..., Bench]) -> None:
    bench = make(argv=ARGV)
    assert (await bench.told(runtime="litert"))["command"] == ARGV
    assert bench.forks.pid is None


CONTROL = """
import asyncio, os, sys
from pathlib import Path
from unit.test_control_trial_forks import Bench

async def main():
    bench = Bench(Path(sys.argv[1]))
    running, pid = await bench.begun({"hang": True})
    print(bench.forks.pid, pid, flush=True)
    await running

asyncio.run(main())
"""


def test_server_and_trial_end_with_the_control_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CONTROL, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENV
    ) as control:
        assert control.stdout
        pids = list(map(int, control.stdout.readline().split()))
        assert len(pids) == 2 and not any(ends(pid, 0) for pid in pids)
        control.kill()
        assert all(ends(pid) for pid in pids)
