"""The signatures of a version as GetModelMetadata tells them: a serialized SignatureDefMap.

Used by trials, where saved_model.pb is read anyway; the core only passes the bytes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastserve.protos import message
from fastserve.savedmodel.signature import Port, Signature


def map_of_meta_graph(signature_defs: Mapping[str, Any]) -> bytes:
    """What a meta graph has, without the default values of inputs, which TensorFlow Serving leaves out."""
    made = message("tensorflow.serving.SignatureDefMap")()
    for name, signature in signature_defs.items():
        made.signature_def[name].CopyFrom(signature)
        made.signature_def[name].ClearField("defaults")
    return _serialized(made)


def map_of_signatures(signatures: Iterable[Signature]) -> bytes:
    """The same for what has no meta graph: a plug-in's model."""
    made = message("tensorflow.serving.SignatureDefMap")()
    for signature in signatures:
        described = made.signature_def[signature.name]
        described.method_name = signature.method_name
        for port in signature.inputs:
            _describe(described.inputs[port.alias], port)
        for port in signature.outputs:
            _describe(described.outputs[port.alias], port)
    return _serialized(made)


def _describe(info: Any, port: Port) -> None:
    info.name = port.tensor
    info.dtype = port.dtype
    if port.dims is None:
        info.tensor_shape.unknown_rank = True
    else:
        info.tensor_shape.SetInParent()
        for size in port.dims:
            info.tensor_shape.dim.add(size=size)


def _serialized(made: Any) -> bytes:
    data: bytes = made.SerializeToString(deterministic=True)
    return data
