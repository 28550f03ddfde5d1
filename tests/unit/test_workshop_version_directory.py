"""Version directories in the making: whole or not there, whatever interrupts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastserve.cli import main
from fastserve.workshop import version_directory
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.version_directory import VERSION_MAX, new_version


def names(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def test_a_version_gets_the_number_after_the_highest(tmp_path: Path) -> None:
    base = tmp_path / "models" / "ranker"
    with new_version(base) as first:
        (first.path / "saved_model.pb").write_bytes(b"1")
        assert first.version is None
        assert not [name for name in names(base) if name.isdigit()]
    (base / "9").mkdir()
    (base / "notes.txt").touch()
    with new_version(base) as second:
        (second.path / "variables").mkdir()
        (second.path / "variables" / "variables.index").write_bytes(b"2")
    assert (first.version, second.version) == (1, 10)
    assert names(base) == ["1", "10", "9", "notes.txt"]
    assert (base / "10" / "variables" / "variables.index").read_bytes() == b"2"


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_version(tmp_path):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), new_version(tmp_path) as making:
        (making.path / "saved_model.pb").touch()
        raise interruption
    assert names(tmp_path) == []


def test_a_version_that_is_there_is_refused_at_once_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    with pytest.raises(WorkshopError, match=r"/3 is there already: give another --version"):
        new_version(tmp_path, 3).__enter__()
    with pytest.raises(WorkshopError, match=r"/4 is there already"), new_version(tmp_path, 4):
        (tmp_path / "4").mkdir()
    assert names(tmp_path) == ["3", "4"]


def test_two_at_once_get_two_numbers_and_leave_each_other_alone(tmp_path: Path) -> None:
    with new_version(tmp_path) as slow:
        (slow.path / "slow").touch()
        with new_version(tmp_path) as fast:
            (fast.path / "fast").touch()
    assert (fast.version, slow.version) == (1, 2)
    assert (tmp_path / "2" / "slow").exists()


def test_a_killed_writer_leaves_no_version_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fastserve.workshop.version_directory import new_version\n"
        f"with new_version(Path({str(tmp_path)!r})) as making:\n"
        "    (making.path / 'saved_model.pb').touch(); print('there', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"there\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
    assert [name[0] for name in names(tmp_path)] == ["."]
    with new_version(tmp_path):
        pass
    assert names(tmp_path) == ["1"]


def test_no_number_is_beyond_what_a_version_may_be(tmp_path: Path) -> None:
    (tmp_path / str(VERSION_MAX + 1)).mkdir()  # no server takes it for one
    with new_version(tmp_path) as making:
        pass
    assert making.version == 1
    (tmp_path / str(VERSION_MAX)).mkdir()
    with pytest.raises(WorkshopError, match=r"no number is higher: give another"), new_version(tmp_path):
        pass
    assert ".making-" not in " ".join(names(tmp_path))
    for command in ("export", "optimize"):
        result = CliRunner().invoke(main, [command, "a", "b", "--version", str(VERSION_MAX + 1)])
        assert result.exit_code == 2 and "is not in the range" in result.stderr


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_what_fails_once_it_has_its_number_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def sync(path: Path) -> None:
        if path == tmp_path:
            raise failure

    monkeypatch.setattr(version_directory, "_sync", sync)
    with new_version(tmp_path) as making:
        pass
    assert making.version == 1 and names(tmp_path) == ["1"]


def test_a_signal_right_after_the_renaming_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def renamed(self: Path, target: Path) -> None:
        rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", renamed)
    with new_version(tmp_path) as making:
        pass
    assert making.version == 1 and names(tmp_path) == ["1"]


def test_a_disk_that_is_full_meanwhile_is_named(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "variables.data")
    with (
        pytest.raises(WorkshopError, match=r"cannot write a version there: variables.data: No space left"),
        new_version(tmp_path),
    ):
        raise full
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkshopError, match=r"file/models: cannot write a version there: Not a directory"):
        new_version(tmp_path / "file" / "models").__enter__()
