"""TensorFlow's sessions: --tensorflow_session_config_file, the parallelism flags,
--per_process_gpu_memory_fraction, --mixed_precision, and the session_config of a platform's
configuration."""

from __future__ import annotations

from typing import Any

from google.protobuf import text_format

from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags
from fastserve.protos import message, pool
from fastserve.session_config import DECIDED_ELSEWHERE, take
from fastserve.text_proto import read_text_proto

_THREADS = (
    ("intra_op_parallelism_threads", "intra_op_threads"),
    ("inter_op_parallelism_threads", "inter_op_threads"),
)
_MAX_THREADS = 1024


def add_sessions(draft: Draft, flags: Flags) -> None:
    """[tensorflow], from the flags and their file."""
    config = message("tensorflow.ConfigProto")()
    file = flags.text("tensorflow_session_config_file")
    with draft.trying():
        if file:
            config = read_text_proto(file, "tensorflow.ConfigProto").message
    precision = flags.text("mixed_precision")
    set_precision(draft, config, precision, f"--mixed_precision={precision}")
    growth = config.gpu_options.allow_growth
    set_session(draft, config, file or "--mixed_precision")
    _add_parallelism(draft, flags)
    fraction = flags.fraction("per_process_gpu_memory_fraction")
    if not 0 <= fraction <= 1:
        draft.problem(f"--per_process_gpu_memory_fraction={fraction:g}: expected 0 to 1")
    elif fraction:
        why = "--per_process_gpu_memory_fraction"
        draft.set("tensorflow", "gpu_memory_fraction", fraction, why)
        draft.set("tensorflow", "gpu_allow_growth", growth, why)


def set_precision(draft: Draft, config: Any, precision: str, where: str) -> None:
    """mixed_precision, as TensorFlow Serving has it: an option of grappler's."""
    if precision == "bfloat16":
        options = config.graph_options.rewrite_options
        options.auto_mixed_precision_onednn_bfloat16 = options.ON
    elif precision:
        draft.note(f'{where} has no effect: there is "bfloat16", as in TensorFlow Serving')


def set_session(draft: Draft, config: Any, why: str) -> None:
    """[tensorflow] for a ConfigProto: keys where there are some, and session_config for the rest."""
    for field, key in _THREADS:
        threads = take(config, field)
        if threads is not None and not 1 <= threads <= _MAX_THREADS:
            draft.problem(
                f"{why}: {field} = {threads}: expected 1 to {_MAX_THREADS}, or 0 for our own default"
            )
        elif threads is not None:
            draft.set("tensorflow", key, threads, why)
    if config.device_count.get("GPU") == 0:
        del config.device_count["GPU"]
        draft.set("tensorflow", "device", "cpu", f"{why}: device_count of GPU is 0")
    visible = take(config, "gpu_options.visible_device_list")
    if visible:
        draft.set("tensorflow", "visible_devices", visible, why)
    growth = config.gpu_options.allow_growth
    fraction = take(config, "gpu_options.per_process_gpu_memory_fraction")
    if fraction:
        draft.set("tensorflow", "gpu_memory_fraction", fraction, why)
        draft.set("tensorflow", "gpu_allow_growth", growth, why)
    take(config, "gpu_options.allow_growth")
    level = take(config, "graph_options.optimizer_options.global_jit_level")
    take(config, "graph_options.optimizer_options.cpu_global_jit")
    if level is not None and level > 0:
        draft.set_every_model("", "xla", "cluster", f"{why}: global_jit_level")
    take(config, "allow_soft_placement")
    for field, where in DECIDED_ELSEWHERE.items():
        if take(config, field) is not None:
            draft.note(f"{why}: {field} has no effect: {where}")
    if config.ListFields():
        text = text_format.MessageToString(config, descriptor_pool=pool())
        draft.set("tensorflow", "session_config", text, why)


def _add_parallelism(draft: Draft, flags: Flags) -> None:
    both, *each = (
        flags.number(f"tensorflow_{name}_parallelism") for name in ("session", "intra_op", "inter_op")
    )
    for name, value in zip(("session", "intra_op", "inter_op"), (both, *each), strict=True):
        if not 0 <= value <= _MAX_THREADS:
            draft.problem(f"--tensorflow_{name}_parallelism={value}: expected 0 to {_MAX_THREADS}")
    if both > 0 and min(each) > 0:
        draft.problem(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    elif both > 0 and max(each) > 0:
        draft.note(
            "--tensorflow_session_parallelism has no effect beside the flags for intra_op or inter_op alone"
        )
        both = 0
    for name, value in zip(("intra_op", "inter_op"), each, strict=True):
        if value > 0 or both > 0:
            why = f"--tensorflow_{name if value > 0 else 'session'}_parallelism"
            draft.set("tensorflow", f"{name}_threads", value or both, why)
