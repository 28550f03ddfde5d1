"""A predict request's tensors, from its JSON and the signature's inputs. Pure functions.

The fast way is fastserve._native.json_values for numbers, which refuses as a whole; then json_reasons says in
TensorFlow Serving's words what is wrong, or takes the slow way with what the fast one does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastserve._native.json_values import columns, numbers
from fastserve.client.messages import SignatureInfo, TensorInfo
from fastserve.gateway import json_reasons
from fastserve.gateway.json_strings import as_bytes, is_base64
from fastserve.gateway.json_text import shown
from fastserve.gateway.refusal import InvalidArgument

Tensors = dict[str, np.ndarray[Any, Any]]
Inputs = Mapping[str, TensorInfo]

_HALVES = ("float16", "bfloat16")


def signature_name(doc: dict[str, Any]) -> str:
    """What the request asks for; "" when it does not say."""
    name = doc.get("signature_name", "")
    if type(name) is not str:
        raise InvalidArgument(
            f"JSON Value: {shown(doc)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs_of(signatures: Mapping[str, SignatureInfo], name: str) -> Inputs:
    """The inputs of the signature `name`, "" for the default one."""
    signature = signatures.get(name or "serving_default")
    if signature is None:
        raise InvalidArgument(
            f'Serving signature name: "{name or "serving_default"}" not found in signature def'
        )
    if not signature.inputs:
        raise InvalidArgument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    return signature.inputs


def tensors_of(doc: dict[str, Any], inputs: Inputs, most: int) -> tuple[Tensors, bool]:
    """The tensors, and whether they came in rows. `most`: elements that one may have, which is no more than
    the request has bytes."""
    if "instances" in doc:
        if "inputs" in doc:
            raise InvalidArgument(
                f"JSON Value: {shown(doc)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        instances = doc["instances"]
        if type(instances) is not list:
            raise InvalidArgument(f"JSON Value: {shown(doc)} Excepting 'instances' to be an list/array")
        if not instances:
            raise InvalidArgument(f"JSON Value: {shown(doc)} No values in 'instances' array")
        return _from_rows(instances, inputs, most), True
    if "inputs" in doc:
        return _from_columns(doc["inputs"], inputs, most), False
    raise InvalidArgument("Missing 'inputs' or 'instances' key")


def _from_rows(rows: list[Any], inputs: Inputs, most: int) -> Tensors:
    first = rows[0]
    made: Tensors = {}
    if type(first) is dict and not is_base64(first):
        names = tuple(inputs)
        lists = columns(rows, names)
        if lists is None or (names == ("b64",) and any(map(is_base64, rows))):
            return json_reasons.from_rows(rows, inputs)
        for name, values in zip(names, lists, strict=True):
            tensor = _tensor(values, inputs[name], most)
            if tensor is None:
                return json_reasons.from_rows(rows, inputs)
            made[name] = tensor
        return made
    if len(inputs) == 1:
        ((name, info),) = inputs.items()
        tensor = _tensor(rows, info, most)
        if tensor is not None:
            return {name: tensor}
    return json_reasons.from_rows(rows, inputs)


def _from_columns(value: Any, inputs: Inputs, most: int) -> Tensors:
    made: Tensors = {}
    plain = type(value) is not dict or is_base64(value)
    if plain and len(inputs) > 1:
        return json_reasons.from_columns(value, inputs)
    for name, info in inputs.items():
        if not plain and name not in value:
            return json_reasons.from_columns(value, inputs)
        tensor = _tensor(value if plain else value[name], info, most)
        if tensor is None:
            return json_reasons.from_columns(value, inputs)
        made[name] = tensor
    return made


def _tensor(value: Any, info: TensorInfo, most: int) -> np.ndarray[Any, Any] | None:
    """None where the fast way does not lead to one."""
    if info.dtype == "string":
        return _strings(value)
    if info.dtype in _HALVES:
        return _half(numbers(value, "float32", most), info.dtype)
    return numbers(value, info.dtype, most)


def _half(array: np.ndarray[Any, Any] | None, dtype: str) -> np.ndarray[Any, Any] | None:
    """Of 16 bits; None where a value is too large for that."""
    if array is None:
        return None
    with np.errstate(over="ignore"):
        made = array.astype(json_reasons.dtype_of(dtype))
    return None if (np.isinf(made) & np.isfinite(array)).any() else made


def _strings(value: Any) -> np.ndarray[Any, Any] | None:
    """Of one dimension, which is what strings mostly have."""
    if type(value) is not list:
        return None
    array = np.empty(len(value), object)
    try:
        array[:] = [as_bytes(item) for item in value]
    except ValueError:
        return None
    return None if any(item is None for item in array) else array
