"""`fastserve optimize`, put together: reads a version, tries the passes one after the other, writes what is
better.

Called on the main thread of a process of its own. Until the end, everything lies in a directory that no
server looks at, which goes with whatever interrupts this.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastserve.bench.machine import machine
from fastserve.config import TensorFlow
from fastserve.environment import installed_tensorflow
from fastserve.savedmodel import SavedModel, read
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.model_place import version_of
from fastserve.workshop.optimizing.graph import Graph
from fastserve.workshop.optimizing.measuring import (
    Failed,
    Measuring,
    faster,
    largest,
    timings_of,
    verdict,
    within,
)
from fastserve.workshop.optimizing.package import Package, stored_bytes
from fastserve.workshop.optimizing.requests import find_pools
from fastserve.workshop.optimizing.source import read_source
from fastserve.workshop.optimizing.values import Job, Outcome, PassResult, Wanted
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.registry import PASSES
from fastserve.workshop.version_directory import new_version

# Within the directory that becomes a version: gone before it does.
_WORK = ".work"
# How often passes are tried again at most.
_AGAIN = 2


# A request, and several that the server has put together.
BATCH_SIZES = (100, 400)


@dataclass(frozen=True)
class Task:
    """The command's arguments. `seconds`: of timing, for each pass and batch size."""

    model: Path
    out: Path
    version: int | None = None
    tags: tuple[str, ...] = ("serve",)
    signatures: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    rows: Path | None = None
    requests: tuple[Path, ...] = ()
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    user_inputs: tuple[str, ...] = ()
    tolerance: float = 1e-5
    freeze_bytes: int = 1 << 20
    half: bool = False
    seconds: float = 1.5
    settings: TensorFlow = field(default_factory=TensorFlow)


def chosen_passes(only: Sequence[str], without: Sequence[str], half: bool = False) -> list[Pass]:
    """In the order in which they are tried; those that are approximate if they are asked for: by `half`, or
    by name. WorkshopError names those that there are."""
    names = [each.name for each in PASSES]
    for name in [*only, *without]:
        if name not in names:
            raise WorkshopError(f"there is no pass {name}; there are: {', '.join(names)}")
    wanted = only or [each.name for each in PASSES if half or not each.approximate]
    return [each for each in PASSES if each.name in wanted and each.name not in without]


def steps_of(task: Task) -> int:
    """As many as `run` tells."""
    return len(chosen_passes(task.only, task.without, task.half)) + 4


def run(task: Task, step: Callable[[str], None]) -> Outcome:
    """`step`: what is done now. WorkshopError and its kin."""
    try:
        return _run(task, step)
    except OSError as error:
        raise WorkshopError(f"{error.filename or task.out}: {error.strerror or error}") from error


def _run(task: Task, step: Callable[[str], None]) -> Outcome:
    passes = chosen_passes(task.only, task.without, task.half)
    environment = dict(os.environ)
    # For TensorFlow here, which only takes graphs apart: no notes about the processor, and no memory of a
    # GPU.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    path = version_of(task.model)
    saved_model = read(path, task.tags)
    _check_inputs(task, saved_model)
    step("reading the model")
    wanted = Wanted(task.rows, task.requests, task.batch_sizes, task.user_inputs)
    pools = find_pools(path, saved_model, wanted)
    source = read_source(path, task.tags, task.signatures)
    package = Package(source)
    names = tuple(source.graphs)
    job = Job(task.tags, path, pools, wanted, names, task.settings, task.seconds)
    with new_version(task.out, task.version) as making:
        work = making.path / _WORK
        work.mkdir()
        measuring = Measuring(job, work, environment)
        step("running the original")
        expected = measuring.original()
        trying = _Trying(task, measuring, package, work, path, source.graphs)
        for each in passes:
            step(f"trying {each.name}")
            if each.approximate and expected.made_up:
                trying.skip(each, "made-up inputs do not show how far answers are off")
            else:
                trying.attempt(each)
        step("trying again")
        trying.again(passes)
        step("comparing with the original")
        # Written before what lies in `work` goes: variables are linked.
        package.write(trying.graphs, making.path)
        try:
            comparison = measuring.compare(path, making.path)
        except Failed as error:
            raise WorkshopError(f"{task.model}: the result cannot be compared with it: {error}") from None
        shutil.rmtree(work)
        total = timings_of(comparison)
        why = within(comparison, task.tolerance)
        better = why is None and faster(total) and any(result.kept for result in trying.results)
        outcome = Outcome(
            task.model,
            None,
            pools.origin if len(expected.made_up) < len(names) else "made-up inputs",
            expected.made_up,
            task.tolerance,
            tuple(trying.results),
            total,
            largest(comparison),
            _tensorflow(),
            str(machine()["processor"]),
            (stored_bytes(path), stored_bytes(making.path)),
        )
        if not better:
            raise NothingGained(outcome, why)
    assert making.version is not None
    return replace(outcome, path=task.out / str(making.version))


