"""Sessions on the model, opened as the daemon opens them. In the process of `fastserve profile`, and in its
children.

The daemon prefers TensorFlow's executor for one thread, which traces nothing, so ops are timed in a second
session with the usual executor; both run everything in the calling thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Model, Runtime
from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir
from fastserve.offline.session import may_use_gpu, session_config
from fastserve.offline.spec import servable_spec
from fastserve.savedmodel import Signature
from fastserve.savedmodel.overrides import disables_meta_optimizer


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
    path, signatures = prepared or target.path, [target.signature]
    spec = servable_spec("profiled", 1, path, target.tags, signatures, config, twins=twins)
    return runtime.open(ModelSpec(spec))


def prefers_one_thread(settings: TensorFlow) -> bool:
    """Whether the daemon tries the executor for one thread first."""
    return not may_use_gpu(settings)
