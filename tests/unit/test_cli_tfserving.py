"""`fastserve tfserving` and tensorflow_model_server: what is printed, and how they end when nothing is
started."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastserve.cli import main
from fastserve.cli_tfserving import write_files
from fastserve.compat.draft import WrittenFile
from fastserve.compat.flag_table import FLAGS
from fastserve.errors import ConfigError
from fastserve.version import __version__

PROGRAM = "import sys; from fastserve.cli_tfserving import model_server; sys.argv[1:] = {!r}; model_server()"


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The path of a unix socket must be short.
    path = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("XDG_STATE_HOME", str(path / "state"))
    monkeypatch.chdir(path)
    return path / "state"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["tfserving", *arguments])


def test_help_shows_every_flag_and_ends_as_there() -> None:
    result = call("--help")
    assert result.exit_code == 255
    assert result.stdout.startswith("usage: tensorflow_model_server\nFlags:\n")
    assert result.stdout.count("\n") == len(FLAGS) + 2


def test_a_value_that_is_none_shows_usage_and_ends_as_there() -> None:
    result = call("--port=http", "--model_base_path=/m")
    assert result.exit_code == 255
    assert result.stderr == "error: Couldn't interpret value http for flag port: expected a whole number\n"
    assert result.stdout.startswith("usage: ")


def test_versions() -> None:
    result = call("--version", "--port=1")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == f"TensorFlow ModelServer: FastServe {__version__}"
    assert second.startswith("TensorFlow Library: ")


def test_an_argument_that_is_no_flag_is_named_and_passed_over() -> None:
    result = call("--prot=1", "--port", "9000")
    assert result.stdout.startswith(
        "unknown argument: --prot=1 (did you mean --port?)\n"
        "unknown argument: --port (write --port=VALUE)\n"
        "unknown argument: 9000\n"
        "usage: tensorflow_model_server\n"
    )
    # It went on, to what is wrong with the rest.
    assert result.exit_code == 255
    assert "model_base_path and server_options.model_config_file are empty!" in result.stderr


def test_all_that_is_wrong_is_told_before_anything_is_started_or_written(state_home: Path) -> None:
    Path("monitoring.txt").write_text("prometheus: true")
    result = call(
        "--use_alts_credentials", "--model_config_file=missing", "--monitoring_config_file=monitoring.txt"
    )
    assert result.exit_code == 255
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("Failed to start server. Error: ") for line in lines)
    assert not state_home.exists()


def test_a_platform_that_there_is_not_is_told() -> None:
    Path("models.config").write_text(
        'model_config_list { config { name: "a" base_path: "/a" model_platform: "torch" } }'
    )
    result = call("--model_config_file=models.config")
    assert result.exit_code == 255
    assert "models.config:1: Model a requests unsupported platform torch" in result.stderr


def test_it_is_a_program_of_its_own() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(["--version"])], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0 and ran.stdout.startswith("TensorFlow ModelServer: FastServe ")


def test_files_are_written_once_and_told_when_they_cannot_be(tmp_path: Path) -> None:
    file = WrittenFile(str(tmp_path / "a" / "key"), "secret", 0o600)
    write_files([file])
    first = Path(file.path).stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert stat.S_IMODE(Path(file.path).parent.stat().st_mode) == 0o700
    write_files([file])
    assert Path(file.path).stat().st_mtime_ns == first.st_mtime_ns
    write_files([WrittenFile(file.path, "other", 0o600)])
    assert Path(file.path).read_text() == "other"
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        write_files([WrittenFile(f"{file.path}/below", "x", 0o600)])
