"""A run on the terminal: one bar with the time left, and what is measured now."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fastserve.bench.result import Window
from fastserve.bench.units import rate_text, time_text


class Bar:
    """An Observer (runner.py) with a bar. Where there is no terminal: a line for each window."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._done_s = self._window_s = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def workload(self, name: str) -> None:
        self._name = name

    def say(self, text: str) -> None:
        """Something that takes a while and is not measured."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape(text), total=None)

    def begin(self, seconds: float) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task("", total=seconds)
        self._done_s = self._window_s = 0.0

    def window(self, what: str, seconds: float) -> None:
        self._window_s = seconds
        if self._task is not None:
            self._bar.update(self._task, description=escape(f"{self._name}: {what}"))

    def tick(self, seconds: float) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=self._done_s + min(seconds, self._window_s))

    def measured(self, window: Window) -> None:
        self._done_s += self._window_s
        if self._task is not None:
            self._bar.update(self._task, completed=self._done_s)
        if not self._console.is_terminal:
            p50, p99 = window.latency.histogram().values_at([0.5, 0.99])
            self._console.print(
                f"{self._name}: {window.target}, {window.point}: {rate_text(window.rate)}, "
                f"p50 {time_text(p50)}, p99 {time_text(p99)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
