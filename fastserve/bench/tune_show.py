"""`fastserve tune` on the terminal: what is asked for, how it goes, what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape

from fastserve.bench.adhoc import parse_rows
from fastserve.bench.export import export
from fastserve.bench.points import quantile_label
from fastserve.bench.runner import objective
from fastserve.bench.target import TargetError
from fastserve.bench.tune import Outcome
from fastserve.bench.tune_daemon import Goal
from fastserve.bench.tune_run import Task
from fastserve.bench.tune_search import Tried
from fastserve.bench.tune_space import Candidate, name
from fastserve.bench.units import ratio_text
from fastserve.bench.workload import Requests, read_workload
from fastserve.terminal_bar import TerminalBar

_LEAST_BUDGET_S = 30.0


def task_of(
    *,
    config: Path,
    slo: str | None,
    minimise: str | None,
    rate: float | None,
    model: str,
    rows: str,
    workload: Path | None,
    budget_s: float,
    connections: int,
) -> Task:
    """The command line as a Task. Raises TargetError, ConfigError."""
    if (slo is None) == (minimise is None):
        raise TargetError("say what to tune for: --slo p99=10ms, or --minimise p99 --rate R")
    if (minimise is None) != (rate is None):
        raise TargetError("--minimise p99 and --rate R go together: latency means nothing without a rate")
    if budget_s < _LEAST_BUDGET_S:
        raise TargetError(f"--budget: {budget_s:g} s is too short to prove anything; give a minute or more")
    goal = Goal(None, rate or 0.0, connections)
    if slo is not None:
        try:
            goal = Goal(objective(slo, connections), connections=connections)
        except ValueError as error:
            raise TargetError(f"--slo {slo}: {error}") from None
    requests, recorded, signature = Requests(rows=parse_rows(rows), count=64), None, "serving_default"
    if workload is not None:
        found = read_workload(workload)
        requests, signature = found.requests, found.workload.signature
        if requests.source == "rows" and not requests.file:
            recorded = export(Path(found.workload.export)).recorded
        requests = replace(requests, count=max(requests.count, 32))
    return Task(config, model, goal, budget_s, requests, signature, recorded)


def goal_text(task: Task) -> str:
    if task.goal.slo is None:
        return f"lowest p99 at {task.goal.rate:,.10g}/s"
    quantile, _, bound_ms = task.goal.slo.objective
    return f"highest rate with {quantile_label(quantile)} <= {bound_ms:g} ms"


class Screen:
    """A tune.Watcher: a bar, the best so far, and a line for each candidate."""

    def __init__(self, task: Task, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._goal = task.goal
        self._budget_s = task.budget_s
        self._base: Candidate | None = None
        self._bar = TerminalBar(self._console, lines=False)
        self._bar.begin(f"{goal_text(task)}: starting", task.budget_s)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)

    def tried(self, tried: Tried, better: bool, used_s: float) -> None:
        first = self._base is None
        self._base = tried.candidate if self._base is None else self._base
        what = name(tried.candidate, self._base)
        score = self._goal.text(tried.score.value)
        if tried.score.note:
            said = f"[yellow]{escape(tried.score.note)}[/]"
        elif first:
            said = score
        else:
            said = f"[green]{score}[/], the best so far" if better else "[dim]not better[/]"
        self._console.print(f"{used_s:5.0f} s  {escape(what)}: {said}", soft_wrap=True)
        if better:
            self._bar.say(f"best so far: {score}, {what}")
        self._bar.tick(used_s)

    def rerun(self, rounds: int, used_s: float) -> None:
        self._console.print(f"{used_s:5.0f} s  rerun, round {rounds}: as it is and the best in turn")
        self._bar.say(f"rerun, round {rounds}")
        self._bar.tick(used_s)


def show(task: Task, outcome: Outcome, written: bool, beside: Path, console: Console | None = None) -> None:
    """What came of it."""
    console = console or Console(highlight=False)
    tried = len(outcome.best.tried)
    how = "every neighbour of the best" if outcome.best.finished else "as many as the budget allowed"
    console.print(f"\n{tried} configurations tried, {how}, in {outcome.seconds:.0f} s")
    if not outcome.changes:
        console.print(f"None that was tried is better; {task.file} is left as it is.", soft_wrap=True)
    else:
        base = outcome.best.tried[0].candidate
        console.print(f"best found: {escape(name(outcome.best.candidate, base))}", soft_wrap=True)
        for label, scores in (("as it was", outcome.before), ("the best ", outcome.after)):
            console.print(f"rerun, {label}: {', '.join(task.goal.text(score) for score in scores)}")
        if outcome.ratio is not None:
            console.print(f"better by a factor of {ratio_text(outcome.ratio)}, 95 % interval")
        if not outcome.proved:
            console.print(
                f"[yellow]None proved to be better beyond the noise[/]; {task.file} is left as it is."
            )
        elif written:
            console.print(f"[green]written to {task.file}[/]")
        else:
            console.print(f"[green]proved[/]; {task.file} is left as it is (--dry-run)")
    console.print(f"what was tried: {beside}", soft_wrap=True)
