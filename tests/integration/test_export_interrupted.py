"""`fastserve export` that is stopped: whenever that is, there is no version that a server would load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastserve.cli import main
from fastserve.terminal_bar import Steps
from fastserve.workshop.export import STEPS

SOURCE = f"{Path(__file__).resolve().parent.parent / 'export_sources.py'}:closed_over"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The command settles its process's environment, which here is everybody's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def export(out: Path) -> Result:
    return CliRunner().invoke(main, ["export", SOURCE, str(out)])


def served(out: Path) -> list[str]:
    """What a server would take for versions, and what else is there."""
    return sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = Steps.step
    reached = 0
    for at in range(1, STEPS + 1):
        begun = 0

        def step(self: Steps, text: str, at: int = at) -> None:
            nonlocal begun, reached
            whole(self, text)
            begun += 1
            if begun == at:
                reached += 1
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Steps, "step", step)
        result = export(tmp_path)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit), at
        assert served(tmp_path) == [], at
    assert reached == STEPS


def test_a_signal_while_files_are_written_or_the_export_runs_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    from fastserve.workshop import child

    written = tf.saved_model.save
    children: list[int] = []

    def half_written(root: Any, path: str, **options: Any) -> None:
        written(root, path, **options)
        Path(path, "saved_model.pb").unlink()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tf.saved_model, "save", half_written)
    assert export(tmp_path).exit_code == 1
    assert served(tmp_path) == []
    monkeypatch.undo()

    class Popen(subprocess.Popen[bytes]):
        def communicate(self, *args: Any, **options: Any) -> Any:
            children.append(self.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            return super().communicate(*args, **options)

    monkeypatch.setattr(child.subprocess, "Popen", Popen)
    assert export(tmp_path).exit_code == 1
    assert served(tmp_path) == []
    assert len(children) == 1 and not Path(f"/proc/{children[0]}").exists()


# Kills itself where the argument says, in the middle of what the step does.
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from fastserve.cli import main
    from fastserve.workshop import export, version_directory

    def kill(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[1] == "run":
        export.run_requests = kill
    else:
        Path.rename = kill
    main(["export", *sys.argv[2:]])
    """
)


def test_what_a_kill_leaves_behind_is_no_version_and_goes_with_the_next_run(tmp_path: Path) -> None:
    for at in ("run", "rename"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, at, SOURCE, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        # The next one has removed what the one before left.
        (left,) = served(tmp_path)
        assert left.startswith(".making-")
        assert (tmp_path / left / "saved_model.pb").exists()
    result = export(tmp_path)
    assert result.exit_code == 0, result.output
    assert served(tmp_path) == ["1"]
