"""What `fastserve bench switch` does: plans in, runs one after the other, a table, JSON and a picture out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from fastserve.bench.command import console
from fastserve.bench.machine import command_line, machine, revision, versions
from fastserve.bench.switch_analysis import found
from fastserve.bench.switch_ask import asked_of
from fastserve.bench.switch_load import Say, Start
from fastserve.bench.switch_plan import Load, ModelSource, Plan, Timing, Variant
from fastserve.bench.switch_plot import Panels, panels_of, plot
from fastserve.bench.switch_report import show_switches
from fastserve.bench.switch_result import SCHEMA, RunFound, SwitchResult, write_switch_result
from fastserve.bench.switch_run import Served, run_plan
from fastserve.bench.switch_versions import find_contents
from fastserve.errors import FastServeError
from fastserve.interrupt import termination_as_interrupt

_QUIET = 0.1  # of the machine: more than this in other processes, and figures are noisy


@dataclass(frozen=True)
class SwitchOptions:
    """Of the command line. base: how the main runs are served; variants: what is off in turn, each with
    `ablation_timing`; ablation: (model, xla) that they are made with. skip_runs: only the ablations."""

    models: Sequence[ModelSource]
    beside: ModelSource
    xla: Sequence[str]
    base: Variant
    variants: Sequence[Variant]
    ablation: tuple[ModelSource, str]
    timing: Timing
    ablation_timing: Timing
    load: Load
    out: Path | None
    picture: Path | None
    skip_runs: bool = False


def plans_of(options: SwitchOptions) -> tuple[list[Plan], list[Plan]]:
    """The main runs, and those with something off; before these, one with nothing off to compare with."""
    runs = [
        Plan(model, xla, options.base, options.timing, options.load)
        for model in options.models
        for xla in options.xla
    ]
    model, xla = options.ablation
    usual = replace(options.base, name="all on")
    ablations = [
        Plan(model, xla, variant, options.ablation_timing, options.load)
        for variant in ([usual, *options.variants] if options.variants else [])
    ]
    return [] if options.skip_runs else runs, ablations


def execute_switches(options: SwitchOptions) -> int:
    """Measures, prints and writes; the exit code: 0 when every main run passes, 1 when one does not."""
    from fastserve._native.load import start

    screen = console()
    started, began = datetime.now(UTC), time.monotonic()
    runs, ablations = plans_of(options)
    work = _Work(screen, options, start)
    interrupted = False
    with termination_as_interrupt():
        try:
            for plan in runs:
                work.main(plan)
            for plan in ablations:
                work.ablated(plan)
        except KeyboardInterrupt:
            interrupted = True
    result = SwitchResult(
        schema=SCHEMA,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        command=command_line(["fastserve", *sys.argv[1:]]),
        machine=machine(),
        versions=versions(),
        revision=revision(),
        timing=asdict(options.timing),
        load=asdict(options.load),
        runs=work.runs,
        ablations=work.ablations,
    )
    show_switches(screen, result)
    _write(screen, result, work.panels, options)
    interrupted = interrupted or any(run.ended == "interrupted" for run in [*work.runs, *work.ablations])
    if interrupted:
        screen.print("[red]ended early:[/] interrupted")
        return 130
    return 0 if all(run.passes for run in work.runs) else 1


class _Work:
    """Runs plans and gathers what was found; one that cannot be made is told and does not end the others."""

    def __init__(self, screen: Console, options: SwitchOptions, start: Start) -> None:
        self._screen = screen
        self._options = options
        self._start = start
        self._served: dict[Path, Served] = {}
        # By model and xla: what is measured with something off gets the load of what it is compared with.
        self._found: dict[tuple[ModelSource, str], tuple[float, ...]] = {}
        self.runs: list[RunFound] = []
        self.ablations: list[RunFound] = []
        self.panels: list[Panels] = []

    def main(self, plan: Plan) -> None:
        run, panels = self._run(plan)
        self.runs.append(run)
        if panels is not None:
            self.panels.append(panels)
        self._stop_if_interrupted(run)

    def ablated(self, plan: Plan) -> None:
        run, _ = self._run(plan)
        self.ablations.append(run)
        self._stop_if_interrupted(run)

    def _stop_if_interrupted(self, run: RunFound) -> None:
        if run.ended == "interrupted":
            raise KeyboardInterrupt

    def _run(self, plan: Plan) -> tuple[RunFound, Panels | None]:
        began = time.monotonic()
        saturation = self._found.get((plan.model, plan.xla))
        if saturation is not None:
            plan = replace(plan, load=replace(plan.load, saturation=saturation))
        with self._screen.status("") as status:

            def say(text: str) -> None:
                status.update(f"{plan.name}: {text}")
                if not self._screen.is_terminal:
                    self._screen.print(f"{plan.name}: {text}", markup=False, soft_wrap=True)

            try:
                model = self._find(plan.model, plan.load, say)
                beside = self._find(self._options.beside, plan.load, say)
                recording = run_plan(plan, model, beside, self._start, say)
            except FastServeError as error:
                self._screen.print(f"{plan.name}: {error}", markup=False, soft_wrap=True)
                return _not_made(plan, str(error), time.monotonic() - began), None
            if recording.busy_before > _QUIET:
                self._screen.print(
                    f"{plan.name}: others used {recording.busy_before:.0%} of the machine: expect noise",
                    markup=False,
                )
            say("working out what it came to")
            self._found[plan.model, plan.xla] = tuple(trace.saturation for trace in recording.traces)
            run = found(plan, recording, time.monotonic() - began)
            if run.ended:
                self._screen.print(f"{plan.name}: ended early: {run.ended}", markup=False, soft_wrap=True)
            return run, panels_of(run, recording) if self._options.picture else None

    def _find(self, source: ModelSource, load: Load, say: Say) -> Served:
        if source.path not in self._served:
            say(f"exporting {source.name}, unless it is there")
            contents = find_contents(source)
            self._served[source.path] = Served(contents, asked_of(contents, load, say))
        return self._served[source.path]


def _not_made(plan: Plan, why: str, seconds: float) -> RunFound:
    return RunFound(
        name=plan.name,
        model=plan.model.name,
        xla=plan.xla,
        without=plan.variant.name,
        about=plan.variant.about,
        options=dict(plan.variant.options),
        rows=plan.load.rows,
        seconds=round(seconds, 1),
        switches=[],
        targets=[],
        core_restarts=0,
        busy_before=0.0,
        ended=why,
    )


def _write(screen: Console, result: SwitchResult, panels: Sequence[Panels], options: SwitchOptions) -> None:
    if options.out is not None and (result.runs or result.ablations):
        write_switch_result(options.out, result)
        screen.print(f"wrote {options.out}", markup=False)
    if options.picture is not None and panels:
        plot(options.picture, panels)
        screen.print(f"wrote {options.picture}", markup=False)
