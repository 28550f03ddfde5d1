"""Requests to compare an export with its source by: rows that the user gave, or made-up ones that it
accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastserve._native.codec import CodecError
from fastserve.offline.records import predict_record
from fastserve.offline.rows import read_rows
from fastserve.offline.tensors import Style, Tensor, from_proto, sample, styles_for
from fastserve.savedmodel import Port, Signature
from fastserve.workshop.endpoint import first_line
from fastserve.workshop.errors import WorkshopError

Inputs = Mapping[str, Tensor]

_SEED = 20240229
_STYLE_ROWS = (8, 2)


@dataclass(frozen=True)
class Samples:
    """`compared`: what source and export both answer. `warmup`: requests for the version to bring along, cut
    from the rows only when they are taken. `made_up`: their values are nobody's own."""

    compared: tuple[Inputs, ...]
    warmup: Iterable[Inputs]
    made_up: bool = False


def has_rows(signature: Signature) -> bool:
    """Whether a request may have any number of rows."""
    return any(map(_is_open, signature.inputs))


def rows_of(signature: Signature, inputs: Inputs) -> int:
    """How many rows a request has; 1 where there are none."""
    counted = [port.alias for port in signature.inputs if _is_open(port) and port.alias in inputs]
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
    own = None if has_rows(signature) else _own_size(signature)
    whole = own is None and not has_rows(signature)
    found = read_rows(source, lambda _: signature, defaults=True, whole=whole)
    tensors, total = found.tensors, found.count
    if whole:
        return Samples((tensors,), (tensors,))
    if own is not None:
        full = tuple(_rows(tensors, np.arange(at, at + own) % total) for at in range(0, total, own))
        return Samples(full, full)
    most = max(sizes)
    compared = [_rows(tensors, np.arange(size) % total) for size in sizes]
    compared += [_rows(tensors, np.arange(at, min(at + most, total))) for at in range(most, total, most)]
    return Samples(tuple(compared), found.in_requests(sizes))


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
            return Samples(compared, compared, made_up=True)
    assert refused is not None
    raise WorkshopError(
        f"{where}: signature {signature.name!r}: the source itself refuses made-up inputs: "
        f"{first_line(refused)}; "
        "give rows that it takes with --samples FILE.npz"
    ) from refused


def _is_open(port: Port) -> bool:
    return port.dims is None or port.dims[:1] == (-1,)


def _own_size(signature: Signature) -> int | None:
    """The number of rows that every request has, of a signature that does not take any number."""
    sizes = {port.dims[0] if port.dims else None for port in signature.inputs}
    return sizes.pop() if len(sizes) == 1 else None


def _rows(tensors: Inputs, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Inputs:
    return {alias: Tensor(tensor.dtype, tensor.array[chosen]) for alias, tensor in tensors.items()}
