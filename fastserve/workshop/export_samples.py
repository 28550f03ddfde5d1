"""Requests to compare an export with its source by: rows that the user gave, or made-up ones that it
accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastserve._native.codec import CodecError
from fastserve.offline.records import predict_record
from fastserve.offline.rows import Rows, read_rows
from fastserve.offline.tensors import Style, Tensor, from_proto, sample, styles_for
from fastserve.savedmodel import Signature
from fastserve.workshop.endpoint import first_line
from fastserve.workshop.errors import WorkshopError

Inputs = Mapping[str, Tensor]

_SEED = 20240229
_STYLE_ROWS = (8, 2)


@dataclass(frozen=True)
class Samples:
    """`compared`: what source and export both answer. `warmup`: requests for the version to bring along. Each
    is taken once, and rows are cut only then. `made_up`: their values are nobody's own."""

    compared: Iterable[Inputs]
    warmup: Iterable[Inputs]
    made_up: bool = False


def rows_of(signature: Signature, inputs: Inputs) -> int:
    """How many rows a request has; 1 where there are none."""
    counted = [port.alias for port in signature.inputs if port.any_rows and port.alias in inputs]
    shapes = [inputs[alias].array.shape for alias in counted or inputs]
    return next((shape[0] for shape in shapes if shape), 1)


def left_out(signature: Signature, inputs: Inputs) -> dict[str, Tensor]:
    """The defaults of what a request leaves out."""
    return {
        port.alias: from_proto(port.default)
        for port in signature.inputs
        if port.default is not None and port.alias not in inputs
    }


def record(signature: Signature, inputs: Inputs, *, made_up: bool = False) -> bytes:
    """A PredictionLog of one request. WorkshopError: beyond what a request may be."""
    try:
        return predict_record(signature, inputs, made_up=made_up)
    except CodecError as error:
        raise WorkshopError(
            f"signature {signature.name!r}: a request of such a size is refused ({error}); give smaller "
            "ones with --batch-size"
        ) from None


def of_file(source: Path, signature: Signature, sizes: Sequence[int]) -> Samples:
    """Rows from an .npz or JSON file: all are compared, at each of `sizes`, rows again and again if need be,
    and they are cut into requests of these sizes in turn to warm up with. Where the signature has a size of
    its own, that is the only one. FastServeError: they do not fit the signature."""
    found = read_rows(source, lambda _: signature, defaults=True)
    return Samples(_compared(found, sizes), found.in_requests(sizes))


def _compared(rows: Rows, sizes: Sequence[int]) -> Iterator[Inputs]:
    if not rows.signature.any_rows:
        yield from rows.in_requests(sizes)
        return
    most = max(sizes)
    for size in sizes:
        yield rows.request(np.arange(size) % rows.count)
    for at in range(most, rows.count, most):
        yield rows.request(slice(at, at + most))


def made_up(
    where: str, signature: Signature, sizes: Sequence[int], answer: Callable[[Inputs], object]
) -> Samples:
    """Values of the first kind that `answer`, the source itself, does not refuse. WorkshopError: it refuses
    all, or there are none of an input's dtype."""
    rng = np.random.default_rng(_SEED)
    rows = sizes if signature.any_rows else (1,)

    def inputs(size: int, style: Style) -> Inputs:
        return {port.alias: sample(port, size, style, rng) for port in signature.inputs}

    refused: Exception | None = None
    for size in _STYLE_ROWS if signature.any_rows else (1,):
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
            return Samples(compared, compared, made_up=True)
    assert refused is not None
    raise WorkshopError(
        f"{where}: signature {signature.name!r}: the source itself refuses made-up inputs: "
        f"{first_line(refused)}; "
        "give rows that it takes with --samples FILE.npz"
    ) from refused
