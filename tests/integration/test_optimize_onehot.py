"""The pass `onehot`: what it makes a lookup, with which answers, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops, run

from fastserve.workshop.passes.onehot import PASS as ONEHOT

IDS = tf.TensorSpec([None], tf.int64, name="ids")
LISTS = tf.TensorSpec([None, 3], tf.int32, name="ids")
RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((5, 4)).astype(np.float32)
# Those beyond the depth and below 0 are rows of zeros to one_hot.
ODD = np.array([0, 4, 5, -1, 2, 1 << 40, -(1 << 40)])


def rewritten(tmp_path: Path, function: Callable[..., Any], spec: Any, **options: Any) -> Any:
    graph = flat(tmp_path, function, spec)
    made, changes = after(graph, *GROUND, ONEHOT, **options)
    return graph, made, changes


def test_a_one_hot_times_a_matrix_is_a_lookup(tmp_path: Path) -> None:
    graph, made, changes = rewritten(tmp_path, lambda ids: tf.matmul(tf.one_hot(ids, 5), MATRIX), IDS)
    assert changes == 1
    assert ops(made)["OneHot"] == ops(made)["MatMul"] == 0 and ops(made)["GatherV2"] == 1
    answers = assert_same(graph, made, {"ids": ODD})
    assert not next(iter(answers.values()))[2].any()  # the guard is there


def test_no_guard_where_no_id_can_be_outside(tmp_path: Path) -> None:
    graph, made, changes = rewritten(
        tmp_path, lambda ids: tf.matmul(tf.one_hot(tf.math.floormod(ids, 5), 5), MATRIX), IDS
    )
    assert changes == 1 and ops(made)["SelectV2"] == 0
    assert_same(graph, made, {"ids": ODD})


def test_a_large_matrix_becomes_a_variable(tmp_path: Path) -> None:
    table = tf.Variable(MATRIX)
    graph = flat(tmp_path, lambda ids: tf.matmul(tf.one_hot(ids, 5), table), IDS, table=table)
    made, changes = after(graph, *GROUND, ONEHOT, freeze_bytes=8)
    assert changes == 1 and ops(made)["ReadVariableOp"] == 1
    assert_same(graph, made, {"ids": ODD})


def test_multi_hots_are_added_up(tmp_path: Path) -> None:
    def function(ids: Any) -> Any:
        return tf.matmul(tf.reduce_sum(tf.one_hot(ids, 5), axis=1), MATRIX)

    graph, made, changes = rewritten(tmp_path, function, LISTS)
    assert changes == 1 and ops(made)["OneHot"] == 0
    assert_same(graph, made, {"ids": np.array([[0, 1, 2], [3, 3, 3], [9, -1, 4]], np.int32)})


def test_a_bag_of_any_length(tmp_path: Path) -> None:
    spec = tf.TensorSpec([None, None], tf.int32, name="ids")

    def function(ids: Any) -> Any:
        return tf.matmul(tf.reduce_sum(tf.one_hot(ids, 5), axis=1), MATRIX)

    graph, made, changes = rewritten(tmp_path, function, spec)
    assert changes == 1
    for length in (0, 1, 4):
        assert_same(graph, made, {"ids": RNG.integers(-1, 6, (3, length)).astype(np.int32)})


def test_one_hots_flattened_side_by_side(tmp_path: Path) -> None:
    matrix = RNG.standard_normal((15, 4)).astype(np.float32)

    def function(ids: Any) -> Any:
        return tf.matmul(tf.reshape(tf.one_hot(ids, 5), [-1, 15]), matrix)

    graph, made, changes = rewritten(tmp_path, function, LISTS)
    assert changes == 1 and ops(made)["OneHot"] == 0
    assert_same(graph, made, {"ids": np.array([[0, 1, 2], [4, 4, 4], [5, -1, 0]], np.int32)})


def test_one_hots_among_other_columns(tmp_path: Path) -> None:
    """Dense(concat([one-hot, numbers, multi-hot])): the numbers keep their product."""
    matrix = RNG.standard_normal((5 + 2 + 4, 3)).astype(np.float32)

    def function(ids: Any, numbers: Any) -> Any:
        columns = [tf.one_hot(ids[:, 0], 5), numbers, tf.reduce_sum(tf.one_hot(ids, 4), axis=1)]
        return tf.matmul(tf.concat(columns, axis=1), matrix)

    graph = flat(tmp_path, function, LISTS, tf.TensorSpec([None, 2], tf.float32, name="numbers"))
    made, changes = after(graph, *GROUND, ONEHOT)
    assert changes == 1
    assert ops(made)["OneHot"] == 0 and ops(made)["MatMul"] == 1 and ops(made)["GatherV2"] == 1
    inputs = {
        "ids": RNG.integers(-1, 6, (20, 3)).astype(np.int32),
        "numbers": RNG.random((20, 2), np.float32),
    }
    assert_same(graph, made, inputs)


BAG = tf.TensorSpec([None, None], tf.int32, name="bag")
TWO = tf.TensorSpec([None, 2], tf.float32, name="numbers")


def beside(ids: Any, bag: Any, numbers: Any) -> Any:
    """One-hots with a known number of ids, and with any, and numbers."""
    matrix = np.random.default_rng(9).standard_normal((5 + 4 + 2 + 3 * 6, 3)).astype(np.float32)
    several = tf.reshape(tf.one_hot(ids, 6), [-1, 18])
    columns = [tf.one_hot(ids[:, 0], 5), tf.reduce_sum(tf.one_hot(bag, 4), axis=1), numbers, several]
    return tf.matmul(tf.concat(columns, axis=1), matrix)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_bag_of_any_length_among_other_columns(tmp_path: Path, length: int) -> None:
    """Ids outside of their own depth, in some of the places of a row, take no other's rows."""
    graph = flat(tmp_path, beside, LISTS, BAG, TWO)
    made, changes = after(graph, *GROUND, ONEHOT)
    assert changes == 1
    assert ops(made)["OneHot"] == 0 and ops(made)["MatMul"] == 1 and ops(made)["GatherV2"] == 2
    inputs = {
        "ids": RNG.integers(-2, 9, (40, 3)).astype(np.int32),
        "bag": RNG.integers(-2, 7, (40, length)).astype(np.int32),
        "numbers": RNG.standard_normal((40, 2)).astype(np.float32),
    }
    assert_same(graph, made, inputs, atol=1e-5)


