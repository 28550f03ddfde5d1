"""`fastserve warmup record`: asks a daemon to keep the next requests of a model, waits, and fetches the
file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastserve.errors import FastServeError
from fastserve.whole_file import check_place, write_whole

_POLL_S = 0.2

Answer = dict[str, Any]


class Daemon(Protocol):
    """What is needed of AdminClient."""

    def ask(self, request: Answer, timeout_s: float | None = None) -> Answer: ...


@dataclass(frozen=True)
class Recording:
    """The command's arguments."""

    model: str
    records: int
    sampling_rate: float
    timeout_s: float


def run(
    daemon: Daemon,
    wanted: Recording,
    output: Path,
    *,
    force: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Writes the file; what to say. FastServeError when there is nothing to write."""
    check_place(output, force=force)
    daemon.ask(
        {
            "verb": "record",
            "model": wanted.model,
            "records": wanted.records,
            "sampling_rate": wanted.sampling_rate,
            "timeout_s": wanted.timeout_s,
        }
    )
    try:
        _wait(daemon, wanted, clock, sleep)
    except KeyboardInterrupt:
        pass  # what has come by now is wanted all the same
    except BaseException:
        with suppress(FastServeError):
            daemon.ask({"verb": "record_end", "model": wanted.model})
        raise
    done = daemon.ask({"verb": "record_end", "model": wanted.model})
    return _fetch(wanted, done, output)


def _wait(
    daemon: Daemon, wanted: Recording, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Until all are there, or time is up."""
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    until = clock() + wanted.timeout_s
    with bar:
        task = bar.add_task(f"requests of {escape(wanted.model)}", total=wanted.records)
        while clock() < until:
            row = daemon.ask({"verb": "record_progress", "model": wanted.model})
            bar.update(task, completed=row["records"])
            if row["finished"]:
                return
            if row["failed"]:
                raise FastServeError(f"the daemon cannot write them to {row['path']}: {row['error']}")
            sleep(_POLL_S)


def _fetch(wanted: Recording, done: Answer, output: Path) -> str:
    """Copies the daemon's file, and removes it."""
    if done["failed"] or (done["error"] and not done["records"]):
        raise FastServeError(f"the daemon could not write them to {done['file']}: {done['error']}")
    if not done["records"]:
        raise FastServeError(
            f"no request of {wanted.model} was answered in {wanted.timeout_s:g} s; send some meanwhile, or "
            "wait longer with --timeout"
        )
    source = Path(done["file"])
    try:
        with open(source, "rb") as recorded:
            write_whole(output, lambda file: shutil.copyfileobj(recorded, file))
    except OSError as error:
        raise FastServeError(
            f"{source}, which the daemon has written, cannot be read: {error.strerror}; run this where the "
            "daemon runs, as its user"
        ) from None
    with suppress(OSError):
        source.unlink()
        source.parent.rmdir()
    text = f"{done['records']} requests of {wanted.model} in {output}"
    if done["records"] < wanted.records:
        text += f"; {wanted.records} were wanted, but time was up"
    return text
