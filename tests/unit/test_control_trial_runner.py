"""Trials from outside: children that succeed, refuse, crash, hang and talk nonsense."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit import fake_trial

from fastserve.config import Batching, Model, TensorFlow
from fastserve.control import trial_process
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.xla_cache import XlaCache
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log

ARGV = [sys.executable, fake_trial.__file__]


def request(tmp_path: Path, orders: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "trial.json").write_text(json.dumps(orders))
    return trial_request(
        Model(
            name="m",
            base_path="/x",
            xla="auto",
            row_wise=False,
            batching=Batching(allowed_batch_sizes=(1, 8)),
        ),
        VersionPath(7, str(tmp_path)),
        TensorFlow(library_dir="/tf"),
        previous_choice="full",
        prepared_dir="/prepared",
    )


async def trial(tmp_path: Path, orders: dict[str, Any], timeout_s: float = 30, **options: Any) -> Trial:
    log = options.pop("log", Log(level="error"))
    stages = options.pop("stages", [])
    runner = TrialRunner(ARGV, os.environ, log, **options)
    return await runner.run(request(tmp_path, orders), timeout_s, stages.append)


async def test_a_success_gives_the_servable_and_the_report(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = []
    result = await trial(tmp_path, {"report": {"xla_choice": "full"}}, stages=stages)
    assert result.report == {"xla_choice": "full"}
    assert (result.servable["model"], result.servable["version"]) == ("m", 7)
    assert [stage["stage"] for stage in stages] == ["open"]
    sent = result.servable["request"]
    assert sent["model"] == {
        "name": "m",
        "version": 7,
        "path": str(tmp_path),
        "tags": ["serve"],
        "xla": "auto",
        "previous_choice": "full",
        "row_wise": False,
        "unknown_shapes": "plain",
        "weight": 1.0,
        "reserved_executors": 0,
        "runtime": "tensorflow",
        "tflite_aliases": "signatures",
    }
    assert sent["batching"]["allowed_batch_sizes"] == [1, 8]
    assert sent["batching"]["max_batch_size"] == 512
    assert (sent["tensorflow"]["library_dir"], sent["tensorflow"]["intra_op_threads"]) == ("/tf", 1)
    assert sent["prepared_dir"] == "/prepared"


async def test_the_child_gives_way_when_it_is_told_to(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = []
    await trial(tmp_path, {}, stages=stages, nice=7)
    # The child may have been quicker than the change of its priority only if it never waited for its request.
    assert stages[0]["nice"] == 7


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ({"error": "variables/ is missing"}, ["variables/ is missing"]),
        ({"exit": 3, "stderr": "Traceback: KeyError"}, ["exit code 3", "it wrote: Traceback: KeyError"]),
        ({"exit": 0}, ["exit code 0"]),
        ({"signal": 11}, ["SIGSEGV"]),
        ({"signal": 9}, ["SIGKILL", "probably the kernel's out-of-memory killer"]),
        ({"garbage": True}, ["not JSON"]),
        ({"report": "no object"}, ["success without a servable"]),
    ],
)
async def test_a_failure_says_why(tmp_path: Path, orders: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        await trial(tmp_path, orders)
    assert all(word in str(caught.value) for word in words)


async def test_only_the_last_of_much_output_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        await trial(tmp_path, {"exit": 1, "stderr": "much\n" * 50_000 + "x" * 200_000 + "\nthe end"})
    assert str(caught.value).endswith("xxx\nthe end")
    assert len(str(caught.value)) < 3000


async def test_a_trial_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    started = asyncio.Event()
    runner = TrialRunner(ARGV, os.environ, Log(level="error"))
    running = asyncio.create_task(
        runner.run(request(tmp_path, {"hang": True}), 1.0, lambda stage: started.set())
    )
    await started.wait()
    with pytest.raises(ModelError, match=r"not done within trial_timeout_s = 1$"):
        await running
    assert gone(tmp_path)


async def test_a_trial_that_is_cancelled_is_killed(tmp_path: Path) -> None:
    started = asyncio.Event()
    runner = TrialRunner(ARGV, os.environ, Log(level="error"))
    running = asyncio.create_task(
        runner.run(request(tmp_path, {"hang": True}), 60, lambda stage: started.set())
    )
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gone(tmp_path)


def gone(tmp_path: Path) -> bool:
    """Whether the child's child has ended, if there ever was one."""
    try:
        pid = (tmp_path / "grandchild").read_text()
        state = Path("/proc", pid, "stat").read_text().rsplit(") ")[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


async def test_trials_run_one_at_a_time(tmp_path: Path) -> None:
    runner = TrialRunner(ARGV, os.environ, Log(level="error"))
    order: list[str] = []

    async def one(name: str) -> None:
        directory = tmp_path / name
        directory.mkdir()
        await runner.run(request(directory, {}), 30, lambda stage: order.append(f"{name} begins"))
        order.append(f"{name} ends")

    await asyncio.gather(one("a"), one("b"))
    assert order == ["a begins", "a ends", "b begins", "b ends"]


@pytest.mark.parametrize(("level", "shown"), [("0", True), ("3", False)])
async def test_what_tensorflow_says_is_shown_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, shown: bool
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    line = "I0000 00:00:1795390961.076535   24499 port.cc:153] oneDNN custom operations are on."
    await trial(tmp_path, {"stderr": f"{line}\nmine"}, log=Log(fd))
    os.close(fd)
    text = (tmp_path / "log").read_text()
    assert (f'trial output line="{line}"' in text) is shown
    assert "mine" not in text


# ---- priority and memory ------------------------------------------------------------------


def nice_values(pid: int) -> set[int]:
    """Of every thread of a process."""
    return {
        int(stat.read_text().rsplit(") ")[1].split()[16]) for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    }


def test_every_thread_gets_the_nice_value() -> None:
    code = (
        "import sys, threading\n"
        "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert len(os.listdir(f"/proc/{child.pid}/task")) == 4
        assert trial_process.set_nice(child.pid, 19)
        assert nice_values(child.pid) == {19}
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
        # As far as this process may.
        assert trial_process.set_nice(child.pid, 0) == (trial_process.starting_nice(19) == 19)
        assert nice_values(child.pid) in ({own}, {19})
        assert (os.sched_getscheduler(child.pid) == os.SCHED_OTHER) == (nice_values(child.pid) == {own})
        child.stdin.close()
        child.wait(30)
    assert trial_process.set_nice(child.pid, 0), "a child that has ended has no threads left to change"


def test_a_child_that_cannot_be_raised_again_gives_way_moderately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_process, "_may_be_raised", lambda: False)
    assert trial_process.starting_nice(19) == 5
    assert trial_process.starting_nice(3) == 3
    monkeypatch.setattr(trial_process, "_may_be_raised", lambda: True)
    assert trial_process.starting_nice(19) == 19


@pytest.mark.parametrize(("hurry_after_s", "timeout_s"), [(0.01, 60.0), (1e6, 0.4)])
async def test_a_trial_that_takes_long_gives_way_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry_after_s: float, timeout_s: float
) -> None:
    monkeypatch.setattr(trial_process, "_may_be_raised", lambda: True)
    values: list[int] = []
    raised = asyncio.Event()

    def set_nice(pid: int, nice: int) -> bool:
        values.append(nice)
        if nice == 0:
            raised.set()
        return True

    monkeypatch.setattr(trial_process, "set_nice", set_nice)
    runner = TrialRunner(ARGV, os.environ, Log(level="error"), nice=19, hurry_after_s=hurry_after_s)
    running = asyncio.create_task(
        runner.run(request(tmp_path, {"hang": True}), timeout_s, lambda stage: None)
    )
    async with asyncio.timeout(30):
        await raised.wait()
    assert values == [19, 0]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_trial_gives_way_to_nobody_while_nothing_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[int] = []
    monkeypatch.setattr(trial_process, "set_nice", lambda pid, nice: values.append(nice) or True)
    runner = TrialRunner(ARGV, os.environ, Log(level="error"), nice=3)
    runner.give_way = False
    await runner.run(request(tmp_path, {}), 30, lambda stage: None)
    assert values == []
    runner.give_way = True
    await runner.run(request(tmp_path, {}), 30, lambda stage: None)
    assert values == [3]


