"""What a command of the workshop is doing, on the terminal: one line with a bar, gone at the end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Steps:
    """So many steps, told one after the other; nothing where there is no terminal."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)
        self._begun = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """The step before is done, this one begins."""
        self._bar.update(self._task, description=escape(text), completed=self._begun)
        self._begun += 1
