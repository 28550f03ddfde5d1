"""Keras files, looked into without Keras: which Keras wrote them, and whether they bring Python code along.

`.keras` is a zip with metadata.json and config.json; `.h5` and `.hdf5` have both as attributes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.workshop.errors import WorkshopError

SUFFIXES = (".keras", ".h5", ".hdf5")
_HDF5_SUFFIXES = (".h5", ".hdf5")
# What Keras 3 writes beside each object, and Keras 2 does not write to HDF5 files.
_KERAS_3_MARK = '"module": "keras.'


@dataclass(frozen=True, slots=True)
class KerasFile:
    """`version` is the Keras that wrote it, as it says. `generation`: 2 or 3, the package that reads it.
    `lambdas`: names of Lambda layers whose code is in the file."""

    path: Path
    version: str
    generation: int
    lambdas: tuple[str, ...]


def look(path: Path) -> KerasFile:
    """WorkshopError: the file is none of Keras', holds weights alone, or is damaged."""
    is_zip = zipfile.is_zipfile(path)
    version, text = _of_zip(path) if is_zip else _of_hdf5(path)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise WorkshopError(f"{path}: its configuration is no JSON ({error}); save the model again") from None
    generation = 3 if version.startswith("3") or (not version and _KERAS_3_MARK in text) else 2
    return KerasFile(path, version, generation, tuple(_lambdas(config)))


def _of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as file:
            metadata = json.loads(file.read("metadata.json"))
            return str(metadata.get("keras_version", "")), file.read("config.json").decode()
    except KeyError:
        raise WorkshopError(
            f"{path}: a zip file without config.json and metadata.json; expected what model.save() writes"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise WorkshopError(f"{path}: cannot be read ({error}); save or copy it again") from None


def _of_hdf5(path: Path) -> tuple[str, str]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
    except OSError as error:
        expected = "HDF5" if path.suffix in _HDF5_SUFFIXES else "a zip, nor HDF5"
        raise WorkshopError(f"{path}: not {expected} ({error}); save or copy it again") from None
    config = attributes.get("model_config")
    if config is None:
        raise WorkshopError(
            f"{path}: holds weights and no model; save the whole model with model.save(), or give "
            "MODULE:FUNCTION, a function that builds the model and loads the weights"
        )
    return _text(attributes.get("keras_version", "")), _text(config)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _lambdas(config: Any) -> Iterator[str]:
    """Lambda layers that were made of a Python lambda: its code is in the file, marshalled."""
    if isinstance(config, dict):
        inner = config.get("config")
        if config.get("class_name") == "Lambda" and isinstance(inner, dict):
            function = inner.get("function")
            by_code = isinstance(function, dict) and function.get("class_name") == "__lambda__"
            if by_code or inner.get("function_type") == "lambda":
                yield str(inner.get("name", "lambda"))
        for value in config.values():
            yield from _lambdas(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value)
