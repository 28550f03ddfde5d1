"""Files of inputs: .npz, or JSON as in TensorFlow Serving's REST API, read into arrays.

JSON is {"inputs": {name: values}} by columns, {"instances": [...]} by rows, and {"examples": [...]} for
Classify and Regress; {"b64": "..."} is a string of bytes. A leaf, for the commands that take rows of the
user's own.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from fastserve.errors import FastServeError

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

STDIN = "-"


class InputError(FastServeError):
    """The file of inputs, or an argument, is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Content:
    """What a file of inputs has: arrays, or JSON's values by input. The name "" is that of the only input."""

    arrays: dict[str, Array] | None
    columns: dict[str, Any]
    signature: str | None = None
    examples: list[dict[str, Any]] | None = None
    context: dict[str, Any] | None = None


def read_inputs(source: str) -> Content:
    """Reads an .npz or JSON file, "-" for JSON on the standard input. InputError."""
    try:
        data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    if data.startswith(b"PK\x03\x04"):
        return Content(_read_npz(source), {})
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise InputError(f"{source} is neither .npz nor JSON: {error}") from None
    kinds = [key for key in ("inputs", "instances", "examples") if isinstance(parsed, dict) and key in parsed]
    if len(kinds) != 1:
        raise InputError(
            f'{source}: expected {{"inputs": {{NAME: VALUES}}}}, {{"instances": [...]}} '
            f'or {{"examples": [...]}}'
        )
    signature = parsed.get("signature_name")
    if signature is not None and not isinstance(signature, str):
        raise InputError(f"{source}: signature_name is text, not {json.dumps(signature)}")
    if "examples" in parsed:
        examples, context = decoded(parsed["examples"]), decoded(parsed.get("context"))
        if not isinstance(examples, list) or not isinstance(context, (dict, NoneType)):
            raise InputError(f"{source}: examples is a list of {{FEATURE: VALUE}}, context one of them")
        return Content(None, {}, signature, examples, context)
    if "instances" in parsed:
        return Content(None, _columns_of(source, parsed["instances"]), signature)
    inputs = parsed["inputs"]
    if isinstance(inputs, dict) and not _is_bytes(inputs):
        return Content(None, inputs, signature)
    return Content(None, {"": inputs}, signature)


def _read_npz(source: str) -> dict[str, Array]:
    import zipfile

    import numpy as np

    try:
        with np.load(source, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {error}") from None


def _columns_of(source: str, instances: Any) -> dict[str, Any]:
    """Rows to columns."""
    if not isinstance(instances, list) or not instances:
        raise InputError(f"{source}: instances is a list of at least one row")
    first = instances[0]
    if not isinstance(first, dict) or _is_bytes(first):
        return {"": instances}
    for i, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != set(first):
            raise InputError(
                f"{source}: instance {i} does not have the inputs of the first: {', '.join(first)}"
            )
    return {name: [row[name] for row in instances] for name in first}


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


# ---- dtypes ------------------------------------------------------------------------------------------------


def parse_dtypes(pairs: tuple[str, ...]) -> dict[str, str]:
    """--dtype NAME=DTYPE by name; without NAME for the only input."""
    dtypes = {}
    for pair in pairs:
        name, _, dtype = pair.rpartition("=")
        if not dtype:
            raise InputError(f"--dtype {pair}: expected NAME=DTYPE, such as user_id=int64")
        dtypes[name] = dtype
    return dtypes


def to_arrays(
    columns: Mapping[str, Any], dtypes: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, Array]:
    """Arrays from JSON's values. `dtypes` rule over `known`, the signature's own; InputError names the
    input."""
    arrays = {}
    for given, value in columns.items():
        name = given
        if not name:
            candidates = set(known) or {key for key in dtypes if key}
            if len(candidates) != 1:
                says = ", ".join(sorted(known)) or "the server does not say which there are"
                raise InputError(f'name the inputs, {{"inputs": {{NAME: VALUES}}}}: {says}')
            name = next(iter(candidates))
        arrays[name] = _array(name, value, dtypes.get(name) or dtypes.get("") or known.get(name))
    return arrays


def _array(name: str, value: Any, dtype: str | None) -> Array:
    import numpy as np

    leaf = value
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if dtype is None:
        if isinstance(leaf, str) or _is_bytes(leaf):
            dtype = "string"
        elif isinstance(leaf, float) or _has_float(value):
            dtype = "float32"
    try:
        if dtype in ("string", "object", "bytes"):
            return np.array(decoded(value), dtype=object)
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"input {name!r}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"input {name!r} is not of numbers, or its rows are not of one length")
    return cast(name, array, dtype)


def _has_float(value: Any) -> bool:
    return any(map(_has_float, value)) if isinstance(value, list) else isinstance(value, float)


def decoded(value: Any) -> Any:
    """JSON's value with bytes in the place of {"b64": ...}."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if _is_bytes(value):
        return base64.b64decode(value["b64"])
    return {key: decoded(item) for key, item in value.items()} if isinstance(value, dict) else value


def cast(name: str, array: Array, dtype: str | None) -> Array:
    """The array in another dtype, by its name, if no value is lost but digits of a float."""
    import numpy as np

    if dtype is None or dtype in ("string", "object", "bytes"):
        return array
    try:
        kind = np.dtype(_ml_dtype(dtype) or dtype)
    except TypeError:
        raise InputError(f"input {name!r}: {dtype!r} is no dtype") from None
    with np.errstate(all="ignore"):
        made = array.astype(kind)
        if kind.kind in "iub" and array.size and not np.array_equal(made.astype(array.dtype), array):
            raise InputError(f"input {name!r} has values that {dtype} cannot hold")
    return made


def _ml_dtype(name: str) -> Any:
    """A dtype of ml_dtypes, None for what is none or where that is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return getattr(ml_dtypes, name, None)
