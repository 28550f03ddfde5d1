"""What a version's directory may bring along beside the model: batching_params.pbtxt and
saved_model_config.pb.

Read by the manager's work before a version's trial, and by the trial. Knows TensorFlow Serving's names and
words for them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from msgspec.structs import replace

from fastserve.batching_parameters import version_batching
from fastserve.config import Model
from fastserve.errors import ConfigError, ModelError
from fastserve.protos import message

_SAVED_MODEL_CONFIG = os.path.join("assets.extra", "saved_model_config.pb")
# What of a SavedModelConfig says nothing to TensorFlow's own library.
_WITHOUT_EFFECT = ("remote_op_remap_config", "batch_op_rewriter_config")


def with_version_batching(model: Model, path: str) -> tuple[Model, list[str]]:
    """`model` with the batching parameters that the version in `path` brings along, where it is asked for
    them and does, and what of them has no effect. ModelError when they cannot be used."""
    name = model.batching.version_file
    file = os.path.join(path, name)
    if not name or not os.path.exists(file):
        return model, []
    try:
        batching, ignored = version_batching(model.batching, file)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    return replace(model, batching=batching), ignored


def disables_meta_optimizer(path: str) -> tuple[bool, list[str]]:
    """Whether assets.extra/saved_model_config.pb asks for the graph as it is in the file, and what else is in
    there that has no effect. ModelError when it cannot be read."""
    file = Path(path, _SAVED_MODEL_CONFIG)
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False, []
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        config: Any = message("tensorflow.serving.SavedModelConfig").FromString(data)
    except DecodeError:
        raise ModelError(f"Unable to parse SavedModelConfig: {file}") from None
    overrides = config.session_overrides
    without = [f"session_overrides.{name}" for name in _WITHOUT_EFFECT if overrides.HasField(name)]
    without += ["tfrt_runtime_config"] if config.HasField("tfrt_runtime_config") else []
    without += ["critical"] if config.critical else []
    return overrides.disable_meta_optimizer, without
