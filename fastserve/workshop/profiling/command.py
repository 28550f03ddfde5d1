"""`fastserve profile`, put together: opens the model, runs it, looks at its graph, and writes what was
found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from fastserve._native.runtime import Inputs, Model, Runtime, RuntimeFailure
from fastserve.bench.machine import machine
from fastserve.config import TensorFlow
from fastserve.environment import child_environment, installed_tensorflow
from fastserve.interrupt import termination_as_interrupt
from fastserve.offline.model import OpenModel
from fastserve.offline.row_wise import first_line, why_not_batched
from fastserve.offline.session import SINGLE_THREADED, refuses_one_thread
from fastserve.offline.tensors import Style
from fastserve.savedmodel import read
from fastserve.terminal_bar import TerminalBar
from fastserve.whole_file import write_whole
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.model_place import version_of
from fastserve.workshop.profiling.graph import Node, read_nodes, with_traced
from fastserve.workshop.profiling.host_ops import find_host_ops
from fastserve.workshop.profiling.inputs import Pool, choose_signature, pool_of
from fastserve.workshop.profiling.report_html import html
from fastserve.workshop.profiling.report_table import show
from fastserve.workshop.profiling.report_trace import write_trace
from fastserve.workshop.profiling.runs import Timed, time_ops, time_runs
from fastserve.workshop.profiling.sessions import (
    Target,
    open_runtime,
    open_session,
    prefers_one_thread,
)
from fastserve.workshop.profiling.steps import read_step
from fastserve.workshop.profiling.values import CostPoint, Profile, Xla, as_json
from fastserve.workshop.profiling.xla import examine_xla
from fastserve.workshop.profiling.xla_task import Task

USUAL = "the usual executor"


@dataclass(frozen=True)
class Wanted:
    """The command's arguments. `seconds`: about how long each batch size is run."""

    model: Path
    tags: tuple[str, ...]
    signature: str | None
    batch_sizes: tuple[int, ...]
    rows: Path | None
    seconds: float
    xla: bool
    settings: TensorFlow


@dataclass(frozen=True)
class Outputs:
    """Files to write, each whole or not at all. `top`: rows of the tables on the terminal."""

    json: Path | None
    html: Path | None
    trace: Path | None
    top: int


def run(wanted: Wanted, outputs: Outputs, console: Console) -> None:
    """Profiles, prints and writes. FastServeError."""
    check_places(outputs)
    with termination_as_interrupt():
        with TerminalBar(Console(stderr=True)) as progress:
            found = profile(wanted, progress)
        show(found, console, outputs.top)
        write_files(found, outputs)


def check_places(outputs: Outputs) -> None:
    """Before any work is done. WorkshopError."""
    for path in filter(None, (outputs.json, outputs.html, outputs.trace)):
        if not path.parent.is_dir():
            raise WorkshopError(f"{path.parent}: no such directory; make it first")


def write_files(found: Profile, outputs: Outputs) -> None:
    """A file that is there already is replaced when the new one is whole. OutputError."""
    if outputs.json is not None:
        text = json.dumps(as_json(found), indent=1, ensure_ascii=False)
        write_whole(outputs.json, _writer(text + "\n"))
    if outputs.html is not None:
        write_whole(outputs.html, _writer(html(found)))
    if outputs.trace is not None:
        write_whole(outputs.trace, lambda file: write_trace(file, found))


def _writer(text: str) -> Callable[[IO[bytes]], object]:
    return lambda file: file.write(text.encode())


def profile(wanted: Wanted, progress: TerminalBar) -> Profile:
    """FastServeError when the model cannot be profiled: where it is, its signature, its inputs, its runs."""
    if not wanted.settings.library_dir and installed_tensorflow() is None:
        raise WorkshopError(
            "TensorFlow, which runs the model, is not installed: pip install 'fastserve[workshop]', or "
            "fastserve alone beside any TensorFlow"
        )
    path = version_of(wanted.model)
    saved_model = read(path, wanted.tags)
    signature = choose_signature(saved_model, wanted.signature)
    pool = pool_of(saved_model, signature, wanted.rows)
    # TensorFlow reads its process-wide settings when its library is opened.
    os.environ.update(child_environment(wanted.settings))
    target = Target(str(path), wanted.tags, signature, wanted.settings)
    try:
        return _Run(wanted, target, pool, progress).profile()
    except RuntimeFailure as error:
        raise WorkshopError(f"{path}: signature {signature.name}: {first_line(error.message)}") from None


