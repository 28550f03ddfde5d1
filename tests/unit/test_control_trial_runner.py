"""Trials from outside: children that succeed, refuse, crash, hang and talk nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from unit import fake_trial

from fastserve.config import Batching, Model, TensorFlow
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
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
        ({"signal": 9}, ["SIGKILL", "out of memory?"]),
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


async def test_a_child_that_cannot_be_started() -> None:
    runner = TrialRunner(["/no/such/program"], os.environ, Log(level="error"))
    with pytest.raises(ModelError, match="cannot be started: No such file"):
        await runner.run({}, 1, lambda stage: None)
