"""The pass `crosses`: TensorFlow's own SparseCross says which numbers arithmetic has to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops

from fastserve.workshop.passes.crosses import PASS
from fastserve.workshop.passes.gathers import PASS as GATHERS
from fastserve.workshop.passes.ranges import within

RNG = np.random.default_rng(23)
KEY = 0xDECAFCAFFE
NAMES = ("a", "b", "c", "d")
SPECS = [tf.TensorSpec([None], tf.int64, name=name) for name in NAMES]


def numbers(n: int = 200) -> dict[str, Any]:
    """Of any size, the least and the greatest among them."""
    edges = np.array([0, 1, -1, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    columns = [np.concatenate([RNG.permutation(edges), RNG.integers(-5, 5, n)]) for _ in NAMES]
    columns[0][50:] = RNG.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, n + 5 - 50)
    return dict(zip(NAMES, columns, strict=True))


def cross(*columns: Any, buckets: int = 1000, key: int = KEY) -> Any:
    """All of its outputs."""
    return tf.raw_ops.SparseCross(
        indices=[],
        values=[],
        shapes=[],
        dense_inputs=[c if c.shape.rank == 2 else tf.expand_dims(c, 1) for c in columns],
        hashed_output=True,
        num_buckets=buckets,
        hash_key=key,
        out_type=tf.int64,
        internal_type=tf.int64,
    )


def assert_arithmetic(graph: Any, changes: int, inputs: dict[str, Any] | None = None) -> Any:
    made, found = after(graph, *GROUND, PASS)
    assert found == changes and ops(made)["SparseCross"] == ops(graph)["SparseCross"] - changes
    inputs = numbers() if inputs is None else inputs
    assert_same(graph, made, inputs)
    assert_same(graph, made, {name: values[:1] for name, values in inputs.items()})
    assert_same(graph, made, {name: values[:0] for name, values in inputs.items()})
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("buckets", [1, 7, 20_000, (1 << 62) + 1])
def test_any_numbers_give_the_same_ids(tmp_path: Path, count: int, buckets: int) -> None:
    graph = flat(tmp_path, lambda *columns: cross(*columns[:count], buckets=buckets).output_values, *SPECS)
    assert_arithmetic(graph, 1)


def test_crosses_of_as_many_columns_are_computed_together(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        found = [cross(a, b), cross(b, a, buckets=7), cross(c, d, key=-5), cross(a, b, c), cross(d, b, a)]
        return {str(i): each.output_values for i, each in enumerate(found)}

    made = assert_arithmetic(flat(tmp_path, predict, *SPECS), 5)
    assert ops(made)["FloorMod"] == 2 and ops(made)["Reshape"] == 0


def test_crosses_of_other_numbers_of_rows_are_not_computed_together(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        return cross(a, b).output_values + cross(c, d).output_values

    graph = flat(tmp_path, predict, *SPECS)
    inputs = numbers()
    made = assert_arithmetic(graph, 2, inputs)
    context = {name: values[:1] if name in "ab" else values for name, values in inputs.items()}
    assert_same(graph, made, context)


def masked(c: Any, *columns: Any) -> Any:
    """A linear model's term: ids that count, as rows of a table with a row for the others."""
    columns = tuple(tf.expand_dims(column, 1) for column in columns)
    ids = tf.reshape(cross(*columns).output_values, [-1, 1])
    there = tf.logical_and(*(tf.not_equal(column, -1) for column in columns))
    ids = tf.where(there, ids, tf.constant(1000, tf.int64))
    return tf.gather(c, tf.reshape(ids, [-1]))


@pytest.mark.parametrize("meet", ["sum", "concatenation", "one of two outputs"])
def test_where_crosses_meet_they_have_as_many_rows(tmp_path: Path, meet: str) -> None:
    table = tf.constant(RNG.standard_normal((1001, 2)).astype(np.float32))

    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        terms = [masked(table, a, b), masked(table, c, d)]
        if meet == "concatenation":
            return tf.concat(terms, 1)
        return {"sum": tf.add_n(terms)} | ({"one": terms[0]} if meet == "one of two outputs" else {})

    made = assert_arithmetic(flat(tmp_path, predict, *SPECS), 2)
    # Who asks for the one may send other rows for the other.
    assert ops(made)["Bitcast"] == (2 if meet == "one of two outputs" else 1)


def test_a_cross_of_a_cross_is_computed_after_it(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        inner = tf.ensure_shape(tf.expand_dims(cross(a, b).output_values, 1), [None, 1])
        return {"outer": cross(inner, c).output_values, "other": cross(b, c).output_values}

    assert_arithmetic(flat(tmp_path, predict, *SPECS), 3)


def test_a_cross_that_waits_for_something_else_stays(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        return {"waits": cross(a, b).output_values, "free": cross(c, d).output_values}

    graph = flat(tmp_path, predict, *SPECS)
    first = next(node for node in graph.nodes.values() if node.op == "SparseCross")
    first.input.append("^" + graph.constant(np.int32(1), "before").split(":")[0])
    made, found = after(graph, PASS)  # what it waits for has no effect, and GROUND would clear that up
    assert found == 1 and ops(made)["SparseCross"] == 1
    assert_same(graph, made, numbers())


def test_columns_that_become_rows_again_are_taken_as_they_are(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        column = tf.reshape(cross(a, b).output_values, [-1, 1])
        return {"column": column, "row": tf.reshape(column, [-1]) + 1, "pairs": tf.reshape(column, [1, -1])}

    made = assert_arithmetic(flat(tmp_path, predict, *SPECS), 1)
    assert ops(made)["Reshape"] == 2


def test_of_words_they_stay(tmp_path: Path) -> None:
    specs = [tf.TensorSpec([None], tf.string, name="a"), tf.TensorSpec([None], tf.int64, name="b")]
    graph = flat(tmp_path, lambda a, b: cross(a, b).output_values, *specs)
    inputs = {"a": RNG.choice([b"", b"oslo", b"bergen"], 40), "b": RNG.integers(0, 9, 40)}
    assert_arithmetic(graph, 0, inputs)


def test_with_several_numbers_to_a_row_they_stay(tmp_path: Path) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        return cross(a, tf.stack([b, c], 1)).output_values

    assert_arithmetic(flat(tmp_path, predict, *SPECS), 0)


@pytest.mark.parametrize("output", ["output_indices", "output_shape"])
def test_where_more_than_ids_is_taken_they_stay(tmp_path: Path, output: str) -> None:
    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        found = cross(a, b)
        return {"ids": found.output_values, "other": getattr(found, output)}

    assert_arithmetic(flat(tmp_path, predict, *SPECS), 0)


def test_ids_are_known_to_be_rows(tmp_path: Path) -> None:
    """So a lookup of them is not guarded."""
    table = tf.Variable(RNG.standard_normal((1000, 3)).astype(np.float32))

    def predict(a: Any, b: Any, c: Any, d: Any) -> Any:
        return tf.concat(
            [tf.gather(table, cross(a, b).output_values), tf.gather(table, cross(c, d).output_values)], 1
        )

    graph = flat(tmp_path, predict, *SPECS, table=table)
    made, found = after(graph, *GROUND, PASS, GATHERS)
    assert found == 1 and ops(made)["SelectV2"] == 0
    assert_same(graph, made, numbers())
    (lookup,) = (node for node in made.nodes.values() if node.op == "GatherV2")
    assert within(made, lookup.input[1], 1000)