@pytest.mark.parametrize(
    ("nice", "give_way", "breaks", "told"),
    [(3, True, True, True), (3, False, True, False), (0, True, True, False), (3, True, False, False)],
)
async def test_a_trial_takes_breaks_while_it_gives_way(
    tmp_path: Path, nice: int, give_way: bool, breaks: bool, told: bool
) -> None:
    stages: list[dict[str, Any]] = []
    runner = TrialRunner(ARGV, os.environ, Log(level="error"), nice=nice, breaks=breaks)
    runner.give_way = give_way
    await runner.run(request(tmp_path, {}), 30, stages.append)
    assert stages[0]["breaks"] is told


async def test_a_trial_is_what_the_kernel_shall_kill_first(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = []
    await trial(tmp_path, {}, stages=stages)
    assert stages[0]["oom_score_adj"] == 1000


async def test_a_trial_that_takes_too_much_memory_is_killed(tmp_path: Path) -> None:
    runner = TrialRunner(ARGV, os.environ, Log(level="error"))
    with pytest.raises(ModelError) as caught:
        await runner.run(
            request(tmp_path, {"hog": 300 << 20}), 60, lambda stage: None, memory_limit_bytes=100 << 20
        )
    found = re.fullmatch(
        r"the trial used (\d+) MiB of memory, and 100 MiB are left for it: raise \[loading\] "
        r"memory_limit_bytes if .*",
        str(caught.value),
    )
    assert found and 100 < int(found[1]) < 400
    result = await runner.run(request(tmp_path, {}), 60, lambda stage: None, memory_limit_bytes=100 << 20)
    assert result.servable["model"] == "m"


# ---- the compile cache --------------------------------------------------------------------


def cached_runner(tmp_path: Path) -> tuple[TrialRunner, XlaCache]:
    cache = XlaCache(tmp_path / "xla", "key", Log(level="error"))
    return TrialRunner(ARGV, {**os.environ, "TF_XLA_FLAGS": "--x"}, Log(level="error"), cache=cache), cache


async def test_a_trial_gets_the_cache_and_what_it_tells_of_is_recorded(tmp_path: Path) -> None:
    runner, cache = cached_runner(tmp_path)
    stages: list[dict[str, Any]] = []
    await runner.run(request(tmp_path, {"cached": {"a.pb": "12ab"}}), 30, stages.append)
    assert [(stage["cache"], stage["flags"]) for stage in stages] == [
        (str(cache.directory), f'--x --tf_xla_persistent_cache_directory="{cache.directory}"')
    ]
    manifest = json.loads((tmp_path / "xla" / "key.json").read_text())
    assert manifest["entries"]["a.pb"]["sha256"] == "12ab"


async def test_without_xla_or_when_told_to_a_trial_has_no_cache(tmp_path: Path) -> None:
    runner, _ = cached_runner(tmp_path)
    stages: list[dict[str, Any]] = []
    await runner.run(request(tmp_path, {}), 30, stages.append, use_cache=False)
    plain = request(tmp_path, {})
    plain["model"]["xla"] = "off"
    await runner.run(plain, 30, stages.append)
    assert [(stage["cache"], stage["flags"]) for stage in stages] == [("", "--x")] * 2


async def test_entries_that_fail_are_discarded_and_the_trial_run_again(tmp_path: Path) -> None:
    runner, cache = cached_runner(tmp_path)
    cache.directory.mkdir(parents=True)
    (cache.directory / "a.pb").write_bytes(b"abc")
    cache.record({"a.pb": hashlib.sha256(b"abc").hexdigest()})
    stages: list[dict[str, Any]] = []
    await runner.run(request(tmp_path, {"cache_fails": [["a.pb"]]}), 30, stages.append)
    assert [bool(stage["cache"]) for stage in stages] == [True, True]
    assert not (cache.directory / "a.pb").exists()


@pytest.mark.parametrize(
    ("orders", "with_cache"),
    [
        ({"cache_fails": [[]]}, [True, False]),
        ({"cache_fails": [["a.pb"], ["a.pb"]]}, [True, True, False]),
        ({"cache_crashes": True}, [True, False]),
    ],
)
async def test_at_last_a_trial_is_run_without_the_cache(
    tmp_path: Path, orders: dict[str, Any], with_cache: list[bool]
) -> None:
    runner, _ = cached_runner(tmp_path)
    stages: list[dict[str, Any]] = []
    result = await runner.run(request(tmp_path, orders), 30, stages.append)
    assert result.servable["model"] == "m"
    assert [bool(stage["cache"]) for stage in stages if stage["stage"] == "open"] == with_cache


async def test_a_directory_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "xla").touch()
    runner, _ = cached_runner(tmp_path)
    stages: list[dict[str, Any]] = []
    await runner.run(request(tmp_path, {}), 30, stages.append)
    assert [stage["cache"] for stage in stages] == [""]


@pytest.mark.parametrize("orders", [{"signal": 11}, {"error": "no"}, {"exit": 3}])
async def test_what_fails_for_other_reasons_is_run_once(tmp_path: Path, orders: dict[str, Any]) -> None:
    runner, _ = cached_runner(tmp_path)
    stages: list[dict[str, Any]] = []
    with pytest.raises(ModelError):
        await runner.run(request(tmp_path, orders), 30, stages.append)
    assert len(stages) == 1


async def test_a_child_that_cannot_be_started() -> None:
    runner = TrialRunner(["/no/such/program"], os.environ, Log(level="error"))
    with pytest.raises(ModelError, match="cannot be started: No such file"):
        await runner.run({}, 1, lambda stage: None)
