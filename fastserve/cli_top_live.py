"""Shows a daemon's status again and again, and does what keys say, until q or Ctrl-C.

Used by cli_top. One thread: it waits for a key or for the next second, whichever comes first.
"""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import click
from rich.console import Console
from rich.live import Live

from fastserve.cli_top_client import Answer
from fastserve.cli_top_show import SORTS, Screen, top_view
from fastserve.errors import FastServeError

_KEPT = 600  # points, a second each

# What a terminal sends for keys that are more than a letter.
_ARROWS = {"\x1b[A": "k", "\x1b[B": "j", "\x1bOA": "k", "\x1bOB": "j"}


class Monitor(Protocol):
    """What is shown; MonitorClient is one."""

    def status(self) -> Answer: ...

    def history(self) -> list[Answer]: ...


class Keys:
    """Keys from the terminal, one at a time, unseen and without Enter. Without a terminal there are none."""

    def __init__(self, file: int | None = None) -> None:
        self._file = sys.stdin.fileno() if file is None else file
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Keys:
        if os.isatty(self._file):
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """The next key, or "" when none comes in that time."""
        if self._before is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._file], [], [], seconds)[0]:
            return ""
        typed = os.read(self._file, 16).decode(errors="replace")
        return _ARROWS.get(typed, typed[:1])


def print_json(client: Monitor, interval_s: float, *, once: bool) -> None:
    """status.json, one object a line, until Ctrl-C."""
    try:
        while True:
            click.echo(json.dumps(client.status()))
            if once:
                return
            time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def print_once(client: Monitor, console: Console | None = None) -> None:
    """All of it, however long that is."""
    console = console or Console(highlight=False)
    status, history = client.status(), client.history()
    console.print(top_view(status, history, Screen(console.width, None)))


def watch(
    client: Monitor,
    interval_s: float,
    *,
    console: Console | None = None,
    keys: Keys | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Shows it until q or Ctrl-C. FastServeError when there is no daemon at first."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        print_once(client, console)
        return
    status, history = client.status(), client.history()
    problem, sort, scroll = "", 0, 0
    try:
        with (
            keys or Keys() as pressed,
            Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live,
        ):
            next_s = clock() + interval_s
            while True:
                screen = Screen(console.width, console.height, SORTS[sort], scroll, problem)
                live.update(top_view(status, history, screen), refresh=True)
                key = pressed.wait(max(0.0, next_s - clock()))
                if key in ("q", "Q", "\x03"):
                    return
                if key == "s":
                    sort, scroll = (sort + 1) % len(SORTS), 0
                elif key in ("j", "k"):
                    last = max(0, len(status.get("models") or []) - 1)
                    scroll = min(max(scroll + (1 if key == "j" else -1), 0), last)
                if clock() < next_s:
                    continue
                next_s = clock() + interval_s
                try:
                    status, problem = client.status(), ""
                except FastServeError as error:  # it may come back
                    problem = str(error)
                else:
                    history = [*history[-_KEPT:], _point(status)]
    except KeyboardInterrupt:
        return


def _point(status: Answer) -> Answer:
    """A status document as a point of the history."""
    return {"time_s": status.get("time_s"), **(status.get("total") or {})}
