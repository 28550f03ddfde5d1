"""What a model is compared and timed with: rows of its user's, recorded requests, or made-up ones.

In this order: `--rows`, `--requests` (request logs or warm-up files), the version's own warm-up file, save
for what is marked in them as made up; else values made up from the signature, which say little about accuracy
and speed, and a warning says so. Pure numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastserve.errors import ModelError
from fastserve.offline.broadcast import spread
from fastserve.offline.records import (
    REQUESTS_FILE,
    WarmupRequest,
    read_requests,
    requests_of,
    sample_rows,
)
from fastserve.offline.rows import read_rows
from fastserve.offline.tensors import Style, Tensor, sample
from fastserve.savedmodel import SavedModel, Signature
from fastserve.savedmodel.tfrecord import TFRecordError, read_records
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing.values import Inputs, Load, Pools, Wanted

# Rows that are compared, and recorded requests that are, at most: from all over what there is, rows in
# stretches, since neighbours may be of one user.
_MOST_ROWS, _STRETCH = 4096, 128
_MOST_REQUESTS = 256
# Of a file of requests, so many are read.
_READ_REQUESTS = 4096
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
        files = [_of_file(file, saved_model) for file in wanted.requests]
        more = any(len(found) >= _READ_REQUESTS for found in files)
        first = f" (a file's first {_READ_REQUESTS})" if more else ""
        found = _in_full([request for each in files for request in each], wanted.user_inputs)
        return _of_requests(f"recorded requests{first}", found)
    try:
        there = read_requests(path, saved_model, wanted.user_inputs)
    except ModelError as error:
        raise WorkshopError(
            f"{path / REQUESTS_FILE} cannot be used: {error}; name others with --rows"
        ) from None
    found = [request for request in there if not request.made_up]
    return _of_requests("requests of its warm-up file", found) if found else Pools("", {}, {})


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
    chosen, number = np.arange(found.count), str(found.count)
    if found.count > _MOST_ROWS:
        starts = _spaced(found.count - _STRETCH + 1, _MOST_ROWS // _STRETCH)
        chosen = (starts[:, None] + np.arange(_STRETCH)).ravel()
        number = f"{len(chosen)} of the {found.count}"
    tensors = found.request(chosen)
    rows = [tensors[port.alias] for port in found.signature.inputs]
    return Pools(f"{number} rows of {file}", {found.signature.name: rows}, {})


def _spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """Numbers below `count`, from the first to the last, `most` of them at most."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _of_file(file: Path, saved_model: SavedModel) -> list[WarmupRequest]:
    found: list[WarmupRequest] = []
    try:
        for record in read_records(file):
            found += [one for one in requests_of(record, file, saved_model) if not one.made_up]
            if len(found) >= _READ_REQUESTS:
                break
    except (OSError, TFRecordError, ModelError) as error:
        raise WorkshopError(f"{file} is no file of requests that this model takes: {error}") from None
    return found


def _in_full(found: Sequence[WarmupRequest], user_inputs: tuple[str, ...]) -> list[WarmupRequest]:
    """As the model runs them: a log has what came, and a user's inputs may have come with one row."""
    return [
        replace(request, inputs=spread(request.signature, user_inputs, request.inputs)) for request in found
    ]


def _of_requests(origin: str, found: Sequence[WarmupRequest]) -> Pools:
    """`origin`: for people, after their number."""
    by_signature: dict[str, list[Inputs]] = {}
    for request in found:
        by_signature.setdefault(request.signature.name, []).append(list(request.inputs))
    requests = {
        name: tuple(each[place] for place in _spaced(len(each), _MOST_REQUESTS))
        for name, each in by_signature.items()
    }
    rows = {name: list(tensors) for name, tensors in sample_rows(found).items()}
    run = sum(map(len, requests.values()))
    number = f"{run} of the {len(found)}" if run < len(found) else str(run)
    return Pools(f"{number} {origin}", rows, requests)


def made_up(signature: Signature, style: Style) -> Inputs:
    rng = np.random.default_rng(_SEED)
    return [sample(port, _MADE_UP_ROWS, style, rng) for port in signature.inputs]


def load_of(signature: Signature, pools: Pools, wanted: Wanted) -> Load | None:
    """What to run the signature with; None when there are no real inputs for it."""
    rows, requests = pools.rows.get(signature.name), pools.requests.get(signature.name, ())
    if rows is None and not requests:
        return None
    if rows is None or (requests and not _has_rows(signature)):
        return Load(signature, requests, _most_usual(requests))
    return from_rows(signature, rows, wanted, requests)


def _most_usual(requests: tuple[Inputs, ...]) -> dict[int, tuple[Inputs, ...]]:
    """Those to time: of as many rows as most of them have."""
    if not requests:
        return {}
    ((size, _),) = Counter(map(_count, requests)).most_common(1)
    return {size: tuple(inputs for inputs in requests if _count(inputs) == size)[:_TIMED_BATCHES]}


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
        alike = [_of_users(signature, batch, wanted) for batch in batches]
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


def _of_users(signature: Signature, batch: Inputs, wanted: Wanted) -> Inputs:
    """The batch as requests that the server put together, each of the smallest size: in every row of one, its
    first row's user."""
    number = np.arange(len(batch[0].array))
    first = number - number % min(wanted.batch_sizes)
    return [
        Tensor(tensor.dtype, tensor.array[first]) if port.alias in wanted.user_inputs else tensor
        for port, tensor in zip(signature.inputs, batch, strict=True)
    ]


def _count(inputs: Inputs) -> int:
    return len(inputs[0].array) if inputs and inputs[0].array.ndim else 1
