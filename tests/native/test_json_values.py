"""fastserve._native.json_values: nested lists as arrays. What it takes is what the slow way takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve._native.json_values import columns, numbers
from fastserve.client.messages import TensorInfo
from fastserve.gateway import json_reasons
from fastserve.gateway.refusal import Refusal

DTYPES = [
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
MANY = 1 << 20


def same(got: Any, expected: Any) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (1, ()),
        ([], (0,)),
        ([[], []], (2, 0)),
        ([[[]]], (1, 1, 0)),
        ([1, 2, 3], (3,)),
        ([[1, 2], [3, 4], [5, 6]], (3, 2)),
        ([[[1], [2]], [[3], [4]]], (2, 2, 1)),
    ],
)
def test_shapes(value: Any, shape: tuple[int, ...]) -> None:
    for dtype in ("float32", "int64", "uint8"):
        same(numbers(value, dtype, MANY), np.array(value, dtype).reshape(shape))


@pytest.mark.parametrize(
    "value",
    [
        [[1], 2],
        [1, [2]],
        [[1, 2], [3]],
        [[1], []],
        [[], [1]],
        ["1"],
        [None],
        [{}],
        (1, 2),
        [(1, 2)],
        "1",
        None,
        [True],
        [[[1]], [[True]]],
        [np.float32(1)],
    ],
    ids=repr,
)
def test_what_is_no_array(value: Any) -> None:
    assert numbers(value, "float32", MANY) is None
    assert numbers(value, "int32", MANY) is None


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if "int" in dtype])
def test_the_range_of_whole_numbers(dtype: str) -> None:
    info = np.iinfo(dtype)
    least, most = int(info.min), int(info.max)
    same(numbers([least, most, 0], dtype, MANY), np.array([least, most, 0], dtype))
    for wrong in (least - 1, most + 1, -(1 << 63) - 1, 1 << 64, 1 << 100, -(1 << 100), 1.0, True):
        assert numbers([0, wrong], dtype, MANY) is None, wrong


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_the_range_of_floats(dtype: str, bits: int) -> None:
    whole = (1 << bits) - 1
    values = [whole, -whole, 0.1, math.inf, -math.inf, math.nan, -0.0]
    same(numbers(values, dtype, MANY), np.array(values, dtype))
    for wrong in (whole + 1, -whole - 1, 1 << 64, -(1 << 63), True):
        assert numbers([wrong], dtype, MANY) is None, wrong
    largest = float(np.finfo(np.float32).max)
    same(numbers([largest, -largest], dtype, MANY), np.array([largest, -largest], dtype))
    if dtype == "float32":
        assert numbers([1e39], dtype, MANY) is None
        bound = (2.0 - 2.0**-24) * 2.0**127
        same(numbers([3.4028235e38, math.nextafter(bound, 0)], dtype, MANY), np.array([largest] * 2, dtype))
        assert numbers([bound], dtype, MANY) is None


def test_bools() -> None:
    same(numbers([[True], [False]], "bool", MANY), np.array([[True], [False]]))
    assert numbers([1], "bool", MANY) is None
    assert numbers([1.0], "bool", MANY) is None


def test_a_small_text_makes_no_large_array() -> None:
    assert numbers([[[0] * 1000] + [[]] * 999] + [[]] * 999, "float32", 5000) is None
    assert numbers([0] * 10, "float32", 9) is None
    same(numbers([0] * 10, "float32", 10), np.zeros(10, np.float32))
    same(numbers([[]] * 10, "float32", 10), np.zeros((10, 0), np.float32))


def test_deep_lists() -> None:
    value: Any = 1
    for _ in range(32):
        value = [value]
    assert numbers(value, "int32", MANY) is not None
    assert numbers([value], "int32", MANY) is None


def test_an_unknown_dtype() -> None:
    assert numbers([1], "string", MANY) is None
    assert numbers([1], "complex64", MANY) is None


def test_columns() -> None:
    rows = [{"a": 1, "b": [2]}, {"b": [4], "a": 3}]
    assert columns(rows, ("b", "a")) == [[[2], [4]], [1, 3]]
    assert columns([], ("a",)) == [[]]
    for wrong in ([{"a": 1}], [{"a": 1, "b": 2, "c": 3}], [{"a": 1, "c": 2}], [1], [None], [[1, 2]]):
        assert columns([*rows, *wrong], ("a", "b")) is None


SCALARS = st.one_of(
    st.integers(-(1 << 65), 1 << 65),
    st.integers(-300, 300),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=2),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, dtype=st.sampled_from(DTYPES))
def test_it_agrees_with_the_slow_way(value: Any, dtype: str) -> None:
    got = numbers(value, dtype, MANY)
    try:
        expected = json_reasons.from_columns(value, {"x": TensorInfo("x:0", dtype, None)})["x"]
    except Refusal:
        assert got is None
        return
    if got is None:
        # What a parser of 64 bits has as a double.
        assert dtype.startswith("float") and any(abs(v) >= 1 << 63 for v in _leaves(value))
        return
    same(got, expected)


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]
