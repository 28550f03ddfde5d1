"""assets.extra/saved_model_config.pb: what a version asks for of the session that it is opened in.

For whoever opens sessions. Knows TensorFlow Serving's names and words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fastserve.errors import ModelError
from fastserve.protos import message

_SAVED_MODEL_CONFIG = os.path.join("assets.extra", "saved_model_config.pb")
# What of a SavedModelConfig says nothing to TensorFlow's own library.
_WITHOUT_EFFECT = ("remote_op_remap_config", "batch_op_rewriter_config")


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
