"""What was found, and what changed, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve.bench.compare import BETTER, SAME, WORSE, Change, compare_targets
from fastserve.bench.report_rows import base_target, rows
from fastserve.bench.result import Result, Run
from fastserve.bench.units import rate_text, ratio_text, value_text

DISTURBED = 0.1
_COLORS = {BETTER: "green", WORSE: "red", SAME: "dim"}
_COLUMNS = ("offered", "answers", "p50", "p90", "p99", "p99.9", "max", "CPU each", "memory", "failed")


def show(console: Console, result: Result) -> None:
    """One table for each workload, and the targets compared."""
    for run in result.runs:
        show_run(console, run)


def show_run(console: Console, run: Run) -> None:
    table = Table(title=f"{escape(run.title)}", title_justify="left", title_style="bold", box=None)
    table.add_column("load")
    table.add_column("target")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row in rows(run):
        if last and row.point != last:
            table.add_section()
        table.add_row(escape(row.point) if row.point != last else "", escape(row.target), *row.cells)
        last = row.point
    console.print()
    console.print(table)
    for found in run.found:
        refused = f", refused at {rate_text(found.refused)}" if found.refused else ""
        limit = f" ({found.limit})" if found.limit else ""
        console.print(
            f"{escape(found.target)}: {found.objective} <= {found.bound_ms:g} ms up to "
            f"[bold]{rate_text(found.rate)}[/]{refused}{escape(limit)}"
        )
    base = base_target(run)
    if base is not None:
        found_changes = [
            c for c in compare_targets(run, base) if c.statistic in ("rate", "p50", "p99", "cpu")
        ]
        if found_changes:
            console.print()
            console.print(_ratios(f"compared with {base}", found_changes))
    busy = [window for window in run.windows if (window.others or 0.0) > DISTURBED]
    if busy:
        console.print(
            f"[yellow]others used more than {DISTURBED:.0%} of the machine in {len(busy)} of "
            f"{len(run.windows)} windows[/]"
        )
    late = [window for window in run.windows if "generator full" in window.failed]
    if late:
        console.print(f"[yellow]the load generator was full in {len(late)} windows[/]")
    if not run.complete:
        console.print(f"[yellow]not complete: {escape(run.ended)}[/]")


def _ratios(title: str, found: Sequence[Change]) -> Table:
    names = [name for name in ("rate", "p50", "p99", "cpu") if any(c.statistic == name for c in found)]
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None)
    table.add_column("load")
    table.add_column("target")
    for name in names:
        table.add_column("CPU each" if name == "cpu" else name, justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, Change]] = {}
    for change in found:
        lines.setdefault((change.point, change.target), {})[change.statistic] = change
    for (point, target), cells in lines.items():
        texts = [_colored(cells[name]) if name in cells else "" for name in names]
        table.add_row(escape(point), escape(target), *texts)
    return table


def _colored(change: Change) -> str:
    color = _COLORS.get(change.verdict)
    text = ratio_text(change.ratio)
    return f"[{color}]{text}[/]" if color else text


def show_changes(
    console: Console, found: Sequence[Change], before: Path, after: Path, confidence: float
) -> None:
    """What `fastserve bench compare` found."""
    console.print(f"before: {before}\nafter:  {after}", markup=False)
    workload = ""
    table: Table | None = None
    last = ("", "")
    for change in found:
        if change.workload != workload or table is None:
            if table is not None:
                console.print(table)
            workload = change.workload
            table = Table(title=f"\n{escape(workload)}", title_justify="left", title_style="bold", box=None)
            for name in ("load", "target", "of"):
                table.add_column(name)
            for name in ("before", "after", f"ratio ({confidence:.0%} interval)"):
                table.add_column(name, justify="right", no_wrap=True)
            table.add_column("")
            last = ("", "")
        place = (change.point, change.target)
        first = place != last
        if first and last[0]:
            table.add_section()
        color = _COLORS.get(change.verdict, "yellow")
        note = f" ({change.note})" if change.note and first else ""
        table.add_row(
            escape(change.point) if first else "",
            escape(change.target) if first else "",
            change.statistic,
            value_text(change.statistic, change.before),
            value_text(change.statistic, change.after),
            ratio_text(change.ratio),
            f"[{color}]{change.words}[/]{escape(note)}",
        )
        last = place
    if table is not None:
        console.print(table)
