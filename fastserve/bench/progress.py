"""A run on the terminal: one bar with the time left, and what is measured now."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import TimeRemainingColumn

from fastserve.bench.result import Window
from fastserve.bench.units import rate_text, time_text
from fastserve.terminal_bar import TerminalBar


class Bar:
    """An Observer (runner.py) with a bar. Where there is no terminal: a line for each window."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = TerminalBar(console, TimeRemainingColumn(compact=True), lines=False)
        self._name = ""
        self._done_s = self._window_s = 0.0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)

    def workload(self, name: str) -> None:
        self._name = name

    def say(self, text: str) -> None:
        """Something that takes a while and is not measured."""
        self._bar.begin(text)

    def begin(self, seconds: float) -> None:
        self._bar.begin("", seconds)
        self._done_s = self._window_s = 0.0

    def window(self, what: str, seconds: float) -> None:
        self._window_s = seconds
        self._bar.say(f"{self._name}: {what}")

    def tick(self, seconds: float) -> None:
        self._bar.tick(self._done_s + min(seconds, self._window_s))

    def measured(self, window: Window) -> None:
        self._done_s += self._window_s
        self._bar.tick(self._done_s)
        if not self._console.is_terminal:
            p50, p99 = window.latency.histogram().values_at([0.5, 0.99])
            self._console.print(
                f"{self._name}: {window.target}, {window.point}: {rate_text(window.rate)}, "
                f"p50 {time_text(p50)}, p99 {time_text(p99)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
