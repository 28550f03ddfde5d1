"""Whether a version is complete: everything that its files name is there, in full.

Called by the sources of the control process, in threads. Looks at names and sizes, the variables index, a few
fields of saved_model.pb and the heads in model.tflite, never at weights: a look is cheap. The files may still
be being written, so whatever they hold is a reason and no exception. What only opening the model shows is the
trial's business.

A source takes a version as complete when `why_incomplete` has no reason and

- `fingerprint` was the same one poll ago: nobody is writing it;
- or it was not there at the last look and `written_before` that look: it was written elsewhere on the same
  file system and renamed into place, so it need not wait for another poll;
- or a marker file is configured and there, which decides alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastserve.control.variables_index import BadIndex, Compressed, shard_sizes
from fastserve.control.version_format import SAVED_MODEL, Rule, is_tflite
from fastserve.control.wire import VARINT, BadWire, skip, varint
from fastserve.tflite import MODEL as TFLITE
from fastserve.tflite import why_cut_short

MODEL = SAVED_MODEL
INDEX = "variables/variables.index"
# What must be read, not only listed, to say whether a version is complete.
HEADS = (MODEL, INDEX)

# Of a message of this file: more fields than any has, so that a look at something else ends.
_FIELDS_MAX = 1_000_000
_NAME_MAX_BYTES = 1 << 16
_HEAD_BYTES = 20  # tag and length
# Files' times are as coarse as the kernel's tick, and a file server's clock is not ours.
_CLOCK_SLACK_S = 0.1


def why_incomplete(path: str | os.PathLike[str], marker: str = "", tflite: Rule = "alone") -> str:
    """Why the version in directory `path` is not complete, for people; "" when it is.

    `tflite`: whether model.tflite is what is served. With `marker`, a file name within the directory, only
    that decides. Blocks; never raises.
    """
    directory = Path(path)

    def size(name: str) -> int | None:
        file = directory / name
        try:
            there = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(file))
        return there.st_size if stat.S_ISREG(there.st_mode) else None

    def names() -> list[str]:
        return [f"variables/{name}" for name in os.listdir(directory / "variables")]

    return _reason(_Files(str(directory), directory, size, names, tflite), marker)


def why_listing_incomplete(
    where: str,
    sizes: Mapping[str, int | None],
    fetched: str | os.PathLike[str],
    marker: str = "",
    tflite: Rule = "alone",
) -> str:
    """As why_incomplete, of a version elsewhere: `where`, for people. Blocks; never raises.

    `sizes` has its files by their path below it, None where the size is not known. Of those in HEADS, the
    ones that it has must lie below `fetched`; a model.tflite that does not is taken as whole.
    """

    def size(name: str) -> int | None:
        there = sizes.get(name, -1)
        return sys.maxsize if there is None else None if there < 0 else there

    return _reason(_Files(where, Path(fetched), size, lambda: sizes, tflite), marker)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """A text that changes when a file of the directory does: its name, size, mtime or inode.

    Opens nothing. "" when the directory cannot be listed to the end. Blocks; never raises.
    """
    try:
        lines = sorted(
            f"{os.path.relpath(file, path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
            for file, status in _walk(os.fspath(path))
        )
    except OSError:
        return ""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def written_before(path: str | os.PathLike[str], when: float) -> bool:
    """Whether everything in the directory was written before `when`, a time.time(), with some slack.

    By the files' ctime, which no copy can set back. The directory's own does not count: renaming changes
    it. With a version that was not there at `when`, True says that it was renamed into place.
    """
    try:
        newest = max(
            (status.st_ctime for _, status in _walk(os.fspath(path), directories=True)), default=when
        )
    except OSError:
        return False
    return newest < when - _CLOCK_SLACK_S


def _walk(path: str, *, directories: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """The files below `path`, links followed to files only; with their directories, too."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            if directories:
                yield entry.path, entry.stat(follow_symlinks=False)
            yield from _walk(entry.path, directories=directories)
        else:
            yield entry.path, entry.stat(follow_symlinks=os.path.exists(entry.path))


# ---- what the files name ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Files:
    """A version: its name for people; where the files in HEADS can be read; the size of a file by its path
    below the version, None when it is not there; and at least the names below variables/."""

    where: str
    local: Path
    size: Callable[[str], int | None]
    names: Callable[[], Iterable[str]]
    tflite: Rule


@dataclass
class _Needs:
    """What saved_model.pb says must lie beside it."""

    meta_graphs: int = 0
    variables: bool = False
    assets: set[str] = field(default_factory=set)


