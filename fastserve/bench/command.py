"""What `fastserve bench run`, `load` and `replay` do: workloads in, a file of results and reports out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console

from fastserve.bench.machine import command_line, machine, revision, versions
from fastserve.bench.progress import Bar
from fastserve.bench.report_html import html
from fastserve.bench.report_table import show_run
from fastserve.bench.result import SCHEMA, Result, Run, write_result
from fastserve.bench.target import Plan, Target, check_names
from fastserve.bench.workload import Load, Workload
from fastserve.bench.workload_run import Settings, run_workload
from fastserve.errors import FastServeError
from fastserve.interrupt import termination_as_interrupt

QUICK = {"window_s": 1.0, "warmup_s": 0.3, "rounds": 2}


@dataclass(frozen=True)
class Options:
    """Of the command line. out: where the JSON goes, None: nowhere."""

    targets: Sequence[Target]
    plans: Sequence[Plan]
    out: Path | None
    html: Path | None
    verify: bool = True


def console() -> Console:
    """Tables are wide: a file or pipe gets all of them."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=200)


def execute(workloads: Sequence[Workload], options: Options) -> int:
    """Measures, prints and writes; the exit code. With Ctrl-C, what was measured until then."""
    from fastserve._native.load import run as generate

    check_names([target.name for target in options.targets] + [plan.name for plan in options.plans])
    screen = console()
    started, began = datetime.now(UTC), time.monotonic()
    runs: list[Run] = []
    failed = ""
    try:
        with termination_as_interrupt(), Bar(screen) as bar:
            for workload in workloads:
                bar.workload(workload.name)
                settings = Settings(
                    options.targets, options.plans, generate, bar, bar.say, verify=options.verify
                )
                runs.append(run_workload(workload, settings))
                if not runs[-1].complete:
                    failed = runs[-1].ended
                    break
    except KeyboardInterrupt:
        failed = "interrupted"
    except FastServeError as error:
        if not runs:
            raise
        failed = str(error)
    result = Result(
        schema=SCHEMA,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        command=command_line(["fastserve", *sys.argv[1:]]),
        machine=machine(),
        versions=versions(),
        revision=revision(),
        runs=runs,
    )
    for run in runs:
        show_run(screen, run)
    if any(run.windows for run in runs):
        _write(screen, result, options)
    if failed:
        screen.print(f"[red]ended early:[/] {failed}", soft_wrap=True)
    return 130 if failed == "interrupted" else 1 if failed else 0


def _write(screen: Console, result: Result, options: Options) -> None:
    screen.print()
    if options.out is not None:
        write_result(options.out, result)
        screen.print(f"wrote {options.out}", markup=False)
    if options.html is not None:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(html(result), encoding="utf-8")
        screen.print(f"wrote {options.html}", markup=False)


def adjusted(workload: Workload, **load: Any) -> Workload:
    """`workload` with some of its [load] replaced; None leaves what is there."""
    given = {key: value for key, value in load.items() if value is not None}
    changed: Load = replace(workload.load, **given)
    return replace(workload, load=changed)
