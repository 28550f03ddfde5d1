"""`fastserve trace`: asks a daemon that is made up, waits, and writes the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from trace_records import record

from fastserve.cli import main
from fastserve.cli_trace import run
from fastserve.errors import FastServeError
from fastserve.trace_events import Kind

BATCH = record(Kind.BATCH, begin_us=2000, end_us=2100, at_us=(2010, 2080), model="m", version=1)


class Daemon:
    """Its file is there; it is done at the third look."""

    def __init__(self, directory: Path, **done: Any) -> None:
        self.file = directory / "trace-1"
        self.file.write_bytes(BATCH)
        self.verbs: list[dict[str, Any]] = []
        self.looks = 0
        self.refuse: str | None = None
        self.done = {
            "file": str(self.file),
            "tracks": ["fs-exec-0"],
            "pid": 1,
            "begin_us": 1000,
            "end_us": 2_001_000,
            "events": 1,
            "lost": 0,
            "note": "",
            **done,
        }

    def ask(self, request: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        self.verbs.append(request)
        if request["verb"] == self.refuse:
            raise FastServeError("refused")
        if request["verb"] == "trace_end":
            return self.done
        self.looks += 1
        return {"seconds": 0.7 * self.looks, "events": self.looks, "finished": self.looks > 3, "error": ""}


def test_the_file_is_what_the_daemon_recorded(tmp_path: Path) -> None:
    daemon, output = Daemon(tmp_path), tmp_path / "trace.json"
    naps: list[float] = []
    text = run(daemon, 2.0, output, sleep=naps.append)
    names = [row["name"] for row in json.loads(output.read_text())["traceEvents"]]
    assert names[-4:] == ["m:1 ", "gather", "run", "encode"]
    assert text == f"1 events of 2.0 s in {output}; open it at https://ui.perfetto.dev"
    assert daemon.verbs[0] == {"verb": "trace", "seconds": 2.0}
    assert [verb["verb"] for verb in daemon.verbs[1:]] == ["trace_progress"] * 3 + ["trace_end"]
    assert len(naps) == 2
    assert not daemon.file.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, lost=5, note="ended early: the core was replaced by another")
    text = run(daemon, 2.0, tmp_path / "t.json", sleep=lambda seconds: None)
    assert "5 more were overwritten" in text
    assert text.endswith("ended early: the core was replaced by another")


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    daemon, output = Daemon(tmp_path), tmp_path / "t.json"
    run(daemon, 2.0, output, sleep=interrupt)
    assert json.loads(output.read_text())
    assert daemon.verbs[-1] == {"verb": "trace_end"}


def test_a_recording_that_goes_wrong_is_ended(tmp_path: Path) -> None:
    daemon, output = Daemon(tmp_path), tmp_path / "t.json"
    daemon.refuse = "trace_progress"
    with pytest.raises(FastServeError, match="refused"):
        run(daemon, 2.0, output)
    assert daemon.verbs[-1] == {"verb": "trace_end"}
    assert not output.exists()


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    daemon, output = Daemon(tmp_path), tmp_path / "t.json"
    output.write_text("mine")
    with pytest.raises(FastServeError, match="--force replaces it"):
        run(daemon, 2.0, output)
    assert output.read_text() == "mine" and not daemon.verbs
    run(daemon, 2.0, output, force=True, sleep=lambda seconds: None)
    assert json.loads(output.read_text())


def test_a_daemon_of_another_user_or_machine(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, file=str(tmp_path / "nowhere"))
    with pytest.raises(FastServeError, match="run this where the daemon runs, as its user"):
        run(daemon, 2.0, tmp_path / "t.json", sleep=lambda seconds: None)


def test_the_command_line(tmp_path: Path) -> None:
    def call(*args: str) -> Any:
        return CliRunner().invoke(main, ["trace", *args])

    shown = call("--help")
    assert shown.exit_code == 0
    assert "fastserve trace --seconds 5 -o trace.json" in shown.output
    assert "perfetto" in shown.output
    assert call().exit_code == 2
    assert call("--seconds", "0", "-o", "x").exit_code == 2
    result = call("--socket", str(tmp_path / "none.sock"), "-o", str(tmp_path / "t.json"))
    assert result.exit_code == 1
    assert "no daemon listens" in result.output
