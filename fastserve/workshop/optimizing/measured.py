"""The process in which models run: the native runtime of the daemon, no TensorFlow of Python's.

Run as `python -m fastserve.workshop.optimizing.measured` by measuring.py, which may end it at any time. Reads
a pickled Job from stdin, does it, and writes pickled results to stdout: what was pickled comes from the
process that started this one.
"""

from __future__ import annotations

import itertools
import pickle
import time
from pathlib import Path

import numpy as np

from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Inputs as NativeInputs
from fastserve._native.runtime import Model, Runtime, RuntimeFailure
from fastserve.environment import tensorflow_dir
from fastserve.offline.session import may_use_gpu, refuses_one_thread, session_config
from fastserve.offline.spec import servable_spec
from fastserve.offline.tensors import STRING, Tensor, from_native, styles_for
from fastserve.savedmodel import SavedModel, Signature, read
from fastserve.savedmodel.overrides import disables_meta_optimizer
from fastserve.workshop.child import serve
from fastserve.workshop.optimizing.requests import from_rows, load_of, made_up
from fastserve.workshop.optimizing.values import Comparison, Expected, Job, Load, Pairs, Wanted

# A block of runs takes about this long, and is so many at least.
_BLOCK_US = 4000.0
_BLOCK_RUNS = 5
_LEAST_PAIRS, _MOST_PAIRS = 8, 101
_SETTLE_RUNS = 5


class Opened:
    """A version, open. Runs go through the executor that the daemon would choose."""

    def __init__(self, runtime: Runtime, path: Path, job: Job) -> None:
        self._runtime, self._path, self._job = runtime, path, job
        self._saved_model: SavedModel = read(path, job.tags)
        self._single = not may_use_gpu(job.settings)
        self._model: Model = self._open()

    def signature(self, name: str) -> Signature:
        found = self._saved_model.signature(name)
        assert found is not None
        return found

    def _open(self) -> Model:
        while True:
            as_it_is, _ = disables_meta_optimizer(str(self._job.path))
            config = session_config(
                self._job.settings, single_threaded=self._single, disable_meta_optimizer=as_it_is
            )
            signatures = map(self.signature, self._job.signatures)
            spec = servable_spec("optimized", 1, self._path, self._job.tags, signatures, config)
            try:
                return self._runtime.open(ModelSpec(spec))
            except RuntimeFailure as error:
                if not self._refused(error):
                    raise
            self._single = False

    def _refused(self, error: RuntimeFailure) -> bool:
        return self._single and refuses_one_thread(error)

    def run(self, signature: str, inputs: list[Tensor]) -> list[Tensor]:
        native = [tensor.native() for tensor in inputs]
        try:
            return [from_native(output) for output in self._model.run(signature, native)]
        except RuntimeFailure as error:
            if not self._refused(error):
                raise
        self._single = False
        self._model.close()
        self._model = self._open()
        return self.run(signature, inputs)

    def time(self, signature: str, inputs: NativeInputs, repeats: int) -> float:
        """Microseconds of a run: of the processor, where one thread does all of it, so that what else the
        machine does is not counted; otherwise until it is done, and then the shortest run says most."""
        before = time.process_time()
        took: list[float] = self._model.time(signature, inputs, repeats=repeats)
        if self._single and self._job.settings.intra_op_threads == 1:
            return (time.process_time() - before) * 1e6 / repeats
        return min(took)

    def close(self) -> None:
        self._model.close()


# ---- what the original answers -------------------------------------------------------------------


def answer(runtime: Runtime, job: Job) -> Expected:
    """RuntimeFailure when the original fails on what it is given."""
    model = Opened(runtime, job.path, job)
    loads, answers, invented = [], [], []
    for name in job.signatures:
        signature = model.signature(name)
        load = load_of(signature, job.pools, job.wanted)
        if load is None:
            invented.append(name)
            load = _invented(model, signature, job.wanted)
        loads.append(load)
        answers.append(tuple(model.run(name, inputs) for inputs in load.checked))
    model.close()
    return Expected(tuple(loads), tuple(answers), tuple(invented))


def _invented(model: Opened, signature: Signature, wanted: Wanted) -> Load:
    """Inputs that are made up and that the model takes."""
    failure: RuntimeFailure | None = None
    for style in styles_for(signature):
        load = from_rows(signature, made_up(signature, style), wanted)
        try:
            for inputs in load.checked:
                model.run(signature.name, inputs)
            return load
        except RuntimeFailure as error:
            failure = failure or error
    assert failure is not None
    raise failure


