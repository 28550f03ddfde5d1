"""The pass `gathers`: lookups that meet become one; ids outside of their own table stay errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops, run

from fastserve.workshop.passes.gathers import PASS as GATHERS

RNG = np.random.default_rng(5)
IDS = tf.TensorSpec([None, 4], tf.int64, name="ids")
NUMBERS = tf.TensorSpec([None, 3], tf.float32, name="numbers")
ROWS = (5, 7, 5, 9)


def tables(width: int = 2, rows: tuple[int, ...] = ROWS) -> list[Any]:
    return [tf.constant(RNG.standard_normal((n, width)).astype(np.float32)) for n in rows]


def some(rows: int = 30) -> dict[str, Any]:
    return {
        "ids": np.stack([RNG.integers(0, n, rows) for n in ROWS], axis=1),
        "numbers": RNG.standard_normal((rows, 3)).astype(np.float32),
    }


def looked_up(ids: Any, of: list[Any]) -> list[Any]:
    return [tf.gather(table, ids[:, i]) for i, table in enumerate(of)]


def merged(tmp_path: Path, function: Any, **tracked: Any) -> Any:
    graph = flat(tmp_path, function, IDS, NUMBERS, **tracked)
    made, changes = after(graph, *GROUND, GATHERS)
    return graph, made, changes


def test_neighbours_in_a_concatenation(tmp_path: Path) -> None:
    of = tables()
    graph, made, changes = merged(
        tmp_path, lambda ids, numbers: tf.concat([numbers, *looked_up(ids, of), numbers], 1)
    )
    assert changes == 3 and ops(made)["GatherV2"] == 1
    assert_same(graph, made, some())
    assert_same(graph, made, {name: values[:0] for name, values in some().items()})


def test_columns_are_reordered_where_a_matrix_takes_them(tmp_path: Path) -> None:
    narrow, wide = tables(2), tables(3)
    matrix = RNG.standard_normal((2 * 4 + 3 * 4 + 3, 6)).astype(np.float32)

    def function(ids: Any, numbers: Any) -> Any:
        mixed = [t for pair in zip(looked_up(ids, narrow), looked_up(ids, wide), strict=True) for t in pair]
        return tf.matmul(tf.concat([*mixed[:5], numbers, *mixed[5:]], 1), matrix)

    graph, made, changes = merged(tmp_path, function)
    assert changes == 6 and ops(made)["GatherV2"] == 2
    assert_same(graph, made, some(), atol=1e-5)


def test_a_concatenation_that_is_seen_keeps_its_order(tmp_path: Path) -> None:
    of = tables()

    def function(ids: Any, numbers: Any) -> Any:
        a, b, c, d = looked_up(ids, of)
        return tf.concat([a, numbers, b, c, numbers, d], 1)

    graph, made, changes = merged(tmp_path, function)
    assert changes == 1 and ops(made)["GatherV2"] == 3
    assert_same(graph, made, some())


def test_a_sum(tmp_path: Path) -> None:
    of = tables(1)
    graph, made, changes = merged(
        tmp_path, lambda ids, numbers: tf.add_n([*looked_up(ids, of), numbers[:, :1]]) + 1.0
    )
    assert changes == 3 and ops(made)["GatherV2"] == 1
    assert_same(graph, made, some())


def test_a_sum_of_which_one_row_is_repeated(tmp_path: Path) -> None:
    """Lookups of as many rows, for all that the graph says: only at the run it shows that one has one."""
    of = tables(2, (5, 5, 5))
    specs = [tf.TensorSpec([None], tf.int64, name=name) for name in ("a", "b")]

    def function(a: Any, b: Any) -> Any:
        return tf.gather(of[0], a) + tf.gather(of[1], b) + tf.gather(of[2], b)

    graph = flat(tmp_path, function, *specs)
    made, changes = after(graph, *GROUND, GATHERS)
    assert changes == 1 and ops(made)["GatherV2"] == 2
    for rows in ((4, 4), (1, 4), (4, 1), (0, 1)):
        assert_same(graph, made, {k: RNG.integers(0, 5, n) for k, n in zip("ab", rows, strict=True)})


def test_a_sum_that_repeats_nothing_still_does_not(tmp_path: Path) -> None:
    of = tables(3)
    graph, made, changes = merged(
        tmp_path, lambda ids, numbers: tf.add_n([*looked_up(ids, of), numbers, tf.exp(numbers)])
    )
    assert changes == 3
    assert_same(graph, made, some())
    for each in (graph, made):
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(each, some() | {"numbers": np.zeros((1, 3), np.float32)})


def test_a_stack_and_a_concatenation_of_the_same_share_one(tmp_path: Path) -> None:
    of = tables()

    def function(ids: Any, numbers: Any) -> Any:
        found = looked_up(ids, of)
        return tf.reduce_max(tf.stack(found, axis=1), 1), tf.concat([*found, numbers], 1)

    graph, made, _ = merged(tmp_path, function)
    assert ops(made)["GatherV2"] == 1
    assert_same(graph, made, some())


def test_an_id_outside_of_its_own_table_is_an_error_as_before(tmp_path: Path) -> None:
    of = tables()
    graph, made, _ = merged(tmp_path, lambda ids, numbers: tf.concat(looked_up(ids, of), 1))
    for column, value in ((0, 5), (1, 7), (2, -1), (3, 1 << 40)):
        inputs = some()
        inputs["ids"][4, column] = value
        for each in (graph, made):
            with pytest.raises(tf.errors.InvalidArgumentError):
                assert_same(each, each, {"ids": inputs["ids"]} | {"numbers": inputs["numbers"]})


def test_no_check_where_no_id_can_be_outside(tmp_path: Path) -> None:
    of = tables()

    def function(ids: Any, numbers: Any) -> Any:
        return tf.concat(looked_up(tf.math.floormod(ids, 5), of), 1)

    graph, made, changes = merged(tmp_path, function)
    assert changes == 3 and ops(made)["SelectV2"] == 0
    assert_same(graph, made, {"ids": RNG.integers(-99, 99, (9, 4)), "numbers": np.zeros((9, 3), np.float32)})


def test_tables_in_variables(tmp_path: Path) -> None:
    of = [tf.Variable(table) for table in tables()]
    graph = flat(tmp_path, lambda ids, numbers: tf.concat(looked_up(ids, of), 1), IDS, NUMBERS, of=of)
    made, changes = after(graph, *GROUND, GATHERS, freeze_bytes=0)
    assert changes == 3 and ops(made)["VarHandleOp"] == 1
    assert_same(graph, made, some())


def test_tables_of_which_some_are_small(tmp_path: Path) -> None:
    """Constants and variables made for one node have names of their own."""
    narrow, wide = tables(2), tables(9)
    graph, made, changes = merged(
        tmp_path, lambda ids, numbers: tf.concat([*looked_up(ids, narrow), *looked_up(ids, wide)], 1)
    )
    small, _ = after(graph, *GROUND, GATHERS, freeze_bytes=sum(ROWS) * 2 * 4)
    assert changes == 6 and ops(made)["VarHandleOp"] == 0 and ops(small)["VarHandleOp"] == 1
    assert_same(graph, small, some())


def test_near_misses(tmp_path: Path) -> None:
    """Other widths, other types, along other axes, or taken by somebody else: not merged."""
    a, b = tables(2, (5, 5))
    wide, double = tables(3, (5,))[0], tf.cast(b, tf.float64)

    def function(ids: Any, numbers: Any) -> Any:
        seen = tf.gather(a, ids[:, 0])
        return {
            "widths": tf.concat([tf.gather(a, ids[:, 0]), tf.gather(wide, ids[:, 0])], 1),
            "types": tf.concat(
                [tf.cast(tf.gather(double, ids[:, 0]), tf.float32), tf.gather(b, ids[:, 0])], 1
            ),
            "rows": tf.concat([tf.gather(a, ids[:, 0]), tf.gather(b, ids[:, 0])], 0),
            "seen": seen,
            "beside": tf.concat([seen, tf.gather(b, ids[:, 0])], 1),
            "lists": tf.concat([tf.gather(a, ids), tf.gather(b, ids)], 2),
        }

    graph, made, changes = merged(tmp_path, function)
    assert changes == 0
    inputs = some() | {"ids": RNG.integers(0, 5, (8, 4)), "numbers": np.zeros((8, 3), np.float32)}
    assert_same(graph, made, inputs)
