"""The slow way from JSON to tensors: element by element, as TensorFlow Serving goes, with its words for what
is wrong. Also for what is rare: strings of several dimensions. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastserve.client.messages import TensorInfo
from fastserve.gateway.json_strings import from_base64, is_base64
from fastserve.gateway.json_text import shown, type_name
from fastserve.gateway.refusal import HTTP_STATUS, InvalidArgument, Refusal

Inputs = Mapping[str, TensorInfo]
Array = np.ndarray[Any, Any]
Shape = list[int]

# What is less than this is rounded to the largest float.
_FLT_BOUND = (2.0 - 2.0**-24) * 2.0**127
_MAX_DIMS = 64
# Of each dtype: the name in errors, up to where whole numbers are exact, and the bound of all values.
# TensorFlow Serving takes none of 16 bits; here they are rounded.
_FLOATS = {
    "float32": ("float", (1 << 24) - 1, _FLT_BOUND),
    "float64": ("double", (1 << 53) - 1, math.inf),
    "float16": ("half", 65504, 65520.0),
    "bfloat16": ("bfloat16", (1 << 24) - 1, (2.0 - 2.0**-8) * 2.0**127),
}
_INTEGERS = {
    name: (int(np.iinfo(name).min), int(np.iinfo(name).max))
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
# TensorFlow's names of dtypes that differ from numpy's.
_TF_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


class _Unimplemented(Refusal):
    """A dtype that JSON has no form for."""


def from_rows(rows: list[Any], inputs: Inputs) -> dict[str, Array]:
    """ "instances": what each row has for each input. InvalidArgument, whose text names the row."""
    if type(rows[0]) is not dict and len(inputs) > 1:
        raise InvalidArgument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    named = _is_object(rows[0])
    gathered: dict[str, _Gathered] = {}
    for number, row in enumerate(rows):
        if named:
            if not _is_object(row):
                raise InvalidArgument(f"Expecting object but got list at item {number} of input list")
            for name, value in row.items():
                _add(gathered, name, value, inputs, f"{number} key: {name}")
            if set(row) != set(inputs):
                raise InvalidArgument(
                    f"Failed to process element: {number} of 'instances' list. JSON object: {shown(row)} "
                    f"keys must be equal to: {','.join(sorted(inputs))}"
                )
        else:
            if _is_object(row):
                raise InvalidArgument(f"Expecting value/list but got object at item {number} of input list")
            _add(gathered, min(inputs), row, inputs, str(number))
    return {
        name: _array(found.values, [len(rows), *found.shape], inputs[name])
        for name, found in gathered.items()
    }


def from_columns(value: Any, inputs: Inputs) -> dict[str, Array]:
    """ "inputs": one value for each input, or one for the only one. InvalidArgument."""
    if not _is_object(value):
        if len(inputs) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
                "per tensorinfo_map"
            )
        value = {min(inputs): value}
    made = {}
    for name, info in inputs.items():
        if name not in value:
            raise InvalidArgument(f"Missing named input: {name} in 'inputs' object.")
        values, shape = _dense(value[name], info)
        made[name] = _array(values, shape, info)
    return made


class _Gathered:
    """What the rows before have for one input."""

    def __init__(self, shape: Shape, size: int) -> None:
        self.shape = shape
        self.size = size
        self.values: list[Any] = []


def _add(gathered: dict[str, _Gathered], name: str, value: Any, inputs: Inputs, where: str) -> None:
    try:
        if name not in inputs:
            raise InvalidArgument(f"JSON object: does not have named input: {name}")
        values, shape = _dense(value, inputs[name])
        found = gathered.setdefault(name, _Gathered(shape, len(values)))
        if found.size != len(values):
            raise InvalidArgument(f"Expecting tensor size: {found.size} but got: {len(values)}")
        if found.shape != shape:
            raise InvalidArgument(f"Expecting shape {_shape_text(found.shape)} but got: {_shape_text(shape)}")
        found.values += values
    except Refusal as refusal:
        code = "UNIMPLEMENTED" if isinstance(refusal, _Unimplemented) else "INVALID_ARGUMENT"
        raise InvalidArgument(
            f"Failed to process element: {where} of 'instances' list. Error: {code}: {refusal.text}"
        ) from None


def _is_object(value: Any) -> bool:
    return type(value) is dict and not is_base64(value)


def _shape_text(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def _dense(value: Any, info: TensorInfo) -> tuple[list[Any], Shape]:
    """The elements in order, and the shape."""
    shape: Shape = []
    inner = value
    while type(inner) is list:
        shape.append(len(inner))
        if len(shape) > _MAX_DIMS:
            raise InvalidArgument(
                f"Encountered list at unexpected level: {len(shape)} expected < {_MAX_DIMS}"
            )
        if not inner:
            break
        inner = inner[0]
    values: list[Any] = []
    _collect(value, 0, shape, info, values)
    return values, shape


def _collect(value: Any, level: int, shape: Shape, info: TensorInfo, into: list[Any]) -> None:
    rank = len(shape)
    if type(value) is not list:
        if level != rank:
            raise InvalidArgument(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        into.append(_element(value, info))
        return
    if level >= rank:
        raise InvalidArgument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise InvalidArgument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, level + 1, shape, info, into)


def _element(value: Any, info: TensorInfo) -> Any:
    """One value as the dtype has it."""
    dtype = info.dtype
    if dtype == "string":
        return _string(value)
    if type(value) is dict:
        raise _wrong_type(value, dtype)
    if dtype == "bool":
        if type(value) is not bool:
            raise _wrong_type(value, dtype)
    elif dtype in _FLOATS:
        check_float(value, dtype)
    elif dtype in _INTEGERS:
        least, most = _INTEGERS[dtype]
        if type(value) is not int or not least <= value <= most:
            raise _wrong_type(value, dtype)
    else:
        raise _Unimplemented(
            HTTP_STATUS["UNIMPLEMENTED"], f"Conversion of JSON Value: {shown(value)} to type: {dtype}"
        )
    return value


def _string(value: Any) -> bytes:
    if type(value) is str:
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("JSON Parse error: The surrogate pair in string is invalid.") from None
    if type(value) is not dict:
        raise _wrong_type(value, "string")
    if not is_base64(value):
        raise InvalidArgument(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        return from_base64(value)
    except ValueError:
        raise InvalidArgument("Unable to base64 decode") from None


def check_float(value: Any, dtype: str) -> None:
    """InvalidArgument for what is no number, or none that the dtype has."""
    name, whole, most = _FLOATS[dtype]
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        value = float(value)  # as a parser has it that knows 64 bits
    if type(value) is int:
        exact = abs(value) <= whole
    elif type(value) is float:
        exact = not math.isfinite(value) or abs(value) < most
    else:
        raise _wrong_type(value, dtype)
    if not exact:
        raise InvalidArgument(
            f"Cannot convert JSON value: {shown(value)} to {name} without loss of precision."
        )


def _wrong_type(value: Any, dtype: str) -> InvalidArgument:
    return InvalidArgument(
        f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: "
        f"{_TF_NAMES.get(dtype, dtype)}"
    )


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype for TensorFlow's name. Refusal when that is of a package that is not there."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise _Unimplemented(
            HTTP_STATUS["UNIMPLEMENTED"], "bfloat16 needs the package ml_dtypes at the server"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _array(values: list[Any], shape: Shape, info: TensorInfo) -> Array:
    if info.dtype == "string":
        array: Array = np.empty(len(values), object)
        array[:] = values
    else:
        array = np.array(values, dtype_of(info.dtype))
    return array.reshape(shape)
