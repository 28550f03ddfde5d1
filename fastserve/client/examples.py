"""tf.Examples for Classify and Regress, from columns or from a dictionary for each example.

    {"age": np.array([31, 44]), "city": ["Oslo", "Rome"], "seen": [[3, 7], [5]]}
    [{"age": 31, "city": "Oslo", "seen": [3, 7]}, {"age": 44, "city": "Rome", "seen": [5]}]

are the same two examples. Integers and bools go as int64_list, floats as float_list, bytes and str as
bytes_list. Columns are the fast form: they are encoded in C, without the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastserve._native.columns import Column, ColumnError
from fastserve._native.examples import Features

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ColumnError", "Examples", "Ragged", "encode_input", "serialize"]

Columns = Mapping[str, Any]
Examples = Columns | Sequence[Mapping[str, Any]]

# A feature as fastserve._native.examples.Features takes it.
_Feature = tuple[str, Column, "np.ndarray | None", "np.ndarray | None"]


@dataclass(frozen=True)
class Ragged:
    """A column of lists of different lengths, without the lists: `values` [sum of lengths], numbers or
    strings, and `lengths` [n], integers: example i has the next lengths[i] values."""

    values: Any
    lengths: Any


def encode_input(examples: Examples, context: Mapping[str, Any] | None = None) -> bytes:
    """A serialized tensorflow.serving.Input: an ExampleList, or with `context` an ExampleListWithContext.

    `examples` is a mapping from a feature's name to its column, an array or list [n] or [n, k], a list of n
    sequences, or a Ragged; or a sequence of n mappings, in which a feature may be missing (or None, which is
    the same). `context` is one example, whose features are shared by all. Feature names and str values are
    sent as UTF-8. ColumnError (a ValueError) names the column that cannot be sent and says why; it is raised
    also where columns differ in length and where the whole passes 2 GiB.
    """
    shared = None
    if context is not None:
        (shared,) = _features([context]).encode_each()
    encoded: bytes = _features(examples).encode_input(shared)
    return encoded


def serialize(examples: Examples) -> list[bytes]:
    """Each example as a serialized tf.Example, for signatures that take these as a tensor of strings.
    Arguments and errors as encode_input."""
    encoded: list[bytes] = _features(examples).encode_each()
    return encoded


def _features(examples: Examples) -> Features:
    if isinstance(examples, Mapping):
        made = [_feature(str(name), values) for name, values in examples.items()]
        if not made:
            raise ColumnError("the examples have no columns, so there is no telling how many there are")
        _, column, offsets, _ = made[0]
        return Features(made, len(column) if offsets is None else len(offsets) - 1)
    if isinstance(examples, (str, bytes)) or not isinstance(examples, Iterable):
        raise ColumnError(
            "examples are a mapping from names to columns, or a mapping for each, "
            f"not {type(examples).__name__}"
        )
    rows = list(examples)
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ColumnError(f"example {at} is {row!r:.40}, not a mapping from names to values")
    names = dict.fromkeys(chain.from_iterable(rows))
    return Features([_gathered(str(name), [row.get(name) for row in rows]) for name in names], len(rows))


def _feature(name: str, values: Any) -> _Feature:
    """A column as it was given."""
    if isinstance(values, Ragged):
        return _ragged(name, values.values, values.lengths)
    if _is_array(values):
        if values.dtype.kind == "O" and values.ndim == 1 and len(values) > 0 and _is_list(values[0]):
            values = values.tolist()
        else:
            return name, _sendable(Column(values, name)), None, None
    if isinstance(values, (list, tuple)) and any(map(_is_list, values)):
        lists = [value if _is_list(value) else [value] for value in values]
        lengths = list(map(len, lists))
        if len(set(lengths)) > 1 or lengths[0] == 0 or not _is_array(lists[0]):
            return _ragged(name, _flat(lists), lengths)
    return name, _sendable(Column(values, name)), None, None


def _gathered(name: str, values: list[Any]) -> _Feature:
    """A column from what each example has, None where it has nothing."""
    import numpy as np

    present = None
    if any(value is None for value in values):
        present = np.array([value is not None for value in values], np.bool_)
    lists: list[Any] = [[] if value is None else value if _is_list(value) else [value] for value in values]
    for at, value in enumerate(lists):
        if _is_array(value) and value.ndim != 1:
            raise ColumnError(
                f"{name}: example {at} has an array of shape {value.shape}; a feature is a list"
            )
    _, column, offsets, _ = _ragged(name, _flat(lists), list(map(len, lists)))
    return name, column, offsets, present


def _ragged(name: str, values: Any, lengths: Any) -> _Feature:
    import numpy as np

    counts = np.asarray(lengths)
    if counts.size == 0:
        counts = counts.astype(np.int64)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ColumnError(f"{name}: lengths are integers [n], none of them negative")
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    column = _sendable(Column(values, name))
    if column.width != 1 or column.ndim != 1:
        raise ColumnError(f"{name}: the values of rows of different lengths are [n] themselves")
    if len(column) != offsets[-1]:
        raise ColumnError(f"{name}: has {len(column)} values, but its lengths add up to {offsets[-1]}")
    return name, column, offsets, None


def _flat(lists: list[Any]) -> Any:
    """The values of all of `lists` in one sequence."""
    import numpy as np

    full = [values for values in lists if len(values)]
    if full and all(map(_is_array, full)):
        for values in full:
            if values.ndim != 1:
                raise ColumnError(f"rows of different lengths are lists of values, not arrays {values.shape}")
        return np.concatenate(full)
    # An empty list of floats and one of integers are the same on the wire but for the kind that they name.
    return list(chain.from_iterable(full)) or np.empty(0, np.float32)


def _sendable(column: Column) -> Column:
    if column.exceeds_int64():
        raise ColumnError(f"{column.name}: holds numbers of 2^63 and more, which int64_list cannot")
    return column


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (_is_array(value) and value.ndim > 0)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "ndim")