class _Run:
    """One profile: the model's sessions, and what is found out with them."""

    def __init__(self, wanted: Wanted, target: Target, pool: Pool, progress: TerminalBar) -> None:
        self._wanted = wanted
        self._target = target
        self._signature = target.signature
        self._pool = pool
        self._progress = progress
        self._notes: list[str] = []

    def profile(self) -> Profile:
        self._progress.begin("TensorFlow and the model are opened")
        runtime = open_runtime(self._wanted.settings)
        daemon, style, executor = self._open_as_the_daemon(runtime)
        traced = open_session(runtime, self._target) if executor == SINGLE_THREADED else daemon
        model = OpenModel(daemon, None, self._pool.rows)
        batched_why = why_not_batched(model, self._signature, style, "probe")
        sizes = self._batch_sizes(batched_why)
        graph, nodes = self._nodes(model, traced, style, sizes[0])
        labels = {node.name: node.label for node in nodes}
        timed = [self._time(model, daemon, traced, style, rows, labels) for rows in sizes]
        costs = self._costs(model, daemon, style, sizes, batched_why)
        daemon.close()
        traced.close()

        xla: Xla | None = None
        if self._wanted.xla:
            self._progress.begin("XLA compiles the model, in a process of its own")
            single = executor == SINGLE_THREADED
            rows, seconds = self._pool.rows, self._wanted.seconds
            task = Task(self._target, rows, style, sizes, batched_why, single, seconds)
            xla, costs = examine_xla(task, graph, costs)
        return Profile(
            path=self._target.path,
            signature=self._signature.name,
            inputs_from=self._pool.origin,
            executor=executor,
            batched_why=batched_why,
            tensorflow_version=runtime.version,
            machine=machine(),
            costs=costs,
            batches=tuple(one.profile for one in timed),
            host_ops=tuple(find_host_ops(nodes)),
            xla=xla,
            notes=tuple(self._notes),
            steps={one.profile.rows: one.step for one in timed},
            labels=labels,
        )

    # ---- sessions ------------------------------------------------------------------------

    def _open_as_the_daemon(self, runtime: Runtime) -> tuple[Model, Style, str]:
        """The session, values that it accepts, and which executor it has."""
        if prefers_one_thread(self._wanted.settings):
            try:
                session = open_session(runtime, self._target, single_threaded=True)
                return session, self._style(session), SINGLE_THREADED
            except RuntimeFailure as error:
                if not refuses_one_thread(error):
                    raise
        session = open_session(runtime, self._target)
        return session, self._style(session), USUAL

    def _style(self, session: Model) -> Style:
        style = self._pool.style
        if style is None:
            return OpenModel(session).find_style(self._signature)
        model = OpenModel(session, None, self._pool.rows)
        model.run(self._signature, model.sample(self._signature, self._signature.own_rows or 1, style))
        return style

    def _batch_sizes(self, batched_why: str) -> tuple[int, ...]:
        """Those that were asked for, where the signature takes rows at all."""
        if self._signature.any_rows:
            if batched_why:
                self._notes.append(f"the daemon runs this signature unbatched: {batched_why}")
            return tuple(sorted(set(self._wanted.batch_sizes)))
        self._notes.append(f"one size only: no input's first dimension is open ({batched_why})")
        return (self._signature.own_rows or 1,)

    def _nodes(
        self, model: OpenModel, traced: Model, style: Style, rows: int
    ) -> tuple[list[Node], list[Node]]:
        """The graph's own, and all that ran."""
        inputs = [tensor.native() for tensor in model.sample(self._signature, rows, style)]
        traced.run(self._signature.name, inputs)
        told = traced.trace(self._signature.name, inputs, graphs=True)
        graph = read_nodes(told[0])
        return graph, with_traced(graph, read_step(*told).ops)

    # ---- times ---------------------------------------------------------------------------

    def _time(
        self, model: OpenModel, daemon: Model, traced: Model, style: Style, rows: int, labels: dict[str, str]
    ) -> Timed:
        self._progress.begin(f"{rows} row{'' if rows == 1 else 's'} at once, op by op", 1.0)
        inputs = Inputs([tensor.native() for tensor in model.sample(self._signature, rows, style)])
        return time_ops(
            daemon,
            traced,
            self._signature.name,
            inputs,
            rows,
            self._wanted.seconds,
            labels,
            self._progress.tick,
            devices=not prefers_one_thread(self._wanted.settings),
        )

    def _costs(
        self, model: OpenModel, daemon: Model, style: Style, sizes: Sequence[int], batched_why: str
    ) -> tuple[CostPoint, ...]:
        """Of the sizes and the powers of two up to the largest: the daemon's buckets."""
        largest = max(sizes)
        powers = {1 << shift for shift in range(largest.bit_length()) if 1 << shift <= largest}
        points = sorted({*sizes, *powers} if len(sizes) > 1 or not batched_why else set(sizes))
        self._progress.begin("what a row costs, by batch size", 1.0)
        samples = [
            Inputs([tensor.native() for tensor in model.sample(self._signature, rows, style)])
            for rows in points
        ]
        times = time_runs(daemon, self._signature.name, samples, self._wanted.seconds, self._progress.tick)
        return tuple(map(CostPoint, points, times))
