"""TensorFlow's session settings as the bytes of a ConfigProto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastserve._native.runtime import RuntimeFailure
from fastserve.config import TensorFlow
from fastserve.session_config import parse_session_config

SINGLE_THREADED = "SINGLE_THREADED_EXECUTOR"
# What it says of graphs that it cannot run.
_REFUSED = "ingle-threaded executor"


def session_config(
    settings: TensorFlow,
    *,
    single_threaded: bool,
    cluster: bool = False,
    disable_meta_optimizer: bool = False,
) -> bytes:
    """A serialized ConfigProto.

    `single_threaded`: ops of a run go one after the other through an executor that keeps no books about what
    runs in parallel. All runs here stay in their thread anyway, and each is some microseconds cheaper; but
    graphs with TensorFlow 1's control flow or reference variables, or over several devices, cannot use it.
    `cluster`: XLA compiles what parts of the graph it can. `disable_meta_optimizer`: the graph stays as it is
    in the file.
    """
    config = parse_session_config(settings.session_config)
    config.intra_op_parallelism_threads = settings.intra_op_threads
    config.inter_op_parallelism_threads = settings.inter_op_threads
    # Ops without a kernel for the device they were exported for run on another.
    config.allow_soft_placement = True
    if settings.device == "cpu":
        config.device_count["GPU"] = 0
    config.gpu_options.allow_growth = settings.gpu_allow_growth
    if settings.gpu_memory_fraction is not None:
        config.gpu_options.per_process_gpu_memory_fraction = settings.gpu_memory_fraction
    if single_threaded:
        config.experimental.executor_type = SINGLE_THREADED
    if cluster:
        options: Any = config.graph_options.optimizer_options
        options.global_jit_level = options.ON_2
        options.cpu_global_jit = True
    if disable_meta_optimizer:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
    data: bytes = config.SerializeToString(deterministic=True)
    return data


def refuses_one_thread(error: RuntimeFailure) -> bool:
    """Whether the executor for one thread cannot run the graph."""
    return _REFUSED in error.message


def may_use_gpu(settings: TensorFlow, devices: Path = Path("/dev")) -> bool:
    """Whether sessions with these settings may place ops on a GPU."""
    if settings.device != "auto":
        return settings.device == "gpu"
    return any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists()
