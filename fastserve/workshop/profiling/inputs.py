"""What the profiled signature is run on: rows of the user's own, the version's recorded requests, or made-up
values.

Real rows matter: which embeddings they touch, how long their strings are, how many of their values are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastserve.errors import ModelError
from fastserve.offline.records import REQUESTS_FILE, read_requests, sample_rows
from fastserve.offline.rows import read_rows
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
    requests = read_requests(saved_model.path, saved_model)
    recorded = sample_rows(warmup for warmup in requests if not warmup.made_up)
    if signature.name in recorded:
        count = len(recorded[signature.name][0].array)
        return Pool({signature.name: recorded[signature.name]}, f"{count} rows of {REQUESTS_FILE}")
    return Pool({}, "made-up values")


def _of_file(source: Path, signature: Signature) -> tuple[Tensor, ...]:
    tensors = read_rows(source, lambda _: signature, defaults=False).tensors
    return tuple(tensors[port.alias] for port in signature.inputs)


def choose_signature(saved_model: SavedModel, wanted: str | None) -> Signature:
    """The one asked for; else serving_default, or the only one. ModelError names those that are there."""
    there = [one for one in saved_model.signatures if one.inputs and not one.internal]
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
