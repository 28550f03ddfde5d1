"""Inputs that a request may send with one row for all of its rows: [models.batching] broadcast.

Whether a version has them, and a recorded request as the core will run it (csrc/broadcast.c does that for
calls). Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastserve.errors import ModelError
from fastserve.offline.tensors import Tensor
from fastserve.savedmodel import Signature


def check_broadcast(model: str, names: Sequence[str], signatures: Sequence[Signature]) -> None:
    """ModelError for a name that no signature has among its inputs, or only where an input has no rows."""
    for name in names:
        ports = [port for signature in signatures for port in signature.inputs if port.alias == name]
        if any(port.any_rows for port in ports):
            continue
        if ports:
            why = f"has the shape {ports[0].shape}: its first dimension does not follow the request's rows"
        else:
            there = "; ".join(
                f"{signature.name}: {', '.join(port.alias for port in signature.inputs)}"
                for signature in signatures
                if signature.inputs
            )
            why = f"is no input of it; there are {there or 'none'}"
        raise ModelError(f"model '{model}', batching.broadcast: '{name}' {why}")


def spread(signature: Signature, names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs of one request. Those named that have one row have it as often as the others have rows; all
    are as they were where the others do not agree."""
    with_rows = [
        port.any_rows and tensor.array.ndim > 0
        for port, tensor in zip(signature.inputs, tensors, strict=True)
    ]
    single = [
        has_rows and port.alias in names and len(tensor.array) == 1
        for has_rows, port, tensor in zip(with_rows, signature.inputs, tensors, strict=True)
    ]
    rows = {
        len(tensor.array)
        for has_rows, one, tensor in zip(with_rows, single, tensors, strict=True)
        if has_rows and not one
    }
    if len(rows) != 1:
        return tuple(tensors)
    count = rows.pop()
    return tuple(
        Tensor(tensor.dtype, np.broadcast_to(tensor.array, (count, *tensor.array.shape[1:])))
        if one
        else tensor
        for one, tensor in zip(single, tensors, strict=True)
    )
