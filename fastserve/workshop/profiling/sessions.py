"""Sessions on the model, opened as the daemon opens them. In the process of `fastserve profile`, and in its
children.

The daemon prefers TensorFlow's executor for one thread, which traces nothing, so ops are timed in a second
session with the usual executor; both run everything in the calling thread.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Model, Runtime, RuntimeFailure
from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir
from fastserve.offline.session import may_use_gpu, session_config
from fastserve.offline.spec import signature_spec
from fastserve.savedmodel import Signature
from fastserve.savedmodel.overrides import disables_meta_optimizer

# What TensorFlow's executor for one thread says of graphs that it cannot run.
_REFUSED = "ingle-threaded executor"


@dataclass(frozen=True)
class Target:
    """What is opened: a signature of the SavedModel in `path`, with the settings of [tensorflow]."""

    path: str
    tags: tuple[str, ...]
    signature: Signature
    settings: TensorFlow


def open_runtime(settings: TensorFlow) -> Runtime:
    """StartError where TensorFlow is not there; RuntimeFailure where it cannot be opened."""
    return Runtime("tensorflow", library_dir=tensorflow_dir(settings), op_libraries=settings.op_libraries)


def open_session(
    runtime: Runtime,
    target: Target,
    *,
    single_threaded: bool = False,
    cluster: bool = False,
    prepared: str = "",
    twins: Mapping[str, tuple[str, ...]] | None = None,
) -> Model:
    """`prepared`: the directory of a rewritten model, whose `twins` are compiled. RuntimeFailure."""
    as_it_is, _ = disables_meta_optimizer(target.path)
    config = session_config(
        target.settings,
        single_threaded=single_threaded,
        cluster=cluster,
        disable_meta_optimizer=as_it_is,
    )
    twin = (twins or {}).get(target.signature.name)
    spec = {
        "model": "profiled",
        "version": 1,
        "path": prepared or target.path,
        "runtime": "tensorflow",
        "tags": list(target.tags),
        "session_config": base64.b64encode(config).decode(),
        "plain_config": None,
        "signatures": [signature_spec(target.signature, twin)],
    }
    return runtime.open(ModelSpec(spec))


def prefers_one_thread(settings: TensorFlow) -> bool:
    """Whether the daemon tries the executor for one thread first."""
    return not may_use_gpu(settings)


def refuses_one_thread(error: RuntimeFailure) -> bool:
    """Whether the graph is one that it cannot run."""
    return _REFUSED in error.message