class NothingGained(Exception):
    """No version was written: what was tried, and why that is not enough."""

    def __init__(self, outcome: Outcome, why: str | None) -> None:
        super().__init__(why or "no pass made the model faster here")
        self.outcome = outcome


def _check_inputs(task: Task, saved_model: SavedModel) -> None:
    there = sorted({port.alias for signature in saved_model.signatures for port in signature.inputs})
    for name in task.user_inputs:
        if name not in there:
            raise WorkshopError(
                f"--user-input {name}: the model has no such input; it has {', '.join(there)}"
            )


def _tensorflow() -> str:
    found = installed_tensorflow()
    return found.version if found else ""


class _Trying:
    """The graphs as they are by now, and what each pass has given. On disk and in memory is what they need
    and what is being tried, and no more."""

    def __init__(
        self,
        task: Task,
        measuring: Measuring,
        package: Package,
        work: Path,
        original: Path,
        graphs: dict[str, Graph],
    ) -> None:
        self.graphs = graphs
        self.results: list[PassResult] = []
        self._options = Options(task.freeze_bytes, task.user_inputs)
        self._tolerance = task.tolerance
        self._measuring = measuring
        self._package = package
        self._work = work
        # What the graphs are written as.
        self._path = original
        self._written = 0
        # By passes that others may make worth a try: how many were kept when they were tried.
        self._worth_a_try: dict[str, int] = {}
        self._kept = 0

    def skip(self, each: Pass, why: str) -> None:
        self.results.append(_dropped(each, 0, why))

    def attempt(self, each: Pass) -> None:
        self.results.append(self._try(each))

    def again(self, passes: Sequence[Pass]) -> None:
        """Those that found nothing or were no faster, and those that clear up, where others were kept since:
        what they have made may be what was missing."""
        for _ in range(_AGAIN):
            before = self._kept
            for each in passes:
                if self._worth_a_try.get(each.name, self._kept) < self._kept:
                    self._try_again(each)
            if self._kept == before:
                return

    def _try_again(self, each: Pass) -> None:
        place = max(i for i, result in enumerate(self.results) if result.name == each.name)
        before, result = self.results[place], self._try(each)
        if result.kept:  # it came after those that are listed
            self.results.append(result)
        if result.kept and not before.kept:
            del self.results[place]
        elif not before.kept:
            self.results[place] = result

    def _try(self, each: Pass) -> PassResult:
        self._worth_a_try.pop(each.name, None)
        changed = {name: graph.copy() for name, graph in self.graphs.items()}
        try:
            changes = sum(each.run(graph, self._options) for graph in changed.values())
        except Exception as error:  # a kernel's, TensorFlow's own rewriter's
            return _dropped(each, 0, f"could not be tried: {_first_line(error)}")
        if not changes:
            self._worth_a_try[each.name] = self._kept
            return _dropped(each, 0, "found nothing to change")
        folder = self._work / f"{self._written}-{each.name}"
        self._written += 1
        result = self._measure(each, changes, changed, folder)
        if result.kept:
            self._remove(self._path)
            self.graphs, self._path = changed, folder
            self._kept += 1
            if each.lays_ground:
                self._worth_a_try[each.name] = self._kept
        else:
            self._remove(folder)
        self._package.keep(self.graphs)
        return result

    def _measure(self, each: Pass, changes: int, changed: Mapping[str, Graph], folder: Path) -> PassResult:
        try:
            self._package.write(changed, folder, linked=True)
        except (OSError, WorkshopError):  # the place is at fault
            raise
        except Exception as error:
            return _dropped(each, changes, f"could not be tried: {_first_line(error)}")
        try:
            comparison = self._measuring.compare(self._path, folder)
        except Failed as error:
            return _dropped(each, changes, f"does not run: {error}")
        timings, why = timings_of(comparison), within(comparison, self._tolerance)
        kept = False
        if why is None:
            kept, why = verdict(timings, each.lays_ground)
            if not kept:
                self._worth_a_try[each.name] = self._kept
        nodes = sum(len(graph.nodes) for graph in changed.values())
        return PassResult(each.name, each.about, changes, kept, why, timings, largest(comparison), nodes)

    def _remove(self, path: Path) -> None:
        if path.parent == self._work:
            shutil.rmtree(path, ignore_errors=True)


def _dropped(each: Pass, changes: int, why: str) -> PassResult:
    return PassResult(each.name, each.about, changes, False, why)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
