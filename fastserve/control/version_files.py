"""What a version's directory may bring along beside the model: batching_params.pbtxt.

Read by the manager's work before a version's trial.
"""

from __future__ import annotations

import os

from msgspec.structs import replace

from fastserve.batching_parameters import version_batching
from fastserve.config import Model
from fastserve.errors import ConfigError, ModelError


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
