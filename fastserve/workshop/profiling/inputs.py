"""What the profiled signature is run on: rows of the user's own, the version's recorded requests, or made-up
values.

Real rows matter: which embeddings they touch, how long their strings are, how many of their values are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastserve.errors import ModelError
from fastserve.input_file import InputError, read_inputs
from fastserve.offline.records import REQUESTS_FILE, read_requests, sample_rows
from fastserve.offline.rows import RowsError, row_count, signature_tensors
from fastserve.offline.tensors import RECORDED, Style, Tensor
from fastserve.savedmodel import SavedModel, Signature


@dataclass(frozen=True)
class Pool:
    """`rows`: by signature, rows to take samples of; none: they are made up. `origin`: for the report."""

    rows: dict[str, tuple[Tensor, ...]]
    origin: str

    @property
    def style(self) -> Style | None:
        return RECORDED if self.rows else None


def pool_of(saved_model: SavedModel, signature: Signature, rows: Path | None) -> Pool:
    """InputError, RowsError: `rows` cannot be used; ModelError: the version's recorded requests cannot."""
    if rows is not None:
        return Pool({signature.name: _of_file(rows, signature)}, f"rows of {rows}")
    recorded = sample_rows(read_requests(saved_model.path, saved_model))
    if signature.name in recorded:
        count = len(recorded[signature.name][0].array)
        return Pool({signature.name: recorded[signature.name]}, f"{count} rows of {REQUESTS_FILE}")
    return Pool({}, "made-up values")


def _of_file(source: Path, signature: Signature) -> tuple[Tensor, ...]:
    content = read_inputs(str(source))
    if content.examples is not None:
        raise InputError(f"{source} has examples: give the inputs of a signature, serialized Examples as b64")
    tensors = signature_tensors(source, signature, content.arrays, content.columns)
    absent = [port.alias for port in signature.inputs if port.alias not in tensors]
    if absent:
        raise RowsError(f"{source}: lacks {', '.join(absent)}; a profile takes a value for every input")
    row_count(source, tensors)
    return tuple(tensors[port.alias] for port in signature.inputs)


def fixed_rows(signature: Signature) -> int:
    """How many rows its inputs are fixed to, where all are to as many; else 1, what every signature with rows
    takes."""
    sizes = {port.dims[0] if port.dims else -1 for port in signature.inputs}
    return max(sizes.pop(), 1) if len(sizes) == 1 else 1


def choose_signature(saved_model: SavedModel, wanted: str | None) -> Signature:
    """The one asked for; else serving_default, or the only one. ModelError names those that are there."""
    there = [
        one for one in saved_model.signatures if one.inputs and not one.name.startswith("__saved_model_")
    ]
    names = ", ".join(one.name for one in there) or "none"
    by_name = {one.name: one for one in there}
    if wanted is not None:
        if wanted not in by_name:
            raise ModelError(f"{saved_model.path} has no signature {wanted} with inputs; there are: {names}")
        return by_name[wanted]
    if "serving_default" in by_name:
        return by_name["serving_default"]
    if len(there) == 1:
        return there[0]
    raise ModelError(f"{saved_model.path}: say which --signature; there are: {names}")
