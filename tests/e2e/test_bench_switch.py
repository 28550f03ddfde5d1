"""`fastserve bench switch` for real: a daemon, load, versions in each other's place, and what is written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.bench.processes import tree
from fastserve.bench.switch_result import read_switch_result

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of a small ranker, with TensorFlow's answers."""
    folder = tmp_path_factory.mktemp("switch") / "ranker"
    command = [sys.executable, str(REPO / "bench" / "models" / "switch_small.py"), str(folder), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def command(versions: Path, *arguments: str | Path) -> list[str]:
    model = ["--model", str(versions), "--beside", str(versions), "--xla", "off", "--rates", "100", "100"]
    # The model is small and its loads are not what is tested: no giving way, on a machine that may be busy.
    serve = ["--serve", "loading.nice=0", "--serve", "loading.poll_s=0.2"]
    short = ["--lead", "1", "--gap", "0.5", "--patience", "120"]
    start = [sys.executable, "-m", "fastserve", "bench", "switch"]
    return [*start, *model, *serve, *short, *map(str, arguments)]


def test_versions_switch_under_load_and_every_answer_is_of_its_version(
    versions: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "s.json", tmp_path / "s.png"
    done = subprocess.run(
        command(versions, "--switches", "2", "--out", out, "--plot", picture),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: slower than the bars; that is not tested
    result = read_switch_result(out)
    (run,) = result.runs
    assert not run.ended
    assert [switch.version for switch in run.switches] == [2, 3]
    for switch in run.switches:
        assert switch.first_answer_s is not None and switch.last_old_answer_s is not None
        assert 0 < switch.published_s <= switch.gone_s == pytest.approx(switch.window_s - 5, abs=0.01)
        assert switch.first_answer_s <= switch.gone_s + 0.5
    model, beside = run.targets
    assert (model.failed, model.unanswered, model.unrecorded, model.first_error) == ({}, 0, 0, "")
    assert (beside.failed, beside.unanswered, beside.unrecorded) == ({}, 0, 0)
    assert set(model.by_version) == {"1", "2", "3"}
    assert set(beside.by_version) == {"1"}
    assert sum(model.by_version.values()) == model.done == model.sent
    assert all(len(target.windows) == 2 and target.bars is not None for target in run.targets)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Version switches under load" in done.stdout
    assert (done.returncode == 0) == (run.passes is True)


def test_ctrl_c_keeps_what_was_measured_and_ends_the_server(versions: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    process = subprocess.Popen(
        command(versions, "--switches", "50", "--out", out), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    servers: dict[int, int] = {}
    try:
        for line in process.stdout:
            if "waiting for version 3" in line:
                servers = {pid: began for pid, began in tree(process.pid).items() if pid != process.pid}
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    finally:
        process.kill()
        process.wait()
    run = json.loads(out.read_text())["runs"][0]
    assert run["ended"] == "interrupted"
    assert [switch["version"] for switch in run["switches"]] == [2]
    assert [target["failed"] for target in run["targets"]] == [{}, {}]
    assert servers
    assert not {pid for pid, began in servers.items() if tree(pid).get(pid) == began}
