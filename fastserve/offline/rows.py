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
import numpy.typing as npt

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
    """What a file has for a signature: tensors by input, of `count` rows. Inputs without rows are as a
    request has them; where there are only such, the file is one request."""

    signature: Signature
    tensors: dict[str, Tensor]
    count: int

    def request(self, chosen: slice | npt.NDArray[np.intp]) -> dict[str, Tensor]:
        """One of these rows."""
        counted = _counted(self.signature)
        return {
            alias: Tensor(tensor.dtype, tensor.array[chosen]) if alias in counted else tensor
            for alias, tensor in self.tensors.items()
        }

    def in_requests(self, sizes: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """All rows, cut into requests of these sizes in turn; the last one has what is left. Where the
        signature says how many rows a request has, that is the size, and the last one is filled up from the
        beginning."""
        own, at = self.signature.own_rows, 0
        for size in cycle(sizes if own is None else (own,)):
            if at >= self.count:
                return
            last = at + size
            short = own is not None and last > self.count
            yield self.request(np.arange(at, last) % self.count if short else slice(at, last))
            at = last


def read_rows(source: Path, choose: Callable[[str | None], Signature], *, defaults: bool) -> Rows:
    """The rows in an .npz or JSON file. `choose`: the signature, given the name that the file says.
    `defaults`: inputs that have one may be left out. InputError, RowsError; what `choose` raises."""
    content = read_inputs(str(source))
    if content.examples is not None:
        raise InputError(f"{source} has examples: give the inputs of a signature, serialized Examples as b64")
    signature = choose(content.signature)
    tensors = _signature_tensors(source, signature, content.arrays, content.columns)
    absent = [port.alias for port in signature.inputs if port.alias not in tensors]
    if absent and not defaults:
        raise RowsError(f"{source} lacks {', '.join(absent)}: a value is wanted for every input")
    return Rows(signature, tensors, _row_count(source, signature, tensors))


def _counted(signature: Signature) -> set[str]:
    """The inputs that have a request's rows."""
    return {port.alias for port in signature.inputs if signature.counts_rows(port)}


def _signature_tensors(
    source: Path,
    signature: Signature,
    arrays: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Every input's tensor, in the signature's dtype. `arrays`, or JSON's values by input. RowsError,
    InputError."""
    known, counted = {port.alias: _numpy_name(port) for port in signature.inputs}, _counted(signature)
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
        port.alias: _tensor(source, port, arrays[port.alias], counted=port.alias in counted)
        for port in signature.inputs
        if port.alias in arrays
    }


def _numpy_name(port: Port) -> str:
    name = dtype_name(port.dtype)
    return _NUMPY_NAMES.get(name, "float32" if port.dtype == BFLOAT16 else name)


def _tensor(source: Path, port: Port, array: Any, *, counted: bool) -> Tensor:
    """`counted`: of any number of rows."""
    dims = (-1, *port.dims[1:]) if counted and port.dims else port.dims
    if dims is not None and (
        array.ndim != len(dims) or any(d not in (-1, n) for d, n in zip(dims, array.shape, strict=True))
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


def _row_count(source: Path, signature: Signature, tensors: Mapping[str, Tensor]) -> int:
    """How many rows all inputs with rows have; 1 where there are no such. RowsError where they do not agree,
    or have none."""
    counted = tensors.keys() & _counted(signature)
    if not counted:
        return 1
    counts = {
        alias: t.array.shape[0] if t.array.ndim else None for alias, t in tensors.items() if alias in counted
    }
    if None in counts.values() or len(set(counts.values())) != 1:
        shown = ", ".join(f"{alias} {'no' if n is None else n}" for alias, n in counts.items())
        raise RowsError(f"{source}: every input needs as many rows as the others: {shown}")
    total = next(iter(counts.values())) or 0
    if total == 0:
        raise RowsError(f"{source}: there are no rows")
    return total
