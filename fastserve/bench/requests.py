"""Requests: the arrays that a workload sends, made from a signature, from recorded rows, or read from a file.

Files of whole requests, and of recorded logs, come in two formats:

    .jsonl  a line for each request: {"inputs": {"x": [[1.0, 2.0]]}}; strings that are not UTF-8 as
            {"b64": "..."}. A log has "at_us" beside it: microseconds from its begin, in rising order.
    .npz    the rows of all requests, one array for each input, and `__rows__`: int64, how many rows each
            request has (without it: one). A log has `__at_us__`: int64, for each request.

Knows numpy; knows no server. All that is random comes from the workload's seed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.bench.workload import Input, Requests
from fastserve.errors import FastServeError
from fastserve.savedmodel import Port, Signature
from fastserve.savedmodel.signature import dtype_name

Array = npt.NDArray[Any]

ROWS_KEY, TIMES_KEY = "__rows__", "__at_us__"
STRING = 7
_NUMPY = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 9: np.int64,
    10: np.bool_, 17: np.uint16, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip
_UNKNOWN_RANK_DIMS = (-1,)


class RequestError(FastServeError):
    """No requests can be made: what the signature, workload or file says does not fit, or is not enough."""

    exit_code = 2


@dataclass(frozen=True)
class Request:
    """One request. inputs: alias to array, the first dim being `rows` wherever there is one."""

    inputs: dict[str, Array]
    rows: int


@dataclass(frozen=True)
class Log:
    """A recorded log: requests, and when each was sent, in microseconds from its begin (int64, rising)."""

    requests: list[Request]
    at_us: npt.NDArray[np.int64]

    def faster(self, speed: float) -> Log:
        return Log(self.requests, (self.at_us / speed).astype(np.int64))


def make_requests(spec: Requests, signature: Signature | None, recorded: Path | None = None) -> list[Request]:
    """`spec.count` different requests; all of the file's where the source is "file".

    signature: needed unless the rows say it all. recorded: the file of the export, for source "rows".
    Raises RequestError.
    """
    if spec.source == "file":
        return read_requests(Path(spec.file), signature)
    rng = np.random.default_rng(spec.seed)
    if spec.source == "rows":
        path = Path(spec.file) if spec.file else recorded
        if path is None or not path.exists():
            raise RequestError(f'{path or "requests.npz"}: no such file, and [requests] source is "rows"')
        rows = _load(path)
        _check_names(rows, spec, signature, path)
        return [_draw_rows(rng, spec, rows) for _ in range(spec.count)]
    if signature is None:
        raise RequestError(
            'there is no signature to make requests from: name saved_model or export, or use source = "file"'
        )
    unknown = sorted(set(spec.inputs) - {port.alias for port in signature.inputs})
    if unknown:
        raise RequestError(
            f"[requests.inputs] names {', '.join(unknown)}, which signature {signature.name} does not have; "
            f"it has {', '.join(port.alias for port in signature.inputs)}"
        )
    return [_random_request(rng, spec, signature) for _ in range(spec.count)]


def _draw(rng: np.random.Generator, span: tuple[int, ...] | int) -> int:
    return span if isinstance(span, int) else int(rng.integers(span[0], span[1] + 1))


# ---- from a signature ---------------------------------------------------------------------------


def _random_request(rng: np.random.Generator, spec: Requests, signature: Signature) -> Request:
    rows = _draw(rng, spec.rows)
    named = {name: _draw(rng, span) for name, span in spec.dims.items()}
    inputs = {}
    for port in signature.inputs:
        if port.has_default and port.alias not in spec.inputs:
            continue
        given = spec.inputs.get(port.alias, Input())
        shape = _shape(rng, port, given, rows, named)
        inputs[port.alias] = _values(rng, port, given, shape)
    return Request(inputs, rows)


def _shape(
    rng: np.random.Generator, port: Port, given: Input, rows: int, named: Mapping[str, int]
) -> tuple[int, ...]:
    dims = port.dims if port.dims is not None else _UNKNOWN_RANK_DIMS + (-1,) * len(given.dims)
    wanted = iter(given.dims)
    shape = []
    for i, dim in enumerate(dims):
        if dim >= 0:
            shape.append(dim)
        elif i == 0:
            shape.append(rows)
        else:
            span = next(wanted, None)
            if span is None:
                raise RequestError(
                    f"input {port.alias} has shape {port.shape}: dim {i} is unknown; "
                    f"give its size, or a range, in [requests.inputs.{port.alias}] dims"
                )
            shape.append(named[span] if isinstance(span, str) else _draw(rng, span))
    if next(wanted, None) is not None:
        raise RequestError(
            f"[requests.inputs.{port.alias}] dims has {len(given.dims)} sizes, more than the unknown inner "
            f"dims of {port.alias}, which has shape {port.shape}"
        )
    return tuple(shape)


def _values(rng: np.random.Generator, port: Port, given: Input, shape: tuple[int, ...]) -> Array:
    if port.dtype == STRING:
        numbers = _numbers(rng, given, shape, 0, 999, whole=True)
        texts = np.array([b"%d" % number for number in numbers.ravel()], dtype=object)
        strings: Array = texts.reshape(shape)
        return strings
    dtype = _NUMPY.get(port.dtype)
    if dtype is None:
        raise RequestError(
            f"input {port.alias} is {dtype_name(port.dtype)}, of which no random values are made; "
            'use source = "rows" or "file"'
        )
    whole = not np.issubdtype(dtype, np.floating)
    # 0 and 1 for whole numbers: they may be ids, and nothing says how many there are.
    array: Array = _numbers(rng, given, shape, 0, 1, whole).astype(dtype)
    return array


def _numbers(
    rng: np.random.Generator, given: Input, shape: tuple[int, ...], low: float, high: float, whole: bool
) -> Array:
    low = low if given.low is None else given.low
    high = max(low, high) if given.high is None else given.high
    if given.distribution == "zipf":
        # The k-th most frequent value is `low` + k; by inverting the continuous law, which is close enough.
        span = high - low + 1
        return np.minimum(low + np.floor(span ** rng.random(shape)) - 1, high)
    if given.distribution == "normal":
        values = np.clip(rng.normal((low + high) / 2, (high - low) / 6, shape), low, high)
        return np.rint(values) if whole else values
    return rng.integers(round(low), round(high) + 1, shape) if whole else rng.uniform(low, high, shape)


# ---- from recorded rows -------------------------------------------------------------------------


def _check_names(rows: Mapping[str, Array], spec: Requests, signature: Signature | None, path: Path) -> None:
    if not rows:
        raise RequestError(f"{path}: holds no arrays")
    lengths = {name: len(array) if array.ndim else 0 for name, array in rows.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) == 0:
        raise RequestError(f"{path}: the arrays have different numbers of rows: {lengths}")
    unknown = sorted(set(spec.inputs) - set(rows))
    if unknown:
        raise RequestError(
            f"[requests.inputs] names {', '.join(unknown)}, which {path} does not have; "
            f"it has {', '.join(rows)}"
        )
    if signature is not None:
        needed = {port.alias for port in signature.inputs if not port.has_default}
        missing = sorted(needed - set(rows))
        surplus = sorted(set(rows) - {port.alias for port in signature.inputs})
        if missing or surplus:
            raise RequestError(
                f"{path}: has {', '.join(rows)}, but signature {signature.name} takes "
                f"{', '.join(port.alias for port in signature.inputs)}"
            )


def _draw_rows(rng: np.random.Generator, spec: Requests, recorded: Mapping[str, Array]) -> Request:
    rows = _draw(rng, spec.rows)
    total = len(next(iter(recorded.values())))
    run = min(spec.run, total)
    starts = rng.integers(0, total // run, -(-rows // run)) * run
    chosen = (starts[:, None] + np.arange(run)).ravel()[:rows]
    inputs = {name: array[chosen] for name, array in recorded.items()}
    named = {name: _draw(rng, span) for name, span in spec.dims.items()}
    return Request(_cut(spec, inputs, named), rows)


def _cut(spec: Requests, inputs: dict[str, Array], named: dict[str, int]) -> dict[str, Array]:
    """Inputs with dims cut to what was drawn; those with `trim` to what the rows hold, alike for one name."""
    trimmed: dict[str, int] = {}
    for name, given in spec.inputs.items():
        if given.trim is not None and inputs[name].ndim > 1:
            label = _dim_label(name, given)
            trimmed[label] = max(trimmed.get(label, 1), _filled(inputs[name], given.trim))
    done = dict(inputs)
    for name, given in spec.inputs.items():
        array = inputs[name]
        if array.ndim < 2:
            continue
        size = trimmed.get(_dim_label(name, given))
        if size is None and given.dims:
            first = given.dims[0]
            size = named[first] if isinstance(first, str) else first if isinstance(first, int) else None
        if size is not None:
            done[name] = np.ascontiguousarray(array[:, :size])
    return done


def _dim_label(name: str, given: Input) -> str:
    """Inputs with the same label are cut alike: a dim's name, or the input's own."""
    return given.dims[0] if given.dims and isinstance(given.dims[0], str) else f"input {name}"


def _filled(array: Array, filler: float) -> int:
    columns = np.any(array != filler, axis=tuple(axis for axis in range(array.ndim) if axis != 1))
    used = np.flatnonzero(columns)
    return int(used[-1]) + 1 if len(used) else 1


# ---- from files ---------------------------------------------------------------------------------


def read_requests(path: Path, signature: Signature | None) -> list[Request]:
    """The whole requests in a file. signature: says the dtypes of a .jsonl. Raises RequestError."""
    return _read(path, signature, timed=False).requests


def read_log(path: Path, signature: Signature | None) -> Log:
    """The requests of a recorded log and when each was sent. Raises RequestError."""
    log = _read(path, signature, timed=True)
    if np.any(np.diff(log.at_us) < 0):
        late = int(np.argmax(np.diff(log.at_us) < 0)) + 2
        raise RequestError(f"{path}: request {late} was sent before the one above it; sort the log by time")
    return Log(log.requests, log.at_us - log.at_us[0])


def write_log(path: Path, log: Log) -> None:
    """A log as .npz; requests whose inner dims differ cannot be in one."""
    names = log.requests[0].inputs
    arrays = {name: np.concatenate([request.inputs[name] for request in log.requests]) for name in names}
    counts = np.array([request.rows for request in log.requests], np.int64)
    members: dict[str, Any] = {**arrays, ROWS_KEY: counts, TIMES_KEY: log.at_us}
    np.savez_compressed(path, **members)


def _read(path: Path, signature: Signature | None, timed: bool) -> Log:
    if not path.exists():
        raise RequestError(f"{path}: no such file")
    if path.suffix == ".npz":
        return _read_npz(path, timed)
    if path.suffix == ".jsonl":
        return _read_jsonl(path, signature, timed)
    raise RequestError(f"{path}: expected a file that ends in .npz or .jsonl")


def _load(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read as .npz: {error}") from None


def _read_npz(path: Path, timed: bool) -> Log:
    arrays = _load(path)
    counts, times = arrays.pop(ROWS_KEY, None), arrays.pop(TIMES_KEY, None)
    if timed and times is None:
        raise RequestError(f"{path}: has no {TIMES_KEY}; a log says when each request was sent")
    _check_names(arrays, Requests(), None, path)
    total = len(next(iter(arrays.values())))
    counts = np.ones(total, np.int64) if counts is None else counts.astype(np.int64)
    times = np.zeros(len(counts), np.int64) if times is None else times.astype(np.int64)
    if counts.sum() != total or counts.min(initial=1) < 1 or len(times) != len(counts):
        raise RequestError(
            f"{path}: {ROWS_KEY} has {len(counts)} requests of {counts.sum()} rows together, "
            f"but the arrays have {total} rows" + (f" and there are {len(times)} times" if timed else "")
        )
    ends = np.cumsum(counts)
    requests = [
        Request({name: array[end - count : end] for name, array in arrays.items()}, int(count))
        for count, end in zip(counts, ends, strict=True)
    ]
    return Log(requests, times)


def _read_jsonl(path: Path, signature: Signature | None, timed: bool) -> Log:
    ports = {port.alias: port for port in signature.inputs} if signature else {}
    requests, times = [], []
    for place, item in _lines(path):
        inputs = item.get("inputs")
        if not isinstance(inputs, dict) or not inputs:
            raise RequestError(f'{place}: expected {{"inputs": {{NAME: values, ...}}}}')
        at_us = item.get("at_us", None if timed else 0)
        if not isinstance(at_us, int | float):
            raise RequestError(f'{place}: has no "at_us", the microseconds since the log began')
        arrays = {name: _array(place, name, value, ports) for name, value in inputs.items()}
        rows = next((len(array) for array in arrays.values() if array.ndim), 1)
        requests.append(Request(arrays, rows))
        times.append(round(at_us))
    if not requests:
        raise RequestError(f"{path}: holds no request")
    return Log(requests, np.array(times, np.int64))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                item = json.loads(line)
            except ValueError as error:
                raise RequestError(f"{place}: not JSON: {error}") from None
            if not isinstance(item, dict):
                raise RequestError(f"{place}: expected a JSON object")
            yield place, item


def _array(place: str, name: str, value: Any, ports: Mapping[str, Port]) -> Array:
    if ports and name not in ports:
        raise RequestError(f"{place}: there is no input {name}; there are {', '.join(ports)}")
    dtype = ports[name].dtype if ports else None
    try:
        if dtype == STRING or (dtype is None and _holds_text(value)):
            return _string_array(value)
        return np.array(value, _NUMPY[dtype] if dtype in _NUMPY else _plain_dtype(value))
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(f"{place}: input {name}: {error}") from None


def _plain_dtype(value: Any) -> Any:
    """Without a signature: float32 for numbers with a fraction, int64 for whole ones, as JSON has no more."""
    return {"f": np.float32, "b": np.bool_}.get(np.array(value).dtype.kind, np.int64)


def _holds_text(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, str | dict)


def _string_array(value: Any) -> Array:
    shape: list[int] = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    flat = list(_flatten(value))
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    strings: Array = array.reshape(shape)
    return strings


def _flatten(value: Any) -> Iterator[bytes]:
    if isinstance(value, list):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, dict) and isinstance(value.get("b64"), str):
        yield base64.b64decode(value["b64"])
    else:
        raise ValueError(f"expected strings, found {value!r}")
