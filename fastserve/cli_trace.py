"""`fastserve trace`: has a daemon record what the threads of its core do, waits, and makes a file of it for
Perfetto.

The command is here, and what it does: asking over the admin socket, and turning the daemon's file into
Chrome's format. Exit codes: 0 done, 1 it did not work, 2 the command line or the file given is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Protocol

import click

from fastserve.errors import FastServeError

_POLL_S = 0.1

Answer = dict[str, Any]


class Daemon(Protocol):
    """What is needed of AdminClient."""

    def ask(self, request: Answer, timeout_s: float | None = None) -> Answer: ...


@click.command()
@click.argument("config", type=click.Path(dir_okay=False), default="config.toml", required=False)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 600, min_open=True),
    default=5.0,
    show_default=True,
    help="How long to record. Ctrl-C ends it before, and keeps what there is.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file to write, JSON.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--socket", metavar="PATH", help="The daemon's admin socket, instead of the one that CONFIG names."
)
def trace(config: str, seconds: float, output: Path, force: bool, socket: str | None) -> None:
    """Record what the daemon that runs with CONFIG does for some seconds, and write it to a file.

    The file is opened at https://ui.perfetto.dev (which keeps it in the browser) or in chrome://tracing. It
    has a lane for each thread of the serving process: executors (fs-exec-N) with every batch, its model, rows
    and padding, and within it gather, run and encode; loaders (fs-load-N) with loads, warm-up runs and
    closes; fs-switch with publishing and retiring; the loop, and I/O threads (fs-io-N), with their turns.
    Requests are served meanwhile as always; when nothing records, nothing is written.

    Run it where the daemon runs, as its user.

    \b
    Examples:
        fastserve trace --seconds 5 -o trace.json
        fastserve trace /etc/fastserve/config.toml --seconds 60 -o switch.json --force
    """
    from fastserve.cli_admin_client import AdminClient

    click.echo(run(AdminClient.of(config, socket), seconds, output, force=force))


def run(
    daemon: Daemon,
    seconds: float,
    output: Path,
    *,
    force: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Writes the file; what to say. FastServeError when there is nothing to write."""
    from fastserve.whole_file import check_place

    check_place(output, force=force)
    daemon.ask({"verb": "trace", "seconds": seconds})
    try:
        _wait(daemon, seconds, sleep)
    except KeyboardInterrupt:
        pass  # what there is by now is wanted all the same
    except BaseException:
        with suppress(FastServeError):
            daemon.ask({"verb": "trace_end"})
        raise
    return _fetch(daemon.ask({"verb": "trace_end"}), output)


def _wait(daemon: Daemon, seconds: float, sleep: Callable[[float], None]) -> None:
    """Until it has ended by itself."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("recording"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f} of {task.total:g} s, {task.fields[events]} events"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=seconds, events=0)
        while True:
            row = daemon.ask({"verb": "trace_progress"})
            bar.update(task, completed=min(row["seconds"], seconds), events=row["events"])
            if row["finished"]:
                return
            sleep(_POLL_S)


def _fetch(done: Answer, output: Path) -> str:
    """Makes a file of the daemon's, and removes that."""
    from fastserve.trace_chrome import Recording, write_chrome
    from fastserve.trace_events import events_of
    from fastserve.version import __version__
    from fastserve.whole_file import write_whole

    source = Path(done["file"])
    try:
        records = source.read_bytes()
    except OSError as error:
        raise FastServeError(
            f"{source}, which the daemon has written, cannot be read: {error.strerror}; run this where the "
            "daemon runs, as its user"
        ) from None
    recording = Recording(
        tracks=done["tracks"],
        pid=done["pid"],
        begin_us=done["begin_us"],
        end_us=done["end_us"],
        lost=done["lost"],
        version=__version__,
        note=done["note"],
    )

    def write(file: IO[bytes]) -> None:
        text = TextIOWrapper(file, encoding="utf-8")
        write_chrome(text, recording, events_of(records))
        text.flush()
        text.detach()  # the file is whose it was

    write_whole(output, write)
    with suppress(OSError):
        source.unlink()
    seconds = (recording.end_us - recording.begin_us) / 1e6
    text = f"{done['events']} events of {seconds:.1f} s in {output}; open it at https://ui.perfetto.dev"
    if recording.lost:
        text += f"\n{recording.lost} more were overwritten before they could be read"
    return f"{text}\n{recording.note}" if recording.note else text
