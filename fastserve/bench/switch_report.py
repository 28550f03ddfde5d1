"""Switch runs on the terminal: one table with the bars and their verdicts, and one of what came when."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve.bench.switch_result import RunFound, Stretch, SwitchResult, TargetFound
from fastserve.bench.units import rate_text, time_text


def show_switches(console: Console, result: SwitchResult) -> None:
    if result.runs:
        console.print(_runs("Version switches under load", result.runs))
        console.print(_times(result.runs))
    if result.ablations:
        console.print(_runs("The same with something off", result.ablations))
        for run in result.ablations:
            if run.about:
                console.print(f"  {run.without}: {run.about}", markup=False)


def _runs(title: str, runs: Sequence[RunFound]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("run", "target", "load"):
        table.add_column(name)
    for name in (
        "wrong",
        "p99.9 steady",
        "in windows",
        "max steady",
        "a span's",
        "in windows",
        "worst",
        "within +5 ms",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for run in runs:
        for number, target in enumerate(run.targets):
            table.add_row(*_row(run, target, first=number == 0), end_section=number == len(run.targets) - 1)
        if not run.targets:
            table.add_row(escape(run.name), *["-"] * 10, "not measured", end_section=True)
    return table


def _row(run: RunFound, target: TargetFound, first: bool) -> list[str]:
    name = f"{escape(run.name)}, {len(run.switches)} switches" if first else ""
    bars, steady, windows = target.bars, target.steady, target.windows
    wrong = sum(target.failed.values()) + target.unanswered + target.unrecorded
    row = [name, target.target, rate_text(target.rate), _verdict(f"{wrong}", wrong == 0)]
    if steady is None or not windows:
        return [*row, *["-"] * 7, _ended(run)]
    middle = median(window.p999 for window in windows)
    ratio = middle / steady.p999
    row += [
        _text(steady.p999),
        _verdict(f"{_text(middle)} (x{ratio:.2f})", bars.p999_passes if bars else None),
        _text(steady.max),
        _text(median(target.steady_span_max)) if target.steady_span_max else "-",
        _text(median(window.max for window in windows)),
        _text(max(window.max for window in windows)),
        _verdict(_inside(target, steady), bars.max_passes if bars else None),
    ]
    return [*row, _ended(run) if bars is None else _verdict("pass" if bars.passes else "FAIL", bars.passes)]


def _inside(target: TargetFound, steady: Stretch) -> str:
    inside = target.bars.max_within if target.bars else sum(w.max <= steady.max + 5 for w in target.windows)
    return f"{inside} of {len(target.windows)}"


def _ended(run: RunFound) -> str:
    return "ended early" if run.ended else "-"


def _verdict(text: str, passes: bool | None) -> str:
    return text if passes is None else f"[green]{text}[/]" if passes else f"[red]{text}[/]"


def _text(milliseconds: float) -> str:
    return time_text(milliseconds * 1e6)


def _times(runs: Sequence[RunFound]) -> Table:
    table = Table(title="Seconds after the directory appeared: median (longest)", title_justify="left")
    table.add_column("run")
    for name in ("loading", "published", "first answer", "last old answer", "old closing", "old gone"):
        table.add_column(name, justify="right")
    for name in ("stolen, steady", "in windows"):
        table.add_column(name, justify="right")
    for run in runs:
        each = run.switches
        table.add_row(
            escape(run.name),
            _span([s.stages.get("loading") for s in each]),
            _span([s.published_s for s in each]),
            _span([s.first_answer_s for s in each]),
            _span([s.last_old_answer_s for s in each]),
            _span([s.stages.get("old closing") for s in each]),
            _span([s.gone_s for s in each]),
            *_stolen(run.targets),
        )
    return table


def _stolen(targets: Sequence[TargetFound]) -> tuple[str, str]:
    """How much of the machine its host gave to others. All targets have the same windows."""
    target = targets[0] if targets else None
    if target is None or target.steady is None or not target.windows:
        return "-", "-"
    each = [window.stolen for window in target.windows]
    return f"{target.steady.stolen:.1%}", f"{median(each):.1%} ({max(each):.1%})"


def _span(values: Sequence[float | None]) -> str:
    """Stages that are short may not be seen in each switch."""
    seen = [value for value in values if value is not None]
    return f"{median(seen):.2f} ({max(seen):.2f})" if seen else "-"
