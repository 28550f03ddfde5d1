"""What a model is compared and timed with: rows of its user's, recorded requests, or made-up ones.

In this order: `--rows`, `--requests` (request logs or warm-up files), the version's own warm-up file, save
for what is marked in them as made up; else values made up from the signature, which say little about accuracy
and speed, and a warning says so. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastserve.errors import ModelError
from fastserve.offline.records import (
    REQUESTS_FILE,
    WarmupRequest,
    read_requests,
    requests_of,
    sample_rows,
)
from fastserve.offline.rows import read_rows
from fastserve.offline.tensors import EXAMPLE_STYLES, STYLES, Style, Tensor, sample
from fastserve.savedmodel import SavedModel, Signature
from fastserve.savedmodel.tfrecord import TFRecordError, read_records
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing.values import Inputs, Load, Pools, Wanted

# Rows that are compared, and recorded requests that are, at most.
_MOST_ROWS = 4096
_MOST_REQUESTS = 256
_MADE_UP_ROWS = 512
# Batches of one size that timing goes through, so that it does not see the same rows each time.
_TIMED_BATCHES = 4
_SEED = 20240229


def find_pools(path: Path, saved_model: SavedModel, wanted: Wanted) -> Pools:
    """Real inputs. WorkshopError, RowsError, InputError where files are no such; no pools where there are
    none."""
    if wanted.rows is not None:
        return _of_rows(wanted.rows, saved_model)
    if wanted.requests:
        found = [request for file in wanted.requests for request in _of_file(file, saved_model)]
        return _of_requests(f"{len(found)} recorded requests", found)
    try:
        found = [request for request in read_requests(path, saved_model) if not request.made_up]
    except ModelError as error:
        raise WorkshopError(
            f"{path / REQUESTS_FILE} cannot be used: {error}; name others with --rows"
        ) from None
    return (
        _of_requests(f"the {len(found)} requests of its warm-up file", found) if found else Pools("", {}, {})
    )


def _of_rows(file: Path, saved_model: SavedModel) -> Pools:
    def choose(named: str | None) -> Signature:
        name = named or "serving_default"
        signature = saved_model.signature(name) or (
            saved_model.signatures[0] if len(saved_model.signatures) == 1 else None
        )
        if signature is None:
            raise WorkshopError(f"{file}: rows are for the signature {name}, which the model has not")
        return signature

    found = read_rows(file, choose, defaults=False)
    signature = found.signature
    first = found.request(slice(0, _MOST_ROWS))
    rows = [first[port.alias] for port in signature.inputs]
    return Pools(f"{found.count} rows of {file}", {signature.name: rows}, {})


def _of_file(file: Path, saved_model: SavedModel) -> list[WarmupRequest]:
    found: list[WarmupRequest] = []
    try:
        for record in read_records(file):
            found += [one for one in requests_of(record, file, saved_model) if not one.made_up]
            if len(found) >= _MOST_ROWS:
                break
    except (OSError, TFRecordError, ModelError) as error:
        raise WorkshopError(f"{file} is no file of requests that this model takes: {error}") from None
    return found


def _of_requests(origin: str, found: Sequence[WarmupRequest]) -> Pools:
    requests: dict[str, tuple[Inputs, ...]] = {}
    for request in found:
        name = request.signature.name
        requests[name] = (*requests.get(name, ()), list(request.inputs))
    rows = {name: list(tensors) for name, tensors in sample_rows(found).items()}
    return Pools(origin, rows, {name: each[:_MOST_REQUESTS] for name, each in requests.items()})


def made_up(signature: Signature, style: Style) -> Inputs:
    rng = np.random.default_rng(_SEED)
    return [sample(port, _MADE_UP_ROWS, style, rng) for port in signature.inputs]


def styles_of(signature: Signature) -> list[Style]:
    """Ways to make up inputs, those first that say most."""
    open_inside = any(dim < 0 for port in signature.inputs for dim in (port.dims or ())[1:])
    styles = [style for style in STYLES if style.inner == 1 or open_inside]
    return [*EXAMPLE_STYLES, *styles] if any(port.features for port in signature.inputs) else styles


def load_of(signature: Signature, pools: Pools, wanted: Wanted) -> Load | None:
    """What to run the signature with; None when there are no real inputs for it."""
    rows, requests = pools.rows.get(signature.name), pools.requests.get(signature.name, ())
    if rows is None and not requests:
        return None
    if rows is None or (requests and not _has_rows(signature)):
        return Load(signature, requests, {_count(requests[0]): requests[:_TIMED_BATCHES]} if requests else {})
    return from_rows(signature, rows, wanted, requests)


def from_rows(signature: Signature, rows: Inputs, wanted: Wanted, requests: tuple[Inputs, ...] = ()) -> Load:
    """Rows one by one, in threes, and in the batches that are timed; where the signature does not take any
    number of rows, as it has them."""
    own = signature.own_rows
    if own is not None:
        last = min(len(rows[0].array), own * _MOST_REQUESTS)
        full = tuple(_batch(rows, first, own) for first in range(0, last, own))
        return Load(signature, full, {own: full[:_TIMED_BATCHES]})
    if not _has_rows(signature):
        one = [
            tensor.rows(0, 1) if port.any_rows and tensor.array.ndim else tensor
            for port, tensor in zip(signature.inputs, rows, strict=True)
        ]
        return Load(signature, (one,), {1: (one,)})
    total = len(rows[0].array)
    checked: list[Inputs] = list(requests)
    checked += [_cut(rows, first, first + 1) for first in range(min(total, 4))]
    checked += [_cut(rows, first, first + 3) for first in range(0, min(total, 30), 3)]
    timed = {}
    for size in wanted.batch_sizes:
        batches = [_batch(rows, first, size) for first in range(0, max(total, 1), size)]
        checked += batches
        alike = [_of_one_user(signature, batch, wanted.user_inputs) for batch in batches]
        if wanted.user_inputs:
            checked += alike
        timed[size] = tuple(alike[:_TIMED_BATCHES])
    return Load(signature, tuple(checked), timed)


def _has_rows(signature: Signature) -> bool:
    ports = signature.inputs
    return bool(ports) and all(port.dims is not None and port.dims[:1] == (-1,) for port in ports)


def _cut(rows: Inputs, first: int, last: int) -> Inputs:
    return [tensor.rows(first, last) for tensor in rows]


def _batch(rows: Inputs, first: int, size: int) -> Inputs:
    """So many rows, from the beginning again where there are no more."""
    chosen = np.arange(first, first + size) % len(rows[0].array)
    return [Tensor(tensor.dtype, tensor.array[chosen]) for tensor in rows]


def _of_one_user(signature: Signature, batch: Inputs, user_inputs: tuple[str, ...]) -> Inputs:
    """The batch as one request: the first row's user in every row."""
    return [
        Tensor(tensor.dtype, np.repeat(tensor.array[:1], len(tensor.array), axis=0))
        if port.alias in user_inputs
        else tensor
        for port, tensor in zip(signature.inputs, batch, strict=True)
    ]


def _count(inputs: Inputs) -> int:
    return len(inputs[0].array) if inputs and inputs[0].array.ndim else 1
