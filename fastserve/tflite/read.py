"""Reads model.tflite: what its signatures are, and whether all of it is there.

The schema is TFLite's own (version 3, identifier TFL3); of its tables only those are looked at that say what
goes in and what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fastserve.errors import ModelError
from fastserve.savedmodel.metadata import map_of_signatures
from fastserve.savedmodel.signature import Port, SavedModel, Signature, dtype_name
from fastserve.tflite.flatbuffer import BadFlatbuffer, Bytes, Table, root

MODEL = "model.tflite"

_IDENTIFIER = b"TFL3"
_SIGNATURE = "serving_default"
_PREDICT = "tensorflow/serving/predict"

# Fields of tflite's tables, by their number.
_MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_SIGNATURES = 2, 4, 7
_SUBGRAPH_TENSORS, _SUBGRAPH_INPUTS, _SUBGRAPH_OUTPUTS = 0, 1, 2
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_SHAPE_SIGNATURE, _TENSOR_HAS_RANK = 0, 1, 3, 7, 8
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_SUBGRAPH = 0, 1, 2, 4
_MAP_NAME, _MAP_TENSOR = 0, 1
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2

# tflite.TensorType to tensorflow.DataType.
_DTYPES = {
    0: 1, 1: 19, 2: 3, 3: 4, 4: 9, 5: 7, 6: 10, 7: 5, 8: 8, 9: 6, 10: 2, 11: 18, 12: 23, 13: 20, 14: 21,
    15: 22, 16: 17, 17: 29, 18: 14, 20: 30, 21: 25, 22: 24,
}  # fmt: skip
# What LiteRT's C API takes and gives: numbers, a byte or more each.
_SERVED = frozenset({1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23})


class TFLiteError(ModelError):
    """A file is no TFLite model that can be served. The text names the file and the remedy."""


def read(path: str | Path, aliases: Literal["signatures", "tensors"] = "signatures") -> SavedModel:
    """The signatures of model.tflite in directory `path`.

    A model without signatures, or any model when `aliases` are those of "tensors", has one, serving_default,
    whose aliases are the names of its first subgraph's tensors. TFLiteError when the file is not there, is no
    TFLite model, or has no signature that can run.
    """
    file = Path(path) / MODEL
    try:
        with _opened(file) as model:
            found = _signatures(model, named=aliases == "signatures")
            signatures = tuple(sorted(found, key=lambda signature: signature.name))
    except BadFlatbuffer as error:
        raise TFLiteError(
            f"{file}: not a TFLite model, or cut short: {error}; convert or copy it again"
        ) from None
    except FileNotFoundError:
        raise TFLiteError(f"{file}: no such file; name a directory that holds {MODEL}") from None
    except OSError as error:
        raise TFLiteError(f"{file}: cannot be read: {error.strerror}") from None
    names = [signature.name for signature in signatures]
    if len(set(names)) != len(names):
        raise TFLiteError(f"{file}: two signatures have one name, of {names}")
    refused = [why for why in map(why_not_served, signatures) if why]
    if len(refused) == len(signatures):
        raise TFLiteError(f"{file}: cannot be served: {'; '.join(refused) or 'it has no subgraph'}")
    return SavedModel(
        path=str(path),
        tags=(),
        tensorflow_version="",
        signatures=signatures,
        signature_def_map=map_of_signatures(signatures),
    )


def why_not_served(signature: Signature) -> str:
    """Why every run of a signature would fail, for people; "" when it need not."""
    for port in (*signature.inputs, *signature.outputs):
        if port.dtype not in _SERVED:
            return (
                f"signature '{signature.name}': '{port.alias}' is a tensor of type {dtype_name(port.dtype)}, "
                "which LiteRT's C API gives no access to"
            )
    return ""


def with_rows(signature: Signature) -> Signature | None:
    """The signature with an unknown first dimension everywhere, where it has one of exactly 1: what
    converters make of a fixed batch, and TFLite can change. None for any other signature."""
    ports = (*signature.inputs, *signature.outputs)
    if not ports or any(not port.dims or port.dims[0] != 1 or min(port.dims) < 0 for port in ports):
        return None

    def opened(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(port, dims=(-1, *(port.dims or ())[1:])) for port in ports)

    return replace(signature, inputs=opened(signature.inputs), outputs=opened(signature.outputs))


def why_cut_short(file: str | Path) -> str:
    """Why a file is not a whole TFLite model, for people; "" when it is. Raises OSError.

    Looks at heads and sizes, not at weights.
    """
    try:
        with _opened(file) as model:
            for buffer in model.tables(_MODEL_BUFFERS):
                buffer.vector_ends(_BUFFER_DATA, 1)
                # Large models have their weights behind the flatbuffer. 1 stands for a place not yet known.
                end = buffer.uint64(_BUFFER_OFFSET) + buffer.uint64(_BUFFER_SIZE)
                if buffer.uint64(_BUFFER_OFFSET) > 1 and end > model.data.size:
                    return f"a buffer ends at byte {end}, and the file at {model.data.size}"
            if not any(True for _ in _signatures(model, named=True)):
                return "it has no subgraph"
    except BadFlatbuffer as error:
        return str(error)
    return ""


@contextmanager
def _opened(file: str | Path) -> Iterator[Table]:
    """The root of the model in a file, which is open meanwhile."""
    with open(file, "rb", buffering=0) as opened:
        number = opened.fileno()
        data = Bytes(os.fstat(number).st_size, lambda count, at: os.pread(number, count, at))
        yield root(data, _IDENTIFIER)


# ---- signatures ------------------------------------------------------------------------------


def _signatures(model: Table, *, named: bool) -> Iterator[Signature]:
    subgraphs = list(model.tables(_MODEL_SUBGRAPHS))
    signatures = list(model.tables(_MODEL_SIGNATURES)) if named else []
    for signature in signatures:
        number = signature.uint32(_SIGNATURE_SUBGRAPH)
        if number >= len(subgraphs):
            raise BadFlatbuffer(f"a signature is of subgraph {number}, and there are {len(subgraphs)}")
        tensors = list(subgraphs[number].tables(_SUBGRAPH_TENSORS))
        yield Signature(
            name=signature.string(_SIGNATURE_KEY) or _SIGNATURE,
            method_name=_PREDICT,
            inputs=_ports(signature, _SIGNATURE_INPUTS, tensors),
            outputs=_ports(signature, _SIGNATURE_OUTPUTS, tensors),
        )
    if not signatures and subgraphs:
        tensors = list(subgraphs[0].tables(_SUBGRAPH_TENSORS))
        yield Signature(
            name=_SIGNATURE,
            method_name=_PREDICT,
            inputs=_unnamed(subgraphs[0].int32s(_SUBGRAPH_INPUTS), tensors),
            outputs=_unnamed(subgraphs[0].int32s(_SUBGRAPH_OUTPUTS), tensors),
        )


def _ports(signature: Table, field: int, tensors: list[Table]) -> tuple[Port, ...]:
    ports = [
        _port(entry.string(_MAP_NAME), _tensor(tensors, entry.uint32(_MAP_TENSOR)))
        for entry in signature.tables(field)
    ]
    return _sorted(ports)


def _unnamed(numbers: tuple[int, ...], tensors: list[Table]) -> tuple[Port, ...]:
    """Aliases are tensors' names, without the ":0" that newer converters leave there."""
    chosen = [_tensor(tensors, number) for number in numbers]
    return _sorted([_port(tensor.string(_TENSOR_NAME).partition(":")[0], tensor) for tensor in chosen])


def _sorted(ports: list[Port]) -> tuple[Port, ...]:
    aliases = [port.alias for port in ports]
    if len(set(aliases)) != len(aliases):
        raise BadFlatbuffer(f"two tensors have one alias, of {aliases}")
    return tuple(sorted(ports, key=lambda port: port.alias))


def _tensor(tensors: list[Table], number: int) -> Table:
    if not 0 <= number < len(tensors):
        raise BadFlatbuffer(f"tensor {number} is named, and there are {len(tensors)}")
    return tensors[number]


def _port(alias: str, tensor: Table) -> Port:
    # shape_signature is there where sizes are unknown, which `shape` has as 1.
    dims = tensor.int32s(_TENSOR_SHAPE_SIGNATURE) or tensor.int32s(_TENSOR_SHAPE)
    return Port(
        alias=alias,
        tensor=tensor.string(_TENSOR_NAME),
        dtype=_DTYPES.get(tensor.uint8(_TENSOR_TYPE), 0),
        dims=tuple(max(dim, -1) for dim in dims) if dims or tensor.uint8(_TENSOR_HAS_RANK) else None,
    )
