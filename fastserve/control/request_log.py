"""What the core is told of a model's request log, and what TensorFlow Serving's LoggingConfig means here.

Pure functions, of the control process. The logging itself is native: see the core's `logging` command.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from msgspec.structs import replace

from fastserve.config import Logging, Model

# LogCollectorConfig.type of what writes files.
FILE_TYPES = ("", "file")
# Fields that ask for what we do not do.
_NOT_HERE = frozenset({"custom_logging_config", "attributes", "per_task_sampling_configs"})


class NoCollector(ValueError):
    """There is no log collector of the type that was asked for. The text is TensorFlow Serving's."""


def log_settings(model: Model) -> dict[str, Any] | None:
    """The settings of the core's command `logging`; None: nothing is logged."""
    logging = model.logging
    if not logging.sampling_rate:
        return None
    settings: dict[str, Any] = msgspec.to_builtins(logging)
    settings["path"] = settings.pop("filename_prefix")
    return {**settings, "tags": list(model.tags)}


def logging_of(config: Any, before: Logging, root: str) -> Logging:
    """What a ModelConfig asks for. Without a logging_config, or at a sampling rate of 0, nothing is logged;
    what LoggingConfig cannot say is as `before`. A relative prefix starts in directory `root`. NoCollector,
    ValueError."""
    if not config.HasField("logging_config"):
        return replace(before, sampling_rate=0.0)
    for part in (config.logging_config, config.logging_config.sampling_config):
        for field, _ in part.ListFields():
            if field.name in _NOT_HERE:
                raise ValueError(
                    f"logging_config of model {config.name}: {field.name} is not known here: leave it out"
                )
    collector = config.logging_config.log_collector_config
    rate = config.logging_config.sampling_config.sampling_rate
    if collector.type not in FILE_TYPES:
        raise NoCollector(f"Cannot find LogCollector::Factory for type: {collector.type}")
    if not 0 <= rate <= 1:
        raise ValueError(f"logging_config of model {config.name}: sampling_rate {rate:g} is not 0 to 1")
    prefix = os.path.normpath(os.path.join(root, collector.filename_prefix or config.name))
    return replace(before, sampling_rate=rate, filename_prefix=prefix)
