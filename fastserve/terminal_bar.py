"""What a long command is doing, on the terminal: one line with a bar, gone at the end.

Where there is no terminal, a line for each stage. Used by commands that measure, compile or rewrite.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn


class TerminalBar:
    """`time`: the column between bar and text. `lines`: stages are told where there is no terminal."""

    def __init__(self, console: Console, time: ProgressColumn | None = None, *, lines: bool = True) -> None:
        self._console = console
        self._lines = lines and not console.is_terminal
        self._bar = Progress(
            BarColumn(bar_width=24),
            time if time is not None else TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, text: str, total: float | None = None) -> None:
        """Another stage, of which `total` is all; None: nobody knows how long it is."""
        if self._stage is not None:
            self._bar.remove_task(self._stage)
        self._stage = self._bar.add_task(escape(text), total=total)
        self._tell(text)

    def tick(self, done: float) -> None:
        """So much of the stage."""
        if self._stage is not None:
            self._bar.update(self._stage, completed=done)

    def say(self, text: str) -> None:
        """What the stage is at."""
        if self._stage is not None:
            self._bar.update(self._stage, description=escape(text))

    def _tell(self, text: str) -> None:
        if self._lines:
            self._console.print(text, markup=False, highlight=False)


class Steps(TerminalBar):
    """So many steps, told one after the other."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console)
        self._total = total
        self._begun = 0

    def step(self, text: str) -> None:
        """The step before is done, this one begins."""
        if self._begun == 0:
            self.begin(text, self._total)
        else:
            self.say(text)
            self.tick(self._begun)
            self._tell(text)
        self._begun += 1
