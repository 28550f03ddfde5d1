"""Where commands put a file: whole or not at all, and over another only when told to. A leaf."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from fastserve.errors import FastServeError


class OutputError(FastServeError):
    """The file cannot be written there."""

    exit_code = 2


def check_place(path: Path, *, force: bool) -> None:
    """Before any work is done. OutputError."""
    if path.exists() and not force:
        raise OutputError(f"{path} is there already; --force replaces it")
    parent = path.parent
    if not parent.is_dir() and not (parent.name == "assets.extra" and parent.parent.is_dir()):
        raise OutputError(f"{parent}: no such directory; make it first")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Has `write` fill a file beside `path`, which then takes its name. OutputError; what `write` raises."""
    made = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            made = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(made, 0o666 & ~umask())
        os.replace(made, path)
        made = None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if made is not None:
            with suppress(OSError):
                os.unlink(made)


def umask() -> int:
    """The process's: which rights a new file does not get. It can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
