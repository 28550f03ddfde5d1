"""`fastserve bench` for real: FastServe and a grpc.aio server, measured in turn; one address, loaded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from exported_models import exported_models

from fastserve.bench.processes import tree
from fastserve.bench.result import read_result

WORKLOAD = """
[workload]
name = "half"
saved_model = "{model}"

[requests]
rows = [1, 4]
count = 8
inputs.x = {{ low = -10, high = 10 }}

[load]
closed = [{{ connections = 2, in_flight = 2 }}]
open = {{ rates = [100] }}
window_s = 0.4
warmup_s = 0.1
rounds = 2
"""


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "half.toml"
    path.write_text(WORKLOAD.format(model=exported_models() / "half_plus_two"))
    return path


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastserve", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_two_servers_are_started_verified_measured_in_turn_and_ended(workload: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    done = bench(
        "run", workload, "--start", "fastserve:executor.threads=1", "--start", "aio=grpc-aio:threads=2",
        "--out", out, "--html", page,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_result(out).runs
    assert run.complete and run.verified == 4
    assert [info.name for info in run.targets] == ["fastserve", "aio"]
    turns = [(window.target, window.point, window.round) for window in run.windows]
    assert turns == [
        (name, point, number)
        for point in ("closed 2 x 2", "open 100/s")
        for number, names in ((0, ("fastserve", "aio")), (1, ("aio", "fastserve")))
        for name in names
    ]
    for window in run.windows:
        assert window.done > 10 and not window.failed and window.unanswered == 0, window
        assert window.latency.histogram().total == window.done
        assert window.rss_bytes is not None and window.rss_bytes > 50 << 20
        assert window.rate <= window.rows_rate <= 4 * window.rate
    for window in run.rounds_of("fastserve", "open 100/s"):
        assert 10 < window.sent < 90
    assert "compared with aio" in done.stdout and page.stat().st_size < 1 << 20
    assert "closed 2 x 2" in page.read_text()
    gone = bench("run", workload, "--target", f"gone={run.targets[0].address}")
    assert gone.returncode == 1 and "gone: UNAVAILABLE" in gone.stderr


def test_an_interrupt_keeps_what_is_there_and_leaves_no_process(workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    command = [sys.executable, "-m", "fastserve", "bench", "run", str(workload), "--start", "fastserve"]
    process = subprocess.Popen(
        [*command, "--rounds", "500", "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert re.match(r"half: fastserve, closed 2 x 2: .*/s, p50 ", process.stdout.readline())
    family = {pid: began for pid, began in tree(process.pid).items() if pid != process.pid}
    assert len(family) >= 2
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in rest
    assert not [pid for pid, began in family.items() if tree(pid).get(pid) == began]
    (run,) = read_result(out).runs
    assert not run.complete and run.windows
    assert json.loads(out.read_bytes())["runs"][0]["ended"] == "interrupted"
