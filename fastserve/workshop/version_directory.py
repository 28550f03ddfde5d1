"""A version directory in the making: nobody sees it before it is whole.

`fastserve export` and `optimize` write with it. It grows beside its later place under a name that no server
takes for a version, is written through to the disk and gets its number by one rename. Whatever interrupts the
writing, a kill or a power cut included, leaves at most a hidden directory, which the next one to write there
removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastserve.whole_file import umask
from fastserve.workshop.errors import WorkshopError

# Versions travel as int64.
VERSION_MAX = (1 << 63) - 1
_PREFIX = ".making-"


class Making:
    """`path`: write here. `version`: its number once `new_version` has ended; before, what was asked for."""

    def __init__(self, path: Path, version: int | None) -> None:
        self.path = path
        self.version = version


@contextmanager
def new_version(base_path: Path, version: int | None = None) -> Iterator[Making]:
    """A directory that becomes `base_path`/`version`, or the number after the highest there, if the block
    ends without an exception; with one, nothing is left. Once it has its number nothing is raised any more: a
    KeyboardInterrupt that comes then comes too late.

    WorkshopError: the version is there already, or the place cannot be written; so with the block's OSErrors.
    """
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        with _locked(base_path):
            _refuse_taken(base_path, version)
            _remove_abandoned(base_path)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base_path))
            held = os.open(folder, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _unwritable(base_path, error) from None
    try:
        making = Making(folder, version)
        try:
            yield making
            _give_number(base_path, making)
        except OSError as error:
            raise _unwritable(base_path, error) from error
    except KeyboardInterrupt:
        if folder.exists():
            raise
    finally:
        # Of what became a version, nothing is there under this name.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _give_number(base_path: Path, making: Making) -> None:
    _write_through(making.path)
    making.path.chmod(0o777 & ~umask())
    with _locked(base_path):
        _refuse_taken(base_path, making.version)
        if making.version is None:
            making.version = _next(base_path)
        making.path.rename(base_path / str(making.version))
        # The version is there; whether a power cut leaves it so, nobody can promise on such a disk.
        with suppress(OSError):
            _sync(base_path)


def _unwritable(base_path: Path, error: OSError) -> WorkshopError:
    where = f"{error.filename}: " if error.filename not in (None, str(base_path)) else ""
    return WorkshopError(f"{base_path}: cannot write a version there: {where}{error.strerror or error}")


def _next(base_path: Path) -> int:
    highest = max(_versions(base_path), default=0)
    if highest == VERSION_MAX:
        raise WorkshopError(
            f"{base_path}: {highest} is there, and no number is higher: give another --version"
        )
    return highest + 1


def _refuse_taken(base_path: Path, version: int | None) -> None:
    if version is not None and version in _versions(base_path):
        raise WorkshopError(f"{base_path / str(version)} is there already: give another --version, or none")


def _versions(base_path: Path) -> set[int]:
    numbers = [
        int(name) for name in os.listdir(base_path) if name.isascii() and name.isdigit() and len(name) < 20
    ]
    return {number for number in numbers if number <= VERSION_MAX}


@contextmanager
def _locked(base_path: Path) -> Iterator[None]:
    """Others who write versions there wait: numbers and names are given to one at a time."""
    held = os.open(base_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _remove_abandoned(base_path: Path) -> None:
    """What processes left behind that are no more: nobody holds their locks."""
    for folder in base_path.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(held)


def _write_through(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