# ---- two beside each other -----------------------------------------------------------------------


def compare(runtime: Runtime, job: Job) -> Comparison:
    """All answers first: what a signature's runs do is over before another one is timed."""
    assert job.paths is not None and job.expected is not None
    expected: Expected = pickle.loads(job.expected.read_bytes())
    order = (1, 0) if job.new_first else (0, 1)
    opened = {place: Opened(runtime, job.paths[place], job) for place in order}
    old, new = opened[0], opened[1]
    worst = _worst(new, expected) if job.checked else {}
    openings: dict[tuple[str, int], tuple[Pairs, ...]] = {
        (load.signature.name, rows): (_time(old, new, load.signature.name, batches, job.seconds),)
        for load in expected.loads
        for rows, batches in load.timed.items()
    }
    old.close()
    new.close()
    return Comparison(worst, openings)


def _worst(new: Opened, expected: Expected) -> dict[str, tuple[float, float, str]]:
    worst: dict[str, tuple[float, float, str]] = {}
    for load, answers in zip(expected.loads, expected.answers, strict=True):
        name = load.signature.name
        aliases = [port.alias for port in load.signature.outputs]
        worst[name] = (0.0, 0.0, "")
        for inputs, right in zip(load.checked, answers, strict=True):
            worst[name] = max(worst[name], differences(aliases, right, new.run(name, inputs)))
    return worst


def differences(aliases: list[str], right: list[Tensor], made: list[Tensor]) -> tuple[float, float, str]:
    """Of the value that is furthest off: relative to 1 + itself, absolute, and which output. Infinite where
    values cannot be compared."""
    worst = (0.0, 0.0, "")
    for alias, a, b in zip(aliases, right, made, strict=True):
        worst = max(worst, (*_difference(a, b), alias))
    return worst


def _difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    nothing_alike = (np.inf, np.inf)
    if a.dtype != b.dtype or a.array.shape != b.array.shape:
        return nothing_alike
    if a.dtype == STRING or a.array.dtype.kind not in "fc":
        return (0.0, 0.0) if np.array_equal(a.array, b.array) else nothing_alike
    kind = np.complex128 if a.array.dtype.kind == "c" else np.float64
    one, other = a.array.astype(kind), b.array.astype(kind)
    with np.errstate(all="ignore"):
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        gap = np.where(same, 0.0, np.abs(one - other))
        if not np.isfinite(gap).all():
            return nothing_alike
        relative = gap / (1.0 + np.where(np.isfinite(one), np.abs(one), 0.0))
    return float(relative.max(initial=0.0)), float(gap.max(initial=0.0))


def _time(old: Opened, new: Opened, name: str, batches: tuple[list[Tensor], ...], seconds: float) -> Pairs:
    """Blocks of runs of each in turn: so what the machine does meanwhile favours neither. What a run of each
    block took."""
    fed = [NativeInputs([tensor.native() for tensor in inputs]) for inputs in batches]
    for model in (old, new):
        model.run(name, batches[0])  # with another executor, if that is refused only now
        model.time(name, fed[0], _SETTLE_RUNS)  # the first makes ready
    settled = [model.time(name, one, _SETTLE_RUNS) for model in (old, new) for one in fed]
    repeats = max(_BLOCK_RUNS, round(_BLOCK_US / (max(settled) + 1)))
    until = time.monotonic() + seconds
    pairs: Pairs = []
    for turn in itertools.count():
        if len(pairs) >= _MOST_PAIRS or (len(pairs) >= _LEAST_PAIRS and time.monotonic() > until):
            return pairs
        inputs = fed[turn % len(fed)]
        # Each batch in the one order, then each in the other.
        order = (old, new) if (turn // len(fed)) % 2 == 0 else (new, old)
        took = {id(model): model.time(name, inputs, repeats) for model in order}
        pairs.append((took[id(old)], took[id(new)]))
    raise AssertionError


def do(job: Job) -> Expected | Comparison | str:
    """What was found, or why nothing."""
    try:
        runtime = Runtime(
            "tensorflow", library_dir=tensorflow_dir(job.settings), op_libraries=job.settings.op_libraries
        )
        return answer(runtime, job) if job.paths is None else compare(runtime, job)
    except RuntimeFailure as error:
        why: str = error.message or error.code
        return why


def main() -> None:
    serve(lambda job: pickle.dumps(do(pickle.loads(job))))


if __name__ == "__main__":
    main()
