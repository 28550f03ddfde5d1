"""The bindings of features check what native code relies on."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from fastserve._native.columns import Column, ColumnError
from fastserve._native.examples import Features
from fastserve._native.features import Pool, Step, Vocab, run


def _column(values: Any) -> Column:
    return Column(values, "c")


def test_a_column_keeps_what_it_was_made_from() -> None:
    array = np.arange(1000)
    alive = weakref.ref(array)
    column = _column(array)
    del array
    gc.collect()
    assert alive() is not None
    del column
    gc.collect()
    assert alive() is None


def test_a_column_keeps_long_strings_and_copies_short_ones() -> None:
    for text, kept in (("x" * 1024, 0), ("é" * 600, 10), (b"x" * 1025, 10)):
        values = np.array([text] * 10, object)
        before = sys.getrefcount(text)
        column = _column(values)
        assert sys.getrefcount(text) == before + kept
        del column
        assert sys.getrefcount(text) == before


@pytest.mark.parametrize("length", [0, 1, 100, 1024, 1025, 5000])
def test_strings_of_all_lengths_are_the_same_in_all_forms(length: int) -> None:
    texts = [f"{i:5}" + "x" * length for i in range(1000)]
    expected, found = np.zeros(1000, np.uint64), np.zeros((500, 2), np.uint64)
    run([Step.fingerprint(_column(np.array(texts, "S")), expected)])
    objects = np.array(texts, object)
    for values in (texts, objects, np.repeat(objects, 2)[::2]):
        again = np.zeros(1000, np.uint64)
        run([Step.fingerprint(_column(values), again)])
        np.testing.assert_array_equal(again, expected)
    run([Step.fingerprint(_column(objects.reshape(2, 500).T), found)])
    np.testing.assert_array_equal(found, expected.reshape(2, 500).T)


def test_a_column_of_a_list_does_not_follow_the_list() -> None:
    values = [f"{i} longer than what python keeps" for i in range(100)]
    column = _column(values)
    expected = np.zeros(100, np.uint64)
    run([Step.fingerprint(_column(list(values)), expected)])
    values.clear()
    gc.collect()
    found = np.zeros(100, np.uint64)
    run([Step.fingerprint(column, found)])
    np.testing.assert_array_equal(found, expected)


def test_things_are_made_once() -> None:
    column = _column([1])
    out = np.zeros(1, np.int64)
    step = Step([column], out)
    features = Features([("a", column, None, None)], 1)
    for thing, arguments in (
        (column, ([2], "d")),
        (step, ([column], out)),
        (features, ([], 0)),
    ):
        with pytest.raises(RuntimeError, match="made once"):
            thing.__init__(*arguments)  # type: ignore[misc]


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(2, np.int64),
        np.zeros((3, 2), np.int64),
        np.zeros((3, 1, 1), np.int64),
        np.zeros(3, np.float32),
        np.zeros(3, ">i8"),
        np.zeros(3, np.int16),
        np.zeros(3, "S8"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(out: np.ndarray) -> None:
    column = _column([1, 2, 3])
    for make in (
        lambda: Step.fingerprint(column, out),
        lambda: Step.hash(column, out, 5, None, None),
        lambda: Step.bucketize(column, out, [1.0]),
        lambda: Step.cross([column, column], out, 5, 0),
        lambda: Step.lookup(column, out, Vocab(column), 0, 0, 0, None, False, None),
    ):
        with pytest.raises(ValueError):
            make()


def test_what_would_divide_by_nothing_is_refused() -> None:
    column, out = _column([1]), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="no buckets"):
        Step.hash(column, out, 0, None, None)
    with pytest.raises(ValueError, match="no buckets"):
        Step.cross([column, column], out, 0, 0)
    with pytest.raises(ValueError, match="no columns"):
        Step.dense([], out, None)
    with pytest.raises(ValueError, match="2 refinements of 1 items"):
        Step.dense([column], out, [(0, 0, 1, False)] * 2)


def test_columns_and_vocabularies_are_of_one_type() -> None:
    out = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="different types"):
        Step.lookup(_column(["a"]), out, Vocab(_column([1])), 0, 0, 0, None, False, None)
    with pytest.raises(ColumnError, match="terms are"):
        Vocab(_column([[1, 2]]))


@pytest.mark.parametrize("offsets", [[0, 2, 1], [0, 1, 4], [-1, 1, 2]])
def test_offsets_beyond_the_values_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ColumnError, match="the offsets do not run"):
        Features([("a", _column([1, 2, 3]), np.array(offsets), None)], 2)
    with pytest.raises(ValueError, match="bytes where 32 are needed"):
        Features([("a", _column([1, 2, 3]), np.array(offsets), None)], 3)


def test_a_pool_counts_the_caller() -> None:
    assert Pool(1).threads == 1
    assert Pool(3).threads == 3
    pool = Pool(2)
    column = _column(np.arange(50_000))
    out, alone = np.zeros(50_000, np.int64), np.zeros(50_000, np.int64)
    assert run([Step.hash(column, out, 97, None, None)], pool) is None
    assert run([Step.hash(column, alone, 97, None, None)]) is None
    np.testing.assert_array_equal(out, alone)
