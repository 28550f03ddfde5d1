"""SOURCE of `fastserve export`: which kind it is, and its endpoints.

The environment is settled before TensorFlow is imported, since it and Keras read theirs when they are.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastserve.workshop import export_keras, export_module, export_saved_model
from fastserve.workshop.endpoint import Source, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_keras_file import SUFFIXES, KerasFile, look
from fastserve.workshop.imports import import_named
from fastserve.workshop.model_place import version_of

_EXPECTED = "a .keras, .h5 or .hdf5 file, a SavedModel's directory, MODULE:FUNCTION or PATH.py:FUNCTION"


@dataclass(frozen=True)
class SourceOptions:
    """`keras`: 2 or 3, where it is not to be found out. `custom`: MODULE or MODULE:NAME each."""

    keras: int | None = None
    custom: Sequence[str] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    trust_lambda: bool = False
    tags: tuple[str, ...] = ("serve",)
    op_libraries: Sequence[str] = ()


def read_source(text: str, options: SourceOptions) -> Source:
    """WorkshopError: there is nothing of that kind, it cannot be read, or what it needs is not installed."""
    path = Path(text)
    if "://" in text:
        raise WorkshopError(f"{text}: is not on this machine; copy it here first")
    module = path.suffix == ".py" or (":" in text and not path.exists())
    if not module and not path.exists():
        kind = "file" if path.suffix in SUFFIXES else "file or directory"
        raise WorkshopError(f"{text}: no such {kind}; SOURCE is {_EXPECTED}")
    if path.suffix == ".py" or (module and text.endswith(":")):
        raise WorkshopError(f"{text}: which function of it? SOURCE is {_EXPECTED}")
    file = look(path) if path.is_file() else None
    generation = options.keras or (file.generation if file is not None else 3)
    _settle(generation)
    _load_op_libraries(options.op_libraries)
    custom = _custom(options.custom)
    if file is not None:
        return _keras(file, generation, custom, options)
    if module:
        return export_module.read(text, options.dtypes)
    if options.dtypes:
        raise WorkshopError(f"--dtype {next(iter(options.dtypes))}: {text} knows its inputs' dtypes itself")
    return export_saved_model.read(version_of(path), options.tags)


def _keras(file: KerasFile, generation: int, custom: Mapping[str, Any], options: SourceOptions) -> Source:
    model = export_keras.load(file, generation, custom, trust_lambda=options.trust_lambda)
    endpoint = export_keras.endpoint_of(model, str(file.path), options.dtypes)
    return Source(f"a Keras {generation} model", (endpoint,), named=False)


def _settle(generation: int) -> None:
    """For TensorFlow and Keras: the processor alone, few words, and which Keras tf.keras is."""
    if importlib.util.find_spec("tensorflow") is None:
        raise WorkshopError(
            "fastserve export needs TensorFlow: pip install 'fastserve[workshop]', or any TensorFlow and "
            "Keras"
        )
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if generation == 2:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _load_op_libraries(paths: Sequence[str]) -> None:
    for path in paths:
        import tensorflow as tf

        try:
            tf.load_op_library(os.path.abspath(path))
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            raise WorkshopError(f"--op-library {path}: {first_line(error)}") from error


def _custom(names: Sequence[str]) -> dict[str, Any]:
    """Classes and functions by the names that the file has for them. Importing alone may register them."""
    found: dict[str, Any] = {}
    for name in names:
        value = import_named(f"--custom {name}", name)
        if ":" not in name:
            continue
        if isinstance(value, Mapping):
            found.update(value)
        elif isinstance(value, type) or callable(value):
            found[value.__name__] = value
        else:
            raise WorkshopError(
                f"--custom {name}: is a {type(value).__name__}; expected a dict of classes and functions by "
                "name, or one of them"
            )
    return found
