"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastserve.cli import main
from fastserve.version import __version__


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


# Ends a model's table: two versions of it, and the next model.
VERSIONS = "[models.versions]\nnum_versions = 2\n[[models]]"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "libtensorflow_cc.so.2").touch()
    for directory in ("ranker/2", "ranker/10", "half/123"):
        (tmp_path / "models" / directory).mkdir(parents=True)
    file = tmp_path / "config.toml"
    file.write_text(
        '[tensorflow]\nlibrary_dir = "tf"\n[executor]\nthreads = 4\n'
        '[[models]]\nname = "ranker"\nbase_path = "models/ranker"\nxla = "auto"\nreserved_executors = 1\n'
        '[[models]]\nname = "half"\nbase_path = "models/half"\nrow_wise = false\n'
    )
    return file


def test_help_teaches_with_examples() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "base_path" in result.output and "fastserve check config.toml" in result.output
    for command in ("serve", "check", "inspect"):
        assert f"fastserve {command} " in call(command, "--help").output


def test_version() -> None:
    assert call("--version").output == f"fastserve, version {__version__}\n"
    lines = dict(line.split(None, 1) for line in call("version").output.splitlines())
    assert lines["fastserve"] == __version__
    assert lines["python"].startswith(sys.version.split()[0])
    assert set(lines) == {"fastserve", "python", "nghttp2", "tensorflow", "litert", "platform"}


def test_a_wrong_command_line_is_exit_code_2() -> None:
    assert call("sevre").exit_code == 2
    assert call("serve").exit_code == 2
    assert call("inspect", "/no/such/directory").exit_code == 2


def test_check_shows_what_would_be_served(config: Path) -> None:
    result = call("check", str(config))
    assert result.exit_code == 0, result.output
    rows = {
        cells[0]: cells[1:]
        for line in result.output.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│┃").split("│")]) == 6
    }
    base = config.parent / "models"
    assert rows["ranker"] == [
        "10",
        str(base / "ranker/10"),
        "auto",
        "1 to 512, padded to 10 sizes",
        "1, 1 reserved",
    ]
    assert rows["half"] == ["123", str(base / "half/123"), "off", "not batched (row_wise = false)", "1"]
    assert "listens on  127.0.0.1:8500" in result.output
    assert "4 executors, 1 loading, connections by the event loop" in result.output


def test_check_says_which_inputs_may_come_with_one_row(config: Path) -> None:
    text = config.read_text().replace('xla = "auto"', 'batching = { broadcast = ["user", "query"] }')
    config.write_text(text + 'batching = { broadcast = ["user"] }\n')
    result = call("check", str(config))
    assert "1 to 512, one row of user and query for all" in result.output
    assert "not batched (row_wise = false), one row of user for all" in result.output


def test_check_shows_all_the_versions_that_the_policy_chooses(config: Path) -> None:
    text = config.read_text()
    config.write_text(text + '[models.versions]\npolicy = "specific"\nspecific = [7]\n')
    (config.parent / "models" / "ranker" / "3").mkdir()
    config.write_text(
        config.read_text().replace("[[models]]", VERSIONS, 2).replace(VERSIONS, "[[models]]", 1)
    )
    result = call("check", str(config))
    assert result.exit_code == 2
    shown = [line.split("│")[2].strip() for line in result.output.splitlines() if "ranker/" in line]
    assert shown == ["3", "10"]
    assert "half, versions: none of specific = [7] is in" in result.stderr
    assert "there are: 123" in result.stderr


def test_check_lists_every_problem_of_the_file(config: Path) -> None:
    config.write_text('[server]\nlissten = []\n[[models]]\nname = "m"\nbase_path = "x"\nxla = 3\n')
    result = call("check", str(config))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: {config}:2: [server] lissten: no such key; did you mean listen?",
        f'error: {config}:6: [[models]] m, xla = 3: expected "off", "cluster", "full" or "auto"',
    ]


def test_check_finds_models_that_are_not_there(config: Path) -> None:
    (config.parent / "models" / "half" / "123").rmdir()
    (config.parent / "tf" / "libtensorflow_cc.so.2").unlink()
    result = call("check", str(config))
    assert result.exit_code == 2
    assert f"error: [[models]] half, base_path: {config.parent}/models/half has no version" in result.stderr
    assert "there is no libtensorflow_cc.so.2" in result.stderr


def test_check_names_plug_ins_that_are_not_there(config: Path) -> None:
    text = config.read_text().replace("threads = 4", 'threads = 4\npolicy = "urgency"')
    config.write_text(text + 'source = "register"\n[models.versions]\ntransition = "slowly"\n')
    result = call("check", str(config))
    assert result.exit_code == 2
    assert (
        '[executor] policy = "urgency": no such plug-in in fastserve.batchers; there are fair'
        in result.stderr
    )
    assert '[[models]] half, source = "register": no such plug-in in fastserve.sources' in result.stderr
    assert '[models.versions] of half, transition = "slowly": no such plug-in' in result.stderr
    # What versions there are is for the source to say.
    (half,) = [line for line in result.output.splitlines() if line.startswith("│ half ")]
    assert half.split("│")[2].strip() == "?"


def test_serve_refuses_a_wrong_configuration(config: Path) -> None:
    result = call("serve", str(config.with_name("none.toml")))
    assert (result.exit_code, result.stderr) == (2, f"error: {config.with_name('none.toml')}: no such file\n")
    result = call("serve", str(config), "--listen", "8500")
    assert result.exit_code == 2
    assert '[server] listen[0] = "8500": expected "HOST:PORT"' in result.stderr


def test_serve_that_cannot_start_is_exit_code_1(config: Path) -> None:
    (config.parent / "tf" / "libtensorflow_cc.so.2").unlink()
    result = call("serve", str(config))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [tensorflow] library_dir = ")


def test_errors_are_in_the_log_when_that_is_json(config: Path) -> None:
    (config.parent / "tf" / "libtensorflow_cc.so.2").unlink()
    command = [sys.executable, "-m", "fastserve", "serve", str(config), "--log-format", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    (event,) = (json.loads(line) for line in result.stderr.splitlines())
    assert (event["level"], event["event"]) == ("error", "failed")
    assert event["error"].startswith("[tensorflow] library_dir = ")


def test_inspect_says_what_a_directory_lacks(tmp_path: Path) -> None:
    result = call("inspect", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: {tmp_path}: no saved_model.pb" in result.stderr
    (tmp_path / "3").mkdir()
    result = call("inspect", str(tmp_path))
    assert f"error: {tmp_path}/3: no saved_model.pb" in result.stderr


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter."""
    script = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(result.stdout.split())


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = {"numpy", "tensorflow", "msgspec", "rich", "google.protobuf", "asyncio", "uvloop"}
    loaded = loaded_by("import fastserve.cli")
    assert "click" in loaded and not heavy & loaded


def test_importing_the_package_loads_nothing_but_its_version() -> None:
    assert loaded_by("import fastserve") == {"fastserve", "fastserve.version"}
