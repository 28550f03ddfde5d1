"""`fastserve warmup make`: warm-up requests from a SavedModel's signatures, or from rows that somebody
has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from fastserve._native.codec import CodecError, encode_tensor, parse_predict
from fastserve.cli_predict import InputError, read_inputs, to_arrays
from fastserve.cli_warmup_file import check_place, write_whole
from fastserve.control.trial_records import MAX_RECORDS
from fastserve.control.trial_tensors import BFLOAT16, STRING, Style, Tensor, sample
from fastserve.errors import FastServeError
from fastserve.protos import message
from fastserve.savedmodel import Port, SavedModel, Signature, read
from fastserve.savedmodel.signature import dtype_name
from fastserve.savedmodel.tfrecord import write_records

_DEFAULT_SIGNATURE = "serving_default"
# TensorFlow puts these in; nobody calls them.
_INTERNAL = "__saved_model_"
_SPREAD = 2  # numbers of some width
# numpy's names for TensorFlow's dtypes, where they are not the same.
_NUMPY_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


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
        rows = (
            [1] if not any(port.dims is None or port.dims[:1] == (-1,) for port in signature.inputs) else None
        )
        for size in rows or wanted.batch_sizes:
            try:
                inputs = {port.alias: sample(port, size, style, rng) for port in signature.inputs}
            except KeyError:
                raise MakeError(
                    f"signature {signature.name} has an input of a dtype that no values can be made up for; "
                    "leave it out: name the others with --signature"
                ) from None
            yield _log(signature, inputs)


def _signatures(wanted: Made, saved_model: SavedModel) -> list[Signature]:
    """Those that are asked for. MakeError when there are none, or some are not there."""
    there = [s for s in saved_model.signatures if not s.name.startswith(_INTERNAL)]
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
    content = read_inputs(str(source))
    if len(wanted.signatures) > 1:
        raise MakeError("rows are for one signature: give --signature once")
    if content.examples is not None:
        raise InputError(f"{source} has examples: give the inputs of a signature, serialized Examples as b64")
    name = (wanted.signatures or (content.signature or _DEFAULT_SIGNATURE,))[0]
    (signature,) = _signatures(Made(wanted.directory, wanted.tags, (name,), wanted.batch_sizes), saved_model)
    tensors = _tensors(source, signature, content.arrays, content.columns)
    total = _count(source, tensors)
    at = 0
    for size in cycle(wanted.batch_sizes):
        if at >= total:
            return
        yield _log(signature, {alias: t.rows(at, at + size) for alias, t in tensors.items()})
        at += size


def _tensors(
    source: Path,
    signature: Signature,
    arrays: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Every input's tensor, in the signature's dtype. MakeError, InputError."""
    known = {port.alias: _numpy_name(port) for port in signature.inputs}
    if arrays is None:
        arrays = to_arrays(columns, {}, known)
    required = {port.alias for port in signature.inputs if not port.has_default}
    missing, extra = required - arrays.keys(), arrays.keys() - known.keys()
    if missing or extra:
        says = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        says += [f"has {', '.join(sorted(extra))}, which the signature has not"] if extra else []
        raise MakeError(
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
        raise MakeError(
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
        raise MakeError(
            f"{source}: input {port.alias} is of {array.dtype}, which is no {dtype_name(port.dtype)}"
        ) from None
    if cast.dtype.kind in "iub" and not np.array_equal(cast.astype(array.dtype), array):
        raise MakeError(f"{source}: input {port.alias} has values that {dtype_name(port.dtype)} cannot hold")
    return Tensor(port.dtype, cast)


def _count(source: Path, tensors: Mapping[str, Tensor]) -> int:
    counts = {alias: t.array.shape[0] if t.array.ndim else None for alias, t in tensors.items()}
    if None in counts.values() or len(set(counts.values())) != 1:
        shown = ", ".join(f"{alias} {'no' if n is None else n}" for alias, n in counts.items())
        raise MakeError(f"{source}: every input needs as many rows as the others: {shown}")
    total = next(iter(counts.values())) or 0
    if total == 0:
        raise MakeError(f"{source}: there are no rows")
    return total


# ---- a record ------------------------------------------------------------------------------------


def _log(signature: Signature, inputs: Mapping[str, Tensor]) -> bytes:
    """A PredictionLog of one Predict request."""
    log = message("tensorflow.serving.PredictionLog")()
    request = log.predict_log.request
    request.model_spec.signature_name = signature.name
    for alias, tensor in inputs.items():
        request.inputs[alias].ParseFromString(
            encode_tensor(tensor.native(), as_content=tensor.dtype != STRING)
        )
    try:
        parse_predict(request.SerializeToString())
    except CodecError as error:  # beyond what a request may be
        raise MakeError(f"signature {signature.name}: its request is refused ({error})") from None
    data: bytes = log.SerializeToString(deterministic=True)
    return data
