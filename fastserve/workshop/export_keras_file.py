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
# How a config says that there is marshalled code in it: an object of this class, for Keras 3, and for Keras 2
# one of these that is "lambda".
_CODE = "__lambda__"
_KINDS = ("function_type", "output_shape_type", "mask_type")


@dataclass(frozen=True, slots=True)
class KerasFile:
    """`version` is the Keras that wrote it, as it says. `generation`: 2 or 3, the package that reads it.
    `lambdas`: names of the layers whose code is in the file."""

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
    return KerasFile(path, version, generation, tuple(dict.fromkeys(_lambdas(config))))


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


def _lambdas(config: Any, name: str = "lambda") -> Iterator[str]:
    """Layers with a Python lambda: its code is in the file, marshalled. `name`: of what `config` is within.
    Wherever Keras would run it, whatever class it says it is of: reading HDF5, it does not ask."""
    if isinstance(config, dict):
        name = str(config.get("name", name))
        if config.get("class_name") == _CODE or any(config.get(kind) == "lambda" for kind in _KINDS):
            yield name
        for value in config.values():
            yield from _lambdas(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value, name)
