"""A child process of `fastserve profile` that runs the model under XLA, which may crash, hang, or want other
flags of TensorFlow's than the parent has: `python -m fastserve.workshop.profiling.xla_child`.

Reads one pickled Task from its standard input, and writes a pickled Answer to its standard output. Both ends
are this package's own code, of one version.
"""

from __future__ import annotations

import os
import pickle
import sys
import time

from fastserve._native.runtime import Inputs, Runtime, RuntimeFailure
from fastserve.offline.model import OpenModel
from fastserve.offline.row_wise import first_line
from fastserve.offline.xla import examine, why_not_compilable
from fastserve.savedmodel import SavedModelError, prepare
from fastserve.workshop.profiling.runs import time_runs
from fastserve.workshop.profiling.sessions import open_runtime, open_session
from fastserve.workshop.profiling.xla_task import Answer, Task

# A longer text of TensorFlow's says the same again.
_WHY_CHARS = 600


def answer(task: Task) -> Answer:
    runtime = open_runtime(task.target.settings)
    if task.what == "clusters":
        return _clusters(runtime, task)
    made = Answer()
    _measure_clusters(runtime, task, made)
    _measure_full(runtime, task, made)
    return made


def _clusters(runtime: Runtime, task: Task) -> Answer:
    session = open_session(runtime, task.target, cluster=True)
    signature = task.target.signature
    model = OpenModel(session, None, task.rows)
    inputs = [tensor.native() for tensor in model.sample(signature, task.batch_sizes[0], task.style)]
    metadata, _, _ = session.trace(signature.name, inputs, graphs=True)
    return Answer(metadata=metadata)


def _measure_clusters(runtime: Runtime, task: Task, made: Answer) -> None:
    signature = task.target.signature
    try:
        session = open_session(runtime, task.target, cluster=True)
        model = OpenModel(session, None, task.rows)
        samples = _samples(model, task)
        for inputs in samples:
            session.run(signature.name, inputs)
        made.metadata, _, _ = session.trace(signature.name, samples[0], graphs=True)
        times = time_runs(session, signature.name, samples, task.seconds)
        made.cluster_us = dict(zip(task.batch_sizes, times, strict=True))
        model.close()
    except RuntimeFailure as error:
        made.cluster_why = first_line(error.message, _WHY_CHARS)


def _measure_full(runtime: Runtime, task: Task, made: Answer) -> None:
    signature, target = task.target.signature, task.target
    made.full_why = why_not_compilable(signature, task.batched_why)
    if made.full_why:
        return
    try:
        prepared = prepare(target.path, target.tags, os.path.join(task.folder, "prepared"))
        if signature.name in prepared.refused:
            made.full_why = prepared.refused[signature.name]
            return
        session = open_session(
            runtime, target, prepared=prepared.path, twins=prepared.compiled_outputs, single_threaded=True
        )
        model = OpenModel(session, None, task.rows)
        findings = examine(model, signature, task.style, task.batch_sizes, lambda rows: None, time.monotonic)
        made.full_why = findings.why
        if not made.full_why:
            samples = _samples(model, task)
            times = time_runs(session, signature.name, samples, task.seconds, compiled=True)
            made.compiled_us = dict(zip(task.batch_sizes, times, strict=True))
        model.close()
    except (RuntimeFailure, SavedModelError) as error:
        made.full_why = first_line(str(error), _WHY_CHARS)


def _samples(model: OpenModel, task: Task) -> list[Inputs]:
    return [
        Inputs([tensor.native() for tensor in model.sample(task.target.signature, rows, task.style)])
        for rows in task.batch_sizes
    ]


def main() -> None:
    # What libraries print to the standard output is no answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        made: Answer | str = answer(pickle.load(sys.stdin.buffer))
    except RuntimeFailure as error:
        made = first_line(error.message, _WHY_CHARS)
    pickle.dump(made, answers)
    answers.flush()
    # TensorFlow's threads and static destructors have nothing left to do.
    os._exit(0)


if __name__ == "__main__":
    main()
