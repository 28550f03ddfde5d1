"""`fastserve warmup make`: warm-up requests from a SavedModel's signatures, or from rows that somebody
has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastserve._native.codec import CodecError
from fastserve.errors import FastServeError
from fastserve.offline.records import MAX_RECORDS, predict_record
from fastserve.offline.rows import read_rows
from fastserve.offline.tensors import Style, Tensor, sample
from fastserve.savedmodel import SavedModel, Signature, read
from fastserve.savedmodel.tfrecord import write_records
from fastserve.whole_file import check_place, write_whole

_DEFAULT_SIGNATURE = "serving_default"
_SPREAD = 2  # numbers of some width


class MakeError(FastServeError):
    """What was asked for cannot be made of this SavedModel or these rows."""

    exit_code = 2


@dataclass(frozen=True)
class Made:
    """The command's arguments."""

    directory: Path
    tags: tuple[str, ...]
    signatures: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    inner: int = 1
    seed: int = 0


def make_file(wanted: Made, rows: Path | None, output: Path, *, force: bool) -> str:
    """Writes the file; what to say. FastServeError, and then nothing is written."""
    check_place(output, force=force)
    saved_model = read(wanted.directory, wanted.tags)
    requests = list(_made_up(wanted, saved_model) if rows is None else _of_rows(wanted, saved_model, rows))
    if len(requests) > MAX_RECORDS:
        raise MakeError(
            f"{len(requests)} requests, but a version takes {MAX_RECORDS} at most; give fewer rows, or a "
            "larger --batch-size"
        )
    write_whole(output, lambda file: _write(file, requests))
    count = len(requests)
    return f"{count} request{'' if count == 1 else 's'} in {output}"


def _write(file: Any, requests: list[bytes]) -> None:
    write_records(file, requests)


# ---- made up -------------------------------------------------------------------------------------


def _made_up(wanted: Made, saved_model: SavedModel) -> Iterator[bytes]:
    rng = np.random.default_rng(wanted.seed)
    style = Style(_SPREAD, wanted.inner)
    for signature in _signatures(wanted, saved_model):
        # A signature without a row dimension gets one request, whatever the batch sizes.
        for size in wanted.batch_sizes if signature.any_rows else (1,):
            try:
                inputs = {port.alias: sample(port, size, style, rng) for port in signature.inputs}
            except KeyError:
                raise MakeError(
                    f"signature {signature.name} has an input of a dtype that no values can be made up for; "
                    "leave it out: name the others with --signature"
                ) from None
            yield _log(signature, inputs, made_up=True)


def _signatures(wanted: Made, saved_model: SavedModel) -> list[Signature]:
    """Those that are asked for. MakeError when there are none, or some are not there."""
    there = [s for s in saved_model.signatures if not s.internal]
    names = ", ".join(signature.name for signature in there) or "none"
    for name in wanted.signatures:
        if all(signature.name != name for signature in there):
            raise MakeError(f"{wanted.directory} has no signature {name}; there are: {names}")
    chosen = [s for s in there if s.inputs and (not wanted.signatures or s.name in wanted.signatures)]
    if not chosen:
        raise MakeError(f"{wanted.directory} has no signature with inputs; there are: {names}")
    return chosen


# ---- from rows -----------------------------------------------------------------------------------


def _of_rows(wanted: Made, saved_model: SavedModel, source: Path) -> Iterator[bytes]:
    if len(wanted.signatures) > 1:
        raise MakeError("rows are for one signature: give --signature once")

    def choose(named: str | None) -> Signature:
        names = wanted.signatures or (named or _DEFAULT_SIGNATURE,)
        (signature,) = _signatures(replace(wanted, signatures=names), saved_model)
        return signature

    rows = read_rows(source, choose, defaults=True)
    for tensors in rows.in_requests(wanted.batch_sizes):
        yield _log(rows.signature, tensors, made_up=False)


# ---- a record ------------------------------------------------------------------------------------


def _log(signature: Signature, inputs: Mapping[str, Tensor], *, made_up: bool) -> bytes:
    """A PredictionLog of one Predict request."""
    try:
        return predict_record(signature, inputs, made_up=made_up)
    except CodecError as error:  # beyond what a request may be
        raise MakeError(f"signature {signature.name}: its request is refused ({error})") from None
