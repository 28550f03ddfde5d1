"""How far the optimizer is, on the terminal; where there is none, a line for each step."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        elif self._task is None:
            self._task = self._bar.add_task(escape(text), total=total)
        if self._task is not None:
            self._bar.update(self._task, description=escape(text), completed=done, total=total)