def _reason(files: _Files, marker: str) -> str:
    try:
        if marker:
            return "" if files.size(marker) is not None else f"{files.where}/{marker} is not there yet"
        return _why_incomplete(files)
    except OSError as error:
        return f"{error.filename or files.where}: cannot be read: {error.strerror or error}"
    except ValueError as error:  # a name that no file can have
        return f"{files.where}: {error}"


def _why_incomplete(files: _Files) -> str:
    if is_tflite(files.tflite, lambda name: files.size(name) is not None):
        return _why_not_whole(files)
    model = f"{files.where}/{MODEL}"
    size = files.size(MODEL)
    if size is None:
        for other in ("saved_model.pbtxt", "saved_model.cpb"):
            if files.size(other) is not None:
                return f"{model} is not there, and {other} is not read: export {MODEL}"
        return f"{model} is not there yet"
    try:
        needs = _needs(files.local / MODEL)
    except BadWire as error:
        return f"{model} ({size} bytes) is cut short or no SavedModel: {error}"
    if not needs.meta_graphs:
        return f"{model} ({size} bytes) holds no meta graph: not all of it is there"
    for name in sorted(needs.assets):
        if files.size(f"assets/{name}") is None:
            return f"{files.where}/assets/{name} is not there, which {MODEL} names"
    if files.size(INDEX) is not None:
        return _why_shards(files)
    if needs.variables:
        return f"{files.where}/{INDEX} is not there, and {MODEL} restores variables"
    return ""


def _why_not_whole(files: _Files) -> str:
    """Of a TFLite model, which is one file."""
    size = files.size(TFLITE)
    if size is None:
        return f"{files.where}/{TFLITE} is not there yet"
    try:
        why = why_cut_short(files.local / TFLITE)
    except FileNotFoundError:  # it is elsewhere
        why = "" if size else "it is empty"
    return f"{files.where}/{TFLITE} ({size} bytes) is cut short or no TFLite model: {why}" if why else ""


def _why_shards(files: _Files) -> str:
    try:
        needed = shard_sizes(files.local / INDEX)
    except BadIndex as error:
        return f"{files.where}/{INDEX} {error}"
    except Compressed:
        # No version of TensorFlow writes this, and what it names is not known: any data has to do.
        if any(name.startswith("variables/variables.data-") for name in files.names()):
            return ""
        return f"{files.where}/{INDEX} is there, its data is not"
    for shard, size in enumerate(needed):
        data = f"variables/variables.data-{shard:05}-of-{len(needed):05}"
        there = files.size(data)
        if there is None:
            return f"{files.where}/{data} is not there; by the index it has {size} bytes"
        if there < size:
            return f"{files.where}/{data} has {there} bytes of the {size} that the index names"
    return ""


def _needs(model: Path) -> _Needs:
    """Reads the heads of the fields of SavedModel and its MetaGraphDefs, and skips what they hold."""
    needs = _Needs()
    with open(model, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, begin, end in _heads(file, 0, size):
            if number == 2:
                needs.meta_graphs += 1
                for inner, inner_begin, inner_end in _heads(file, begin, end):
                    if inner == 3:  # saver_def; 1: the tensor that takes the variables' path
                        needs.variables |= any(
                            f == 1 and e > b for f, b, e in _heads(file, inner_begin, inner_end)
                        )
                    elif inner == 6:  # asset_file_def; 2: its name below assets/
                        needs.assets.update(
                            _text(file, b, e) for f, b, e in _heads(file, inner_begin, inner_end) if f == 2
                        )
    return needs


def _heads(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Of each field of the message in file[begin:end]: its number, and where its content begins and ends."""
    for _ in range(_FIELDS_MAX):
        if begin >= end:
            return
        file.seek(begin)
        head = file.read(min(_HEAD_BYTES, end - begin))
        tag, at = varint(head, 0)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            length = 0
            _, at = varint(head, at)
        else:
            length, at = skip(head, at, kind)
        begin += at
        if not number or begin + length > end:
            raise BadWire(f"a field goes on for {length} bytes from byte {begin}, and it ends at {end}")
        yield number, begin, begin + length
        begin += length
    raise BadWire("it has too many fields")


def _text(file: BinaryIO, begin: int, end: int) -> str:
    if end - begin > _NAME_MAX_BYTES:
        raise BadWire("an asset's name is too long")
    file.seek(begin)
    return file.read(end - begin).decode("utf-8", "surrogateescape")
