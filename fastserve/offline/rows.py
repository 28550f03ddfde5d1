"""Rows of the user's own as a signature takes them: the tensors of its inputs, in its dtypes.

For the commands that take rows: `fastserve warmup make`, and the workshop's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from fastserve.errors import FastServeError
from fastserve.input_file import InputError, read_inputs, to_arrays
from fastserve.offline.tensors import BFLOAT16, STRING, Tensor
from fastserve.savedmodel import Port, Signature
from fastserve.savedmodel.signature import dtype_name

# numpy's names for TensorFlow's dtypes, where they are not the same.
_NUMPY_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


class RowsError(FastServeError):
    """The rows do not fit the signature."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """What a file has for a signature: tensors by input, each of `count` rows."""

    signature: Signature
    tensors: dict[str, Tensor]
    count: int

    def in_requests(self, sizes: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """All rows, cut into requests of these sizes in turn; the last one has what is left."""
        at = 0
        for size in cycle(sizes):
            if at >= self.count:
                return
            yield {alias: tensor.rows(at, at + size) for alias, tensor in self.tensors.items()}
            at += size


def read_rows(
    source: Path, choose: Callable[[str | None], Signature], *, defaults: bool, whole: bool = False
) -> Rows:
    """The rows in an .npz or JSON file. `choose`: the signature, given the name that the file says.
    `defaults`: inputs that have one may be left out. `whole`: it is one request, of a signature without rows.
    InputError, RowsError; what `choose` raises."""
    content = read_inputs(str(source))
    if content.examples is not None:
        raise InputError(f"{source} has examples: give the inputs of a signature, serialized Examples as b64")
    signature = choose(content.signature)
    tensors = _signature_tensors(source, signature, content.arrays, content.columns)
    absent = [port.alias for port in signature.inputs if port.alias not in tensors]
    if absent and not defaults:
        raise RowsError(f"{source} lacks {', '.join(absent)}: a value is wanted for every input")
    return Rows(signature, tensors, 1 if whole else _row_count(source, tensors))


def _signature_tensors(
    source: Path,
    signature: Signature,
    arrays: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Every input's tensor, in the signature's dtype. `arrays`, or JSON's values by input. RowsError,
    InputError."""
    known = {port.alias: _numpy_name(port) for port in signature.inputs}
    if arrays is None:
        arrays = to_arrays(columns, {}, known)
    required = {port.alias for port in signature.inputs if not port.has_default}
    missing, extra = required - arrays.keys(), arrays.keys() - known.keys()
    if missing or extra:
        says = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        says += [f"has {', '.join(sorted(extra))}, which the signature has not"] if extra else []
        raise RowsError(
            f"{source}: signature {signature.name} takes {', '.join(known)}; the file {'; '.join(says)}"
        )
    return {
        port.alias: _tensor(source, port, arrays[port.alias])
        for port in signature.inputs
        if port.alias in arrays
    }


def _numpy_name(port: Port) -> str:
    name = dtype_name(port.dtype)
    return _NUMPY_NAMES.get(name, "float32" if port.dtype == BFLOAT16 else name)


def _tensor(source: Path, port: Port, array: Any) -> Tensor:
    if port.dims is not None and (
        array.ndim != len(port.dims)
        or any(d not in (-1, n) for d, n in zip(port.dims[1:], array.shape[1:], strict=True))
    ):
        raise RowsError(
            f"{source}: input {port.alias} has the shape {list(array.shape)}; the signature takes "
            f"{port.shape}"
        )
    if port.dtype == STRING:
        strings = np.empty(array.shape, dtype=object)
        strings.flat[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
        return Tensor(STRING, strings)
    try:
        cast = array.astype(np.dtype(_numpy_name(port)))
    except (TypeError, ValueError):
        raise RowsError(
            f"{source}: input {port.alias} is of {array.dtype}, which is no {dtype_name(port.dtype)}"
        ) from None
    if cast.dtype.kind in "iub" and not np.array_equal(cast.astype(array.dtype), array):
        raise RowsError(f"{source}: input {port.alias} has values that {dtype_name(port.dtype)} cannot hold")
    return Tensor(port.dtype, cast)


def _row_count(source: Path, tensors: Mapping[str, Tensor]) -> int:
    """How many rows all inputs have. RowsError where they do not agree, or there are none."""
    counts = {alias: t.array.shape[0] if t.array.ndim else None for alias, t in tensors.items()}
    if None in counts.values() or len(set(counts.values())) != 1:
        shown = ", ".join(f"{alias} {'no' if n is None else n}" for alias, n in counts.items())
        raise RowsError(f"{source}: every input needs as many rows as the others: {shown}")
    total = next(iter(counts.values())) or 0
    if total == 0:
        raise RowsError(f"{source}: there are no rows")
    return total
