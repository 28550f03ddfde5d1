"""Requests to compare an export with its source by: rows that the user gave, or made-up ones that it
accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from fastserve._native.codec import CodecError
from fastserve.input_file import InputError, read_inputs
from fastserve.offline.records import MAX_RECORDS, predict_record
from fastserve.offline.rows import row_count, signature_tensors
from fastserve.offline.tensors import Style, Tensor, sample, styles_for
from fastserve.savedmodel import Signature
from fastserve.workshop.endpoint import first_line
from fastserve.workshop.errors import WorkshopError

Inputs = Mapping[str, Tensor]

_SEED = 20240229
_STYLE_ROWS = (8, 2)


@dataclass(frozen=True)
class Samples:
    """`compared`: what source and export both answer. `warmup`: records for the version to bring along."""

    compared: tuple[Inputs, ...]
    warmup: tuple[bytes, ...]


def has_rows(signature: Signature) -> bool:
    """Whether a request may have any number of rows."""
    return any(port.dims is None or port.dims[:1] == (-1,) for port in signature.inputs)


def record(signature: Signature, inputs: Inputs) -> bytes:
    """A PredictionLog of one request. WorkshopError: beyond what a request may be."""
    try:
        return predict_record(signature, inputs)
    except CodecError as error:
        raise WorkshopError(
            f"signature {signature.name!r}: a request of such a size is refused ({error}); give smaller "
            "ones with --batch-size"
        ) from None


def of_file(source: Path, signature: Signature, sizes: Sequence[int]) -> Samples:
    """Rows from an .npz or JSON file: compared at each of `sizes`, rows again and again if need be, and cut
    into requests of these sizes in turn to warm up with. FastServeError: they do not fit the signature."""
    content = read_inputs(str(source))
    if content.examples is not None:
        raise InputError(f"{source} has examples: give the inputs of a signature, serialized Examples as b64")
    tensors = signature_tensors(source, signature, content.arrays, content.columns)
    if not has_rows(signature):
        return Samples((tensors,), (record(signature, tensors),))
    total = row_count(source, tensors)
    compared = [_rows(tensors, np.arange(size) % total) for size in sizes]
    # All of them, whatever the sizes.
    compared += [tensors] if max(sizes) < total else []
    warmup: list[bytes] = []
    at = 0
    for size in cycle(sizes):
        if at >= total or len(warmup) == MAX_RECORDS:
            break
        warmup.append(record(signature, _rows(tensors, np.arange(at, min(at + size, total)))))
        at += size
    return Samples(tuple(compared), tuple(warmup))


def made_up(
    where: str, signature: Signature, sizes: Sequence[int], answer: Callable[[Inputs], object]
) -> Samples:
    """Values of the first kind that `answer`, the source itself, does not refuse. WorkshopError: it refuses
    all, or there are none of an input's dtype."""
    rng = np.random.default_rng(_SEED)
    rows = sizes if has_rows(signature) else (1,)

    def inputs(size: int, style: Style) -> Inputs:
        return {port.alias: sample(port, size, style, rng) for port in signature.inputs}

    refused: Exception | None = None
    for size in _STYLE_ROWS if has_rows(signature) else (1,):
        for style in styles_for(signature):
            try:
                made = inputs(size, style)
            except KeyError:
                raise WorkshopError(
                    f"{where}: signature {signature.name!r} has an input of a dtype that no values can be "
                    "made up for; give --samples"
                ) from None
            try:
                answer(made)
            except Exception as error:  # whatever Python, Keras or TensorFlow say of values they do not like
                refused = refused or error
                continue
            compared = tuple(inputs(count, style) for count in rows)
            return Samples(compared, tuple(record(signature, made) for made in compared))
    assert refused is not None
    raise WorkshopError(
        f"{where}: signature {signature.name!r}: the source itself refuses made-up inputs: "
        f"{first_line(refused)}; "
        "give rows that it takes with --samples FILE.npz"
    ) from refused


def _rows(tensors: Inputs, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Inputs:
    return {alias: Tensor(tensor.dtype, tensor.array[chosen]) for alias, tensor in tensors.items()}
