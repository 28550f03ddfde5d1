"""The pass `selects`: arithmetic gives what TensorFlow's own choice gives, at the ends of the types, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops

from fastserve.workshop.passes.ranges import bounds
from fastserve.workshop.passes.selects import PASS

RNG = np.random.default_rng(31)


def inputs(dtype: Any, shape: tuple[int, ...] = (40, 3)) -> dict[str, Any]:
    info = np.iinfo(dtype)
    x = RNG.integers(info.min, info.max, shape, dtype, endpoint=True)
    x[0, 0], x[-1, 0] = info.min, info.max
    return {"c": RNG.random(shape) < 0.5, "x": x}


def specs(dtype: Any) -> list[tf.TensorSpec]:
    return [
        tf.TensorSpec([None, None], tf.bool, name="c"),
        tf.TensorSpec([None, None], dtype, name="x"),
    ]


def chosen(tmp_path: Path, function: Any, dtype: Any = tf.int64, changes: int = 1) -> tuple[Any, Any]:
    graph = flat(tmp_path, function, *specs(dtype))
    made, found = after(graph, *GROUND, PASS)
    assert found == changes and ops(made)["SelectV2"] == ops(graph)["SelectV2"] - changes
    return graph, made


@pytest.mark.parametrize("number", [0, 1, -1, 7, "least", "greatest"])
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("first", [False, True])
def test_a_number_on_either_side(tmp_path: Path, number: Any, dtype: Any, first: bool) -> None:
    value = {"least": dtype.min, "greatest": dtype.max}.get(number, number)

    def predict(c: Any, x: Any) -> Any:
        one = tf.constant(value, dtype)
        return tf.where(c, one, x) if first else tf.where(c, x, one)

    graph, made = chosen(tmp_path, predict, dtype)
    for shape in ((40, 3), (2, 1)):
        assert_same(graph, made, inputs(dtype.as_numpy_dtype, shape))
    assert_same(graph, made, {k: v[:0] for k, v in inputs(dtype.as_numpy_dtype).items()})


def test_condition_and_tensor_are_repeated_as_before(tmp_path: Path) -> None:
    graph, made = chosen(tmp_path, lambda c, x: tf.where(c, x, tf.constant(5, tf.int64)))
    for c, x in (((40, 1), (40, 3)), ((1, 3), (40, 3)), ((40, 3), (1, 1)), ((40, 3), (40, 1))):
        assert_same(graph, made, {"c": inputs(np.int64, c)["c"], "x": inputs(np.int64, x)["x"]})


def test_what_a_lookup_may_get_stays_known(tmp_path: Path) -> None:
    def predict(c: Any, x: Any) -> Any:
        return tf.where(c, tf.math.floormod(x, 50), tf.constant(50, tf.int64))

    graph, made = chosen(tmp_path, predict)
    assert_same(graph, made, inputs(np.int64))
    (output,) = made.outputs.values()
    assert bounds(made, output) == (0, 50)


@pytest.mark.parametrize("what", ["floats", "two tensors", "one condition"])
def test_what_is_left_alone(tmp_path: Path, what: str) -> None:
    def predict(c: Any, x: Any) -> Any:
        if what == "floats":
            return tf.where(c, 1.0 / tf.cast(x, tf.float32), 0.0)
        if what == "two tensors":
            return tf.where(c, x, x + 1)
        return tf.where(tf.reduce_any(c), x, tf.constant(3, tf.int64))

    chosen(tmp_path, predict, changes=0)
