"""What the source itself answers to a request: the numbers that an export is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.offline.tensors import BFLOAT16, STRING, Tensor
from fastserve.savedmodel import Signature
from fastserve.workshop.export_samples import Inputs, left_out, rows_of
from fastserve.workshop.export_write import Traced


def ask(traced: Traced, signature: Signature, inputs: Inputs) -> dict[str, Tensor]:
    """The source's own predictions; in pieces of the size that it insists on, the last one filled up. Raises
    whatever the source does."""
    rows, chunk, defaults = rows_of(signature, inputs), traced.chunk, left_out(signature, inputs)
    if chunk is None or not signature.any_rows:
        return _predict(traced, {**inputs, **defaults})
    parts = [
        _predict(traced, {alias: _piece(tensor, first, chunk) for alias, tensor in inputs.items()} | defaults)
        for first in range(0, max(rows, 1), chunk)
    ]
    return {
        alias: Tensor(tensor.dtype, np.concatenate([part[alias].array for part in parts])[:rows])
        for alias, tensor in parts[0].items()
    }


def _piece(tensor: Tensor, first: int, count: int) -> Tensor:
    if not tensor.array.ndim:
        return tensor
    last = len(tensor.array) - 1
    return Tensor(tensor.dtype, tensor.array[np.minimum(np.arange(first, first + count), last)])


def _predict(traced: Traced, inputs: Inputs) -> dict[str, Tensor]:
    import tensorflow as tf

    given = {}
    for alias, tensor in inputs.items():
        dtype = tf.as_dtype(tensor.dtype)
        if tensor.dtype == BFLOAT16:
            given[alias] = tf.cast(tf.constant(tensor.array), dtype)
        else:
            given[alias] = tf.constant(tensor.array, dtype=dtype)
    return {alias: _from_source(value) for alias, value in traced.predict(given).items()}


def _from_source(value: Any) -> Tensor:
    """An eager tensor, or an array as Keras' predict gives it."""
    import tensorflow as tf

    array = value.numpy() if hasattr(value, "numpy") else value
    array = np.asarray(array)
    dtype: int = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype == BFLOAT16:
        array = array.astype(np.float32)
    elif dtype == STRING and array.dtype != object:
        array = array.astype(object)
    return Tensor(dtype, array)
