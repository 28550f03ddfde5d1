"""How far a profile is, on the terminal: one bar. Where there is no terminal, a line for each stage."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console
from rich.markup import escape


class Progress:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Something whose length is not known."""
        self._show(text, None)

    def begin(self, text: str) -> None:
        """Something that tells its share."""
        self._show(text, 1.0)

    def tick(self, share: float) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=share)

    def _show(self, text: str, total: float | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape(text), total=total)
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
