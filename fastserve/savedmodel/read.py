"""Reads saved_model.pb: which meta graph has the tags asked for, and what its signatures are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fastserve.errors import ModelError
from fastserve.protos import message
from fastserve.savedmodel.metadata import map_of_meta_graph
from fastserve.savedmodel.signature import Port, SavedModel, Signature

REFERENCE_TYPES = 100  # DT_FLOAT_REF is DT_FLOAT + 100, and so on; fetching one gives the plain type


class SavedModelError(ModelError):
    """A directory is not a SavedModel that can be served. The text names the file and the remedy."""


def read(path: str | Path, tags: Iterable[str] = ("serve",)) -> SavedModel:
    """The signatures of the meta graph in directory `path` that has exactly these tags.

    Raises SavedModelError when there is no such directory, file or meta graph.
    """
    wanted = tuple(tags)
    meta_graph = find_meta_graph(load(path), path, wanted)
    return SavedModel(
        path=str(path),
        tags=wanted,
        tensorflow_version=meta_graph.meta_info_def.tensorflow_version,
        signatures=tuple(
            _signature(name, signature) for name, signature in sorted(meta_graph.signature_def.items())
        ),
        signature_def_map=map_of_meta_graph(meta_graph.signature_def),
    )


def load(path: str | Path) -> Any:
    """The tensorflow.SavedModel message in directory `path`. Raises SavedModelError."""
    directory = Path(path)
    file = directory / "saved_model.pb"
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise SavedModelError(_why_missing(directory)) from None
    except OSError as error:
        raise SavedModelError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        saved_model = message("tensorflow.SavedModel").FromString(data)
    except DecodeError:
        raise SavedModelError(f"{file}: not a SavedModel, or cut short; export or copy it again") from None
    if not saved_model.meta_graphs:
        raise SavedModelError(f"{file}: holds no meta graph; export the model again with tf.saved_model.save")
    return saved_model


def find_meta_graph(saved_model: Any, path: str | Path, tags: Iterable[str]) -> Any:
    """The meta graph with exactly these tags, as TensorFlow's loader picks it. Raises SavedModelError."""
    wanted = set(tags)
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == wanted:
            return meta_graph
    there = [sorted(meta_graph.meta_info_def.tags) for meta_graph in saved_model.meta_graphs]
    raise SavedModelError(
        f"{Path(path) / 'saved_model.pb'}: no meta graph has the tags {sorted(wanted)}; "
        f"set tags to one of {', '.join(map(str, there))}"
    )


def _why_missing(directory: Path) -> str:
    if not directory.exists():
        return f"{directory}: no such directory"
    if not directory.is_dir():
        return f"{directory}: not a directory; name the directory that holds saved_model.pb"
    if (directory / "saved_model.cpb").exists():
        return f"{directory}: holds a SavedModel in chunks (saved_model.cpb); only saved_model.pb is read"
    if (directory / "saved_model.pbtxt").exists():
        return f"{directory}: holds a SavedModel as text (saved_model.pbtxt); export it as saved_model.pb"
    versions = sorted((child.name for child in directory.iterdir() if child.name.isdecimal()), key=int)
    if versions:
        return (
            f"{directory}: no saved_model.pb; name a version's directory, such as {directory / versions[-1]}"
        )
    return f"{directory}: no saved_model.pb; name a directory written by tf.saved_model.save or model.export"


def _signature(name: str, signature: Any) -> Signature:
    return Signature(
        name=name,
        method_name=signature.method_name,
        inputs=_ports(signature.inputs, signature.defaults),
        outputs=_ports(signature.outputs, {}),
    )


def _ports(infos: Mapping[str, Any], defaults: Mapping[str, bytes]) -> tuple[Port, ...]:
    return tuple(
        Port(
            alias=alias,
            tensor=info.name,
            dtype=info.dtype - REFERENCE_TYPES if info.dtype > REFERENCE_TYPES else info.dtype,
            dims=_dims(info),
            default=defaults.get(alias),
        )
        for alias, info in sorted(infos.items())
    )


def _dims(info: Any) -> tuple[int, ...] | None:
    if not info.HasField("tensor_shape") or info.tensor_shape.unknown_rank:
        return None
    return tuple(max(dim.size, -1) for dim in info.tensor_shape.dim)
