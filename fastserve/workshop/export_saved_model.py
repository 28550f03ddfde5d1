"""A SavedModel directory as a source, to be exported again under other names.

One that tf.saved_model.save or Keras wrote is loaded and its signatures are called anew, so that first
dimensions that were fixed may become unknown. One that TensorFlow 1 wrote has no functions to call, and is
refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastserve.savedmodel import INTERNAL
from fastserve.savedmodel.read import find_meta_graph, load
from fastserve.workshop.endpoint import Endpoint, Named, Source, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_module import endpoint_of_function
from fastserve.workshop.relaxed import Relaxed


def read(path: Path, tags: tuple[str, ...]) -> Source:
    """WorkshopError, SavedModelError."""
    meta_graph = find_meta_graph(load(path), path, tags)
    names = sorted(name for name in meta_graph.signature_def if not name.startswith(INTERNAL))
    if not names:
        raise WorkshopError(
            f"{path}: has no signatures; give MODULE:FUNCTION for a function that loads it and returns a "
            "dict of tf.functions"
        )
    if not meta_graph.object_graph_def:
        raise WorkshopError(
            f"{path}: written by TensorFlow 1, which leaves nothing to trace anew; serve it as it is, or "
            "give MODULE:FUNCTION for a function that returns what tf.compat.v1.wrap_function makes of it"
        )
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path), tags=list(tags))
    except Exception as error:
        raise WorkshopError(f"{path}: TensorFlow cannot load it: {first_line(error)}") from error
    fixed = any(
        info.tensor_shape.dim and info.tensor_shape.dim[0].size >= 0
        for name in names
        for info in meta_graph.signature_def[name].inputs.values()
    )
    relaxed = _relaxed(path, tags) if fixed else None
    endpoints = [_endpoint(path, name, loaded, relaxed, meta_graph.signature_def[name]) for name in names]
    version = meta_graph.meta_info_def.tensorflow_version
    return Source(f"a SavedModel of TensorFlow {version or '(unknown)'}", tuple(endpoints), path=path)


def _endpoint(path: Path, name: str, loaded: Any, relaxed: Relaxed | None, signature_def: Any) -> Endpoint:
    function = loaded.signatures[name]
    endpoint = endpoint_of_function(str(path), name, function, (loaded,))
    shapes = {alias: tensor.shape for alias, tensor in function.structured_outputs.items()}

    def call(tensors: Named) -> Named:
        fits = all(
            tensor.shape.is_subtype_of(endpoint.inputs[alias].shape) for alias, tensor in tensors.items()
        )
        if fits or relaxed is None:
            return endpoint.call(tensors)
        answers: Named = relaxed.call(name, tensors, shapes)
        return answers

    return replace(
        endpoint,
        call=call,
        owners=(loaded,) if relaxed is None else (loaded, relaxed.model),
        method_name=signature_def.method_name,
        defaults=dict(signature_def.defaults),
    )


def _relaxed(path: Path, tags: tuple[str, ...]) -> Relaxed | None:
    """None where the fixed shapes cannot be taken out; then they are refused where they matter."""
    try:
        return Relaxed(path, tags)
    except Exception:
        return None
