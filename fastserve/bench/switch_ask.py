"""What the versions of a model answer, where no file says: a plain FastServe is asked, one version at a time.

Used for models of users; those of bench/models come with TensorFlow's own answers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastserve.bench.ask import ask
from fastserve.bench.requests import make_requests
from fastserve.bench.start import started
from fastserve.bench.switch_load import SIGNATURE
from fastserve.bench.switch_plan import Load
from fastserve.bench.switch_versions import Asked, Contents, draw_requests, keep_telling
from fastserve.bench.target import Plan, TargetError
from fastserve.bench.workload import Requests
from fastserve.savedmodel import read

MODEL = "model"


def asked_of(contents: Contents, load: Load, say: Callable[[str], None]) -> Asked:
    """The requests of a run and every version's answers. Raises FastServeError."""
    if contents.answers is not None:
        return draw_requests(contents, load.rows, load.bodies, load.seed)
    signature = read(contents.directories[0]).signature(SIGNATURE)
    if signature is None:
        raise TargetError(f"{contents.directories[0]}: has no signature {SIGNATURE}")
    spec = Requests(source="signature", rows=load.rows, count=load.bodies, seed=load.seed)
    requests = make_requests(spec, signature)
    output, expected = "", []
    for number, directory in enumerate(contents.directories, 1):
        say(f"asking version {number} of {len(contents.directories)} for its answers")
        plan = Plan("fastserve", "fastserve", {})
        with started(plan, MODEL, directory, SIGNATURE, {}) as (target, _):
            answers = [ask(target, MODEL, SIGNATURE, request) for request in requests]
        floats = [name for name, array in answers[0].items() if array.dtype == np.float32]
        if not floats:
            raise TargetError(f"{directory}: has no float output to tell versions by")
        output = output or floats[0]
        expected.append([answer[output].ravel().tolist() for answer in answers])
    return keep_telling(Asked(requests, output, expected))
