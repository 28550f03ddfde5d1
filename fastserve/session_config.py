"""[tensorflow] session_config: further settings of TensorFlow's sessions, a ConfigProto as text.

What may stand there, for the configuration's check, the trial that opens sessions, and the command line that
takes TensorFlow Serving's files. Pure functions.
"""

from __future__ import annotations

from typing import Any

from fastserve.errors import ConfigError
from fastserve.protos import message
from fastserve.text_proto import parse_text_proto

# Fields that are decided elsewhere, and where.
DECIDED_ELSEWHERE = {
    "intra_op_parallelism_threads": "[tensorflow] intra_op_threads says this",
    "inter_op_parallelism_threads": "[tensorflow] inter_op_threads says this",
    "session_inter_op_thread_pool": "a run stays in its executor's thread, a load in its loader's",
    "use_per_session_threads": "a run stays in its executor's thread",
    "allow_soft_placement": "it is always on",
    "gpu_options.per_process_gpu_memory_fraction": "[tensorflow] gpu_memory_fraction says this",
    "gpu_options.allow_growth": "[tensorflow] gpu_allow_growth says this",
    "gpu_options.visible_device_list": "[tensorflow] visible_devices says this",
    "graph_options.optimizer_options.global_jit_level": 'xla = "cluster" in [[models]] says this',
    "graph_options.optimizer_options.cpu_global_jit": 'xla = "cluster" in [[models]] says this',
    "experimental.executor_type": "the trial chooses it by the graph",
}


def parse_session_config(text: str) -> Any:
    """The ConfigProto. ConfigError says what is wrong with it."""
    if not text:
        return message("tensorflow.ConfigProto")()
    config = parse_text_proto(text, "tensorflow.ConfigProto", "its text").message
    problems = [
        f"{field}: {where}" for field, where in DECIDED_ELSEWHERE.items() if take(config, field, keep=True)
    ]
    if problems:
        raise ConfigError(problems)
    return config


def take(config: Any, field: str, *, keep: bool = False) -> Any:
    """The value of a field, "gpu_options.allow_growth" say, which is cleared; None when it is not set. A
    parent that nothing is left of goes, too."""
    name, _, rest = field.partition(".")
    if rest:
        if not config.HasField(name):
            return None
        inner = getattr(config, name)
        value = take(inner, rest, keep=keep)
        if not keep and not inner.ListFields():
            config.ClearField(name)
        return value
    value = next((value for known, value in config.ListFields() if known.name == name), None)
    if value is not None and not keep:
        value = list(value) if not isinstance(value, int | float | str) else value
        config.ClearField(name)
    return value
