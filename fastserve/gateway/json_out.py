"""Answers as JSON, from arrays. Pure functions.

Numbers are written by orjson: the shortest decimal that reads back as the same value of that dtype. It has no
word for what is not finite and writes null; where there are such, their tokens take its place afterwards.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from fastserve.gateway.refusal import InvalidArgument

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_BYTES_SUFFIX = "_bytes"


def predictions(outputs: Outputs) -> bytes:
    """The answer to "instances": {"predictions": a list with what each row has}."""
    _check_rows(outputs)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return b'{"predictions":' + values(name, array) + b"}"
    lists = [_rows(name, array) for name, array in outputs.items()]
    keys = [orjson.dumps(name) + b":" for name in outputs]
    rows = [
        b"{" + b",".join([key + value for key, value in zip(keys, row, strict=True)]) + b"}"
        for row in zip(*lists, strict=True)
    ]
    return b'{"predictions":[' + b",".join(rows) + b"]}"


def columns(outputs: Outputs) -> bytes:
    """The answer to "inputs": {"outputs": what there is}, by name if it is more than one."""
    _check_any(outputs)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return b'{"outputs":' + values(name, array) + b"}"
    made = {name: orjson.Fragment(values(name, array)) for name, array in outputs.items()}
    return orjson.dumps({"outputs": made})


def values(name: str, array: Array) -> bytes:
    """An output as JSON: nested lists, or one value where it has no dimensions."""
    if array.dtype == object:
        return orjson.dumps(_strings(name, array))
    array = _plain(name, array)
    text = _dumps(array)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _with_tokens(text, array)
    return text


def numbers(array: Array) -> bytes:
    """A list of numbers as JSON."""
    return values("", array)


def classes(rows: list[list[tuple[str, float]]]) -> bytes:
    """The answer to classify: {"results": for each example its classes, each a label and a score}."""
    made = [[(label, _score(score)) for label, score in row] for row in rows]
    return orjson.dumps({"results": made}, option=_NUMPY)


def _score(score: float) -> Any:
    value = np.float32(score)
    return value if np.isfinite(value) else orjson.Fragment(numbers(np.asarray(value)))


def _dumps(array: Array) -> bytes:
    return orjson.dumps(array if array.ndim else array[()], option=_NUMPY)


def _check_any(outputs: Outputs) -> None:
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")


def _check_rows(outputs: Outputs) -> None:
    _check_any(outputs)
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgument(f"Tensor name: {name} has no shape information ")
        if rows is not None and rows != len(array):
            raise InvalidArgument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}"
            )
        rows = len(array)


def _plain(name: str, array: Array) -> Array:
    """The same values in a dtype and an order that orjson knows."""
    kind = array.dtype.kind
    if kind == "V" and array.dtype.names is None:  # bfloat16 and its kin
        array = array.astype(np.float32)
    elif kind not in "fiub":
        raise InvalidArgument(f"Failed to write JSON value for tensor type: {array.dtype}")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(array.shape)


def _rows(name: str, array: Array) -> list[bytes]:
    """What each row has, as JSON: all of it is written at once, and cut where one row ends."""
    if array.dtype == object:
        return [orjson.dumps(row) for row in _strings(name, array)]
    if array.size == 0:
        return [values(name, row) for row in array]
    # "[[1,2],[3,4]]": rows of numbers have no such brackets within.
    opening, closing = b"[" * (array.ndim - 1), b"]" * (array.ndim - 1)
    text = values(name, array)
    inner = text[array.ndim : len(text) - array.ndim]
    return [opening + row + closing for row in inner.split(closing + b"," + opening)]


def _with_tokens(text: bytes, array: Array) -> bytes:
    """`text` with tokens for what is not finite, where it has null."""
    flat = array.ravel()
    odd = flat[~np.isfinite(flat)]
    tokens = [b"NaN" if np.isnan(value) else b"Infinity" if value > 0 else b"-Infinity" for value in odd]
    first, *others = text.split(b"null")
    return first + b"".join(token + rest for token, rest in zip(tokens, others, strict=True))


def _strings(name: str, array: Array) -> Any:
    """Text, or base64 for outputs that are called ..._bytes, and for what is no text."""
    binary = name.endswith(_BYTES_SUFFIX)
    made = np.empty(array.size, object)
    made[:] = [_string(value, binary) for value in array.ravel().tolist()]
    return made.reshape(array.shape).tolist() if array.ndim else made[0]


def _string(value: bytes, binary: bool) -> Any:
    if not binary:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": b64encode(value).decode()}
