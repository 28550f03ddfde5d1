"""Whether a signature's rows are independent, so that requests may share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastserve._native.runtime import RuntimeFailure
from fastserve.offline.model import OpenModel
from fastserve.offline.tensors import Style, Tensor, first_difference
from fastserve.savedmodel import Port, Signature

_ROWS = 6
_DRAWS = 2


def why_not_batched(
    model: OpenModel, signature: Signature, style: Style | None, row_wise: Literal["probe"] | bool
) -> str:
    """Empty when requests may share a batch, else the reason. `style`: how to make up samples that the
    signature accepts; None when none was found."""
    why = _shapes(signature)
    if why:
        return why
    if row_wise is True:
        return ""
    if row_wise is False:
        return "row_wise = false"
    if style is None:
        return "no sample that it accepts was found; row_wise = true batches it all the same"
    return _probe(model, signature, style)


def _shapes(signature: Signature) -> str:
    if not signature.inputs:
        return "it has no inputs"
    if not signature.outputs:
        return "it has no outputs"
    for kind, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            why = _first_dimension(port)
            if why:
                return f"{kind} '{port.alias}' {why}"
    return ""


def _first_dimension(port: Port) -> str:
    if port.dims is None:
        # What is parsed as tf.Examples is a list of them, whether the graph says so or not.
        return "" if port.features else "has an unknown number of dimensions"
    if not port.dims:
        return "is a scalar"
    return f"has a first dimension of exactly {port.dims[0]}" if port.dims[0] >= 0 else ""


def _probe(model: OpenModel, signature: Signature, style: Style) -> str:
    for _ in range(_DRAWS):
        inputs = model.sample(signature, _ROWS, style)
        if all((tensor.array == tensor.array[:1]).all() for tensor in inputs):
            return "it accepts no sample rows that differ; row_wise = true batches it all the same"
        try:
            why = _compare(model, signature, inputs)
        except RuntimeFailure as error:
            why = f"a run of some rows failed: {first_line(error.message)}"
        if why:
            return why
    return ""


def _compare(model: OpenModel, signature: Signature, inputs: Sequence[Tensor]) -> str:
    """Compares the rows of one run with the same rows alone, a few together, and in the other order."""
    names = [port.alias for port in signature.outputs]
    together = model.run(signature, inputs)
    for name, output in zip(names, together, strict=True):
        if output.array.ndim == 0 or output.array.shape[0] != _ROWS:
            return f"output '{name}' has the shape {list(output.array.shape)} for {_ROWS} rows"
    how = first_difference(names, together, model.run(signature, inputs))
    if how is not None:
        return f"its answers change from run to run: {how}; row_wise = true batches it all the same"

    parts = [(row, row + 1) for row in range(_ROWS)] + [(1, _ROWS - 1)]
    for first, last in parts:
        apart = model.run(signature, [tensor.rows(first, last) for tensor in inputs])
        how = first_difference(names, [output.rows(first, last) for output in together], apart)
        if how is not None:
            return f"its rows depend on each other: {how} when the same rows are run with and without others"
    turned = model.run(signature, [Tensor(tensor.dtype, tensor.array[::-1]) for tensor in inputs])
    how = first_difference(names, together, [Tensor(t.dtype, t.array[::-1]) for t in turned])
    if how is not None:
        return f"its rows depend on their order: {how}"
    return ""


def first_line(text: str, limit: int = 300) -> str:
    """Enough of a message of TensorFlow's to know it by."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[:limit] + "..."
