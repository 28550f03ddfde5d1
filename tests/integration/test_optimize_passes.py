"""The passes that need no pattern: prune, freeze, fold, common, grappler and the half types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops, run

from fastserve.workshop.passes.common import PASS as COMMON
from fastserve.workshop.passes.fold import PASS as FOLD
from fastserve.workshop.passes.freeze import PASS as FREEZE
from fastserve.workshop.passes.grappler import PASS as GRAPPLER
from fastserve.workshop.passes.half import BFLOAT16
from fastserve.workshop.passes.prune import PASS as PRUNE

X = tf.TensorSpec([None, 4], tf.float32, name="x")
RNG = np.random.default_rng(1)
ROWS = {"x": RNG.standard_normal((6, 4)).astype(np.float32)}
WEIGHTS = RNG.standard_normal((4, 3)).astype(np.float32)


def test_prune_leaves_what_is_needed(tmp_path: Path) -> None:
    weights = tf.Variable(WEIGHTS)

    @tf.function
    def inner(x: Any) -> Any:
        return tf.matmul(tf.identity(x), weights)

    graph = flat(tmp_path, lambda x: tf.identity(inner(x)), X, weights=weights)
    made, changes = after(graph, PRUNE)
    assert changes > 0
    assert ops(made) == {"Placeholder": 1, "VarHandleOp": 1, "ReadVariableOp": 1, "MatMul": 1}
    assert_same(graph, made, ROWS)


def test_prune_keeps_checks(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        tf.debugging.assert_less(x, 10.0)
        return x * 2.0

    graph = flat(tmp_path, function, X)
    made, _ = after(graph, *GROUND, COMMON)
    assert_same(graph, made, ROWS)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(made, {"x": np.full((1, 4), 11.0, np.float32)})


def test_prune_keeps_the_order_of_reads_and_writes(tmp_path: Path) -> None:
    """The answer is the value before the write, whenever it runs."""
    count = tf.Variable(1.0)

    def function(x: Any) -> Any:
        before = x * count
        count.assign_add(1.0)
        return before, x * count

    graph = flat(tmp_path, function, X, count=count)
    made, _ = after(graph, *GROUND, COMMON)
    assert ops(made)["ReadVariableOp"] == 2
    for _ in range(20):
        answers = sorted(run(made, ROWS).values(), key=lambda value: abs(value).sum())
        np.testing.assert_allclose(answers[0], ROWS["x"])
        np.testing.assert_allclose(answers[1], ROWS["x"] * 2.0)


def test_small_variables_are_frozen_and_large_ones_stay(tmp_path: Path) -> None:
    small, large = tf.Variable(WEIGHTS), tf.Variable(np.ones((3, 50), np.float32))
    graph = flat(tmp_path, lambda x: tf.matmul(tf.matmul(x, small), large), X, small=small, large=large)
    made, changes = after(graph, PRUNE, FREEZE, freeze_bytes=4 * 4 * 3)
    assert changes == 1 and ops(made)["VarHandleOp"] == 1
    assert_same(graph, made, ROWS)


def test_a_variable_that_is_written_is_not_frozen(tmp_path: Path) -> None:
    count = tf.Variable(0.0)

    def function(x: Any) -> Any:
        return x + count.assign_add(1.0)

    graph = flat(tmp_path, function, X, count=count)
    assert after(graph, PRUNE, FREEZE)[1] == 0


def test_constants_are_folded(tmp_path: Path) -> None:
    weights = tf.Variable(WEIGHTS)

    def function(x: Any) -> Any:
        scale = tf.sqrt(tf.reduce_sum(tf.square(weights)))
        return tf.reshape(tf.matmul(x, weights / scale), [tf.shape(x)[0], 3])

    graph = flat(tmp_path, function, X, weights=weights)
    made, changes = after(graph, PRUNE, FREEZE, FOLD)
    assert changes > 0
    assert ops(made) == {"Placeholder": 1, "Const": 1, "MatMul": 1}
    assert_same(graph, made, ROWS)


@pytest.mark.parametrize("of", [tf.not_equal, tf.math.floormod, tf.add])
def test_a_reshape_to_as_many_rows_as_something_repeated_stays(tmp_path: Path, of: Any) -> None:
    """What is made of x and y has as many rows as x only if x is not the one row that is repeated."""
    y = tf.TensorSpec([None, 4], tf.float32, name="y")

    def function(x: Any, y: Any) -> Any:
        return tf.reshape(tf.cast(of(x, y), tf.float32), [tf.shape(x)[0], -1])

    graph = flat(tmp_path, function, X, y)
    made, _ = after(graph, *GROUND)
    assert ops(made)["Reshape"] == 1
    for rows in (1, 6):
        assert_same(graph, made, {"x": ROWS["x"][:rows], "y": ROWS["x"] + 0.5})


def test_a_reshape_to_as_many_rows_as_the_first_input_goes(tmp_path: Path) -> None:
    table = tf.constant(RNG.standard_normal((4, 3)).astype(np.float32))

    def function(x: Any) -> Any:
        ids = tf.math.floormod(tf.cast(x[:, 0], tf.int32), 4)
        found = tf.gather(table, ids) + 0.0
        return tf.reshape(tf.add_n([tf.gather(table, ids), found]), [tf.shape(x)[0], 3])

    graph = flat(tmp_path, function, X)
    made, _ = after(graph, *GROUND)
    assert ops(made)["Reshape"] == 0
    assert_same(graph, made, ROWS)


def test_folding_leaves_what_is_random_or_large(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        return x + tf.random.uniform([4]) * 0.0 + tf.reduce_sum(tf.zeros([1000, 1000])[:1, :4])

    graph = flat(tmp_path, function, X)
    made, _ = after(graph, *GROUND)
    assert ops(made)["RandomUniform"] == 1
    assert sum(node.ByteSize() for node in made.nodes.values()) < 100_000
    assert_same(graph, made, ROWS)


def test_what_is_computed_twice_is_computed_once(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        return tf.concat([tf.exp(x + 1.0), tf.exp(x + 1.0), tf.exp(x + 2.0)], 1)

    graph = flat(tmp_path, function, X)
    made, changes = after(graph, *GROUND, COMMON)
    assert changes >= 2 and ops(made)["Exp"] == 2
    assert_same(graph, made, ROWS)


def test_two_random_numbers_stay_two(tmp_path: Path) -> None:
    def function(x: Any) -> Any:
        return tf.random.uniform(tf.shape(x)) - tf.random.uniform(tf.shape(x))

    graph = flat(tmp_path, function, X)
    made, _ = after(graph, *GROUND, COMMON, GRAPPLER)
    assert ops(made)["RandomUniform"] == 2
    assert np.abs(next(iter(run(made, ROWS).values()))).max() > 0


def test_grappler_answers_as_before(tmp_path: Path) -> None:
    weights = tf.Variable(WEIGHTS)

    def function(x: Any) -> Any:
        return tf.transpose(tf.transpose(tf.matmul(x + 0.0, weights))) * 1.0, tf.shape(x)

    graph = flat(tmp_path, function, X, weights=weights)
    made, changes = after(graph, PRUNE, GRAPPLER)
    assert changes > 0 and len(made.nodes) < len(graph.nodes)
    assert not any(node.op.startswith("_") for node in made.nodes.values())
    assert_same(graph, made, ROWS)


def test_large_products_in_bfloat16(tmp_path: Path) -> None:
    wide = RNG.standard_normal((4, 2048)).astype(np.float32)

    def function(x: Any) -> Any:
        return tf.matmul(tf.matmul(x, wide), wide, transpose_b=True), tf.matmul(x, WEIGHTS)

    graph = flat(tmp_path, function, X)
    made, changes = after(graph, *GROUND, BFLOAT16)
    assert changes == 2
    for alias, right in run(graph, ROWS).items():
        np.testing.assert_allclose(run(made, ROWS)[alias], right, rtol=0.05, atol=0.05 * abs(right).max())


def test_loops_and_branches_stay_calls(tmp_path: Path) -> None:
    weights = tf.Variable(np.eye(4, dtype=np.float32) * 0.5)

    def function(x: Any) -> Any:
        for _ in tf.range(3):
            x = tf.matmul(x, weights)
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)

    graph = flat(tmp_path, function, X, weights=weights)
    made, _ = after(graph, *GROUND, COMMON, GRAPPLER)
    assert_same(graph, made, ROWS)