@pytest.mark.parametrize("short", ["ids", "bag", "numbers"])
def test_columns_with_other_numbers_of_rows_stay_an_error(tmp_path: Path, short: str) -> None:
    graph = flat(tmp_path, beside, LISTS, BAG, TWO)
    made, _ = after(graph, *GROUND, ONEHOT)
    inputs = {
        "ids": np.zeros((4, 3), np.int32),
        "bag": np.zeros((4, 2), np.int32),
        "numbers": np.zeros((4, 2), np.float32),
    }
    inputs[short] = inputs[short][:1]
    for each in (graph, made):
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(each, inputs)


def test_a_transposed_matrix(tmp_path: Path) -> None:
    graph, made, changes = rewritten(
        tmp_path, lambda ids: tf.matmul(tf.one_hot(ids, 5), MATRIX.T.copy(), transpose_b=True), IDS
    )
    assert changes == 1
    assert_same(graph, made, {"ids": ODD})


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda ids: tf.matmul(tf.one_hot(ids, 5, on_value=2.0), MATRIX), id="on-value"),
        pytest.param(lambda ids: tf.matmul(tf.one_hot(ids, 5, off_value=0.5), MATRIX), id="off-value"),
        pytest.param(
            lambda ids: tf.matmul(tf.one_hot(ids, 5, axis=0), MATRIX, transpose_a=True), id="first-axis"
        ),
        pytest.param(
            lambda ids: tf.matmul(tf.one_hot(ids, 5), np.where(MATRIX > 1, np.inf, MATRIX)), id="infinite"
        ),
        pytest.param(
            lambda ids: tf.matmul(tf.cast(tf.one_hot(ids, 5), tf.int32), MATRIX.astype(np.int32)),
            id="integers",
        ),
    ],
)
def test_near_misses(tmp_path: Path, function: Callable[..., Any]) -> None:
    _, made, changes = rewritten(tmp_path, function, IDS)
    assert changes == 0 and ops(made)["OneHot"] == 1


