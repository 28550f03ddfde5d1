"""A child process of `fastserve profile` that runs the model under XLA, which may crash, hang, or want other
flags of TensorFlow's than the parent has: `python -m fastserve.workshop.profiling.xla_child`.

It is asked in a pickled Task, and answers in a pickled Answer, or text that says why there is none. Both ends
are this package's own code, of one version.
"""

from __future__ import annotations

import os
import pickle
import time

from fastserve._native.runtime import Inputs, Runtime, RuntimeFailure
from fastserve.offline.model import OpenModel
from fastserve.offline.row_wise import first_line
from fastserve.offline.xla import examine, why_not_compilable
from fastserve.savedmodel import SavedModelError, prepare
from fastserve.workshop.child import serve
from fastserve.workshop.profiling.runs import time_runs
from fastserve.workshop.profiling.sessions import open_runtime, open_session
from fastserve.workshop.profiling.xla_task import ANY_SIZE, CLUSTER, FULL, Answer, Task

# A longer text of TensorFlow's says the same again.
_WHY_CHARS = 600


def answer(task: Task) -> Answer | str:
    """What is asked for, or why it cannot be had."""
    try:
        runtime = open_runtime(task.target.settings)
        return {ANY_SIZE: _any_size, CLUSTER: _cluster, FULL: _full}[task.what](runtime, task)
    except RuntimeFailure as error:
        return first_line(error.message, _WHY_CHARS)
    except SavedModelError as error:
        return first_line(str(error), _WHY_CHARS)


def _any_size(runtime: Runtime, task: Task) -> Answer:
    session = open_session(runtime, task.target, cluster=True)
    (inputs, *_) = _samples(OpenModel(session, None, task.rows), task)
    metadata, _, _ = session.trace(task.target.signature.name, inputs, graphs=True)
    return Answer(metadata)


def _cluster(runtime: Runtime, task: Task) -> Answer:
    name = task.target.signature.name
    session = open_session(runtime, task.target, cluster=True)
    samples = _samples(OpenModel(session, None, task.rows), task)
    for inputs in samples:
        session.run(name, inputs)
    metadata, _, _ = session.trace(name, samples[0], graphs=True)
    times = time_runs(session, name, samples, task.seconds)
    return Answer(metadata, dict(zip(task.batch_sizes, times, strict=True)))


def _full(runtime: Runtime, task: Task) -> Answer | str:
    signature, target = task.target.signature, task.target
    why = why_not_compilable(signature, task.batched_why)
    if why:
        return why
    prepared = prepare(target.path, target.tags, os.path.join(task.folder, "prepared"))
    if signature.name in prepared.refused:
        return prepared.refused[signature.name]
    session = open_session(
        runtime,
        target,
        prepared=prepared.path,
        twins=prepared.compiled_outputs,
        single_threaded=task.single_threaded,
    )
    model = OpenModel(session, None, task.rows)
    findings = examine(model, signature, task.style, task.batch_sizes, lambda rows: None, time.monotonic)
    if findings.why:
        return findings.why
    times = time_runs(session, signature.name, _samples(model, task), task.seconds, compiled=True)
    return Answer(times_us=dict(zip(task.batch_sizes, times, strict=True)))


def _samples(model: OpenModel, task: Task) -> list[Inputs]:
    return [
        Inputs([tensor.native() for tensor in model.sample(task.target.signature, rows, task.style)])
        for rows in task.batch_sizes
    ]


def main() -> None:
    serve(lambda task: pickle.dumps(answer(pickle.loads(task))))


if __name__ == "__main__":
    main()
