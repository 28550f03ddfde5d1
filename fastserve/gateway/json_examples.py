"""The bodies of classify and regress: tf.Examples from JSON objects. Pure functions.

Whole numbers, true and false are int64s, other numbers floats, strings and {"b64": ...} bytes; what is in one
feature is all of one kind, as TensorFlow Serving has it.
"""

from __future__ import annotations

import struct
from typing import Any

from fastserve.client.wire import field_bytes, varint
from fastserve.gateway.json_reasons import check_float
from fastserve.gateway.json_strings import from_base64, is_base64
from fastserve.gateway.json_text import shown, type_name
from fastserve.gateway.refusal import InvalidArgument

# Of tensorflow.serving.Input and what is in it.
_LIST, _LIST_WITH_CONTEXT = 1, 2
_EXAMPLES, _CONTEXT = 1, 2
# Of Feature's kinds.
_BYTES, _FLOAT, _INT64 = 1, 2, 3
_KIND_NAMES = {_BYTES: "bytes", _FLOAT: "float", _INT64: "int64"}
_KINDS: dict[type, int] = {int: _INT64, bool: _INT64, float: _FLOAT, str: _BYTES, dict: _BYTES}


def input_of(doc: dict[str, Any]) -> bytes:
    """The request's Input, serialized. InvalidArgument."""
    context = example_of(doc["context"]) if "context" in doc else None
    if "examples" not in doc:
        raise InvalidArgument(
            f"JSON Value: {shown(doc)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = doc["examples"]
    if type(examples) is not list:
        raise InvalidArgument(f"JSON Value: {shown(doc)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise InvalidArgument(f"JSON Value: {shown(doc)} 'examples' value is an empty array")
    made = b"".join(field_bytes(_EXAMPLES, example_of(example)) for example in examples)
    if context is None:
        return field_bytes(_LIST, made)
    return field_bytes(_LIST_WITH_CONTEXT, made + field_bytes(_CONTEXT, context))


def example_of(value: Any) -> bytes:
    """A JSON object as a serialized tf.Example. InvalidArgument."""
    if type(value) is not dict:
        raise InvalidArgument(f"Example must be JSON object but got JSON {type_name(value)}")
    entries = []
    for name, content in value.items():
        feature = _feature(name, content if type(content) is list else [content])
        entries.append(field_bytes(1, field_bytes(1, _utf8(name)) + field_bytes(2, feature)))
    return field_bytes(1, b"".join(entries))


def _feature(name: str, values: list[Any]) -> bytes:
    if not values:
        return b""  # a feature of no kind
    kinds = {_KINDS.get(kind) for kind in set(map(type, values))}
    kind = next(iter(kinds))
    if len(kinds) > 1 or kind is None:
        raise _mixed(name, values)
    if kind == _FLOAT:
        for value in values:
            check_float(value, "float32")
        packed = struct.pack(f"<{len(values)}f", *values)
    elif kind == _INT64:
        if max(values) >= 1 << 63 or min(values) < -(1 << 63):
            raise InvalidArgument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        packed = b"".join(map(varint, values))
    else:
        return field_bytes(_BYTES, b"".join(field_bytes(1, _bytes(name, value)) for value in values))
    return field_bytes(kind, field_bytes(1, packed))


def _mixed(name: str, values: list[Any]) -> InvalidArgument:
    """The first value that is of no kind, or of another one than those before."""
    before = None
    for value in values:
        kind = _KINDS.get(type(value))
        if kind is None:
            return _unexpected(name, value)
        if before not in (None, kind):
            break
        before = kind
    assert before is not None
    return InvalidArgument(
        f"Unexpected element type in feature: {name} expecting type: {_KIND_NAMES[before]}"
    )


def _unexpected(name: str, value: Any) -> InvalidArgument:
    return InvalidArgument(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _bytes(name: str, value: Any) -> bytes:
    if type(value) is str:
        return _utf8(value)
    if not is_base64(value):
        raise _unexpected(name, value)
    try:
        return from_base64(value)
    except ValueError:
        raise InvalidArgument("Unable to base64 decode") from None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("JSON Parse error: The surrogate pair in string is invalid.") from None