def test_a_one_hot_that_others_take_too(tmp_path: Path) -> None:
    def function(ids: Any) -> Any:
        hot = tf.one_hot(ids, 5)
        return tf.matmul(hot, MATRIX), tf.reduce_max(hot, axis=1)

    graph, made, changes = rewritten(tmp_path, function, IDS)
    assert changes == 0
    assert_same(graph, made, {"ids": ODD})


def test_a_one_hot_that_is_an_output(tmp_path: Path) -> None:
    def function(ids: Any) -> Any:
        hot = tf.one_hot(ids, 5)
        return {"product": tf.matmul(hot, MATRIX), "hot": hot}

    assert rewritten(tmp_path, function, IDS)[2] == 0


def test_a_matrix_that_comes_in(tmp_path: Path) -> None:
    matrix = tf.TensorSpec([5, 4], tf.float32, name="matrix")
    graph = flat(tmp_path, lambda ids, matrix: tf.matmul(tf.one_hot(ids, 5), matrix), IDS, matrix)
    assert after(graph, *GROUND, ONEHOT)[1] == 0


def test_a_matrix_that_is_written(tmp_path: Path) -> None:
    table = tf.Variable(MATRIX)

    def function(ids: Any) -> Any:
        found = tf.matmul(tf.one_hot(ids, 5), table)
        table.assign_add(tf.ones([5, 4]))
        return found

    graph = flat(tmp_path, function, IDS, table=table)
    made, changes = after(graph, *GROUND, ONEHOT)
    assert changes == 0
    assert ops(made)["AssignAddVariableOp"] == 1 and made.effects
    assert_same(graph, made, {"ids": ODD})


def mixture(kinds: list[str], depths: list[int]) -> Callable[..., Any]:
    """A layer on columns of these kinds, side by side."""
    widths = {"hot": 1, "bag": 1, "flat": 3}
    width = sum(2 if k == "number" else widths[k] * d for k, d in zip(kinds, depths, strict=True))
    matrix = RNG.standard_normal((width, 3)).astype(np.float32)

    def column(kind: str, depth: int, ids: Any, numbers: Any) -> Any:
        if kind == "hot":
            return tf.one_hot(ids[:, 1], depth)
        if kind == "bag":
            return tf.reduce_sum(tf.one_hot(ids, depth), axis=1)
        if kind == "flat":
            return tf.reshape(tf.one_hot(ids, depth), [-1, 3 * depth])
        return numbers * float(depth)

    def function(ids: Any, numbers: Any) -> Any:
        columns = [column(kind, depth, ids, numbers) for kind, depth in zip(kinds, depths, strict=True)]
        return tf.nn.relu(tf.matmul(tf.concat(columns, axis=1), matrix))

    return function


def test_random_models(tmp_path: Path) -> None:
    """Any mixture of one-hots and numbers, in any order, answers as before."""
    rng = np.random.default_rng(20)
    for case in range(4):
        kinds = [str(kind) for kind in rng.choice(["hot", "bag", "flat", "number"], 5)]
        depths = [int(depth) for depth in rng.integers(2, 7, 5)]
        numbers = tf.TensorSpec([None, 2], tf.float32, name="numbers")
        graph = flat(tmp_path / str(case), mixture(kinds, depths), LISTS, numbers)
        made, changes = after(graph, *GROUND, ONEHOT)
        assert changes == 1
        inputs = {
            "ids": rng.integers(-2, 9, (30, 3)).astype(np.int32),
            "numbers": rng.standard_normal((30, 2)).astype(np.float32),
        }
        assert_same(graph, made, inputs, atol=1e-5)


def test_what_is_left_runs_on_no_rows(tmp_path: Path) -> None:
    graph, made, _ = rewritten(tmp_path, lambda ids: tf.matmul(tf.one_hot(ids, 5), MATRIX), IDS)
    empty = np.zeros(0, np.int64)
    assert next(iter(run(made, {"ids": empty}).values())).shape == (0, 4)
    assert_same(graph, made, {"ids": empty})
