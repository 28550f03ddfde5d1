"""Between which numbers ids lie: as far as can be said, and never less than what comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, flat, run

from fastserve.workshop.passes.ranges import bounds, within

RNG = np.random.default_rng(12)
LEAST, MOST = -(1 << 63), (1 << 63) - 1
SPECS = (
    tf.TensorSpec([None, 2], tf.int64, name="a"),
    tf.TensorSpec([None, 2], tf.int32, name="b"),
    tf.TensorSpec([None, 2], tf.uint8, name="c"),
    tf.TensorSpec([None, 2], tf.float32, name="x"),
    tf.TensorSpec([None, 2], tf.string, name="s"),
)
Case = tuple[Callable[..., Any], tuple[int, int] | None]


def clipped(tensor: Any, low: int, high: int) -> Any:
    return tf.minimum(tf.maximum(tensor, low), high)


CASES: dict[str, Case] = {
    "as it comes": (lambda a, **_: a, None),
    "modulo": (lambda a, **_: tf.math.floormod(a, 10), (0, 9)),
    "modulo of a vector": (lambda a, **_: tf.math.floormod(a, tf.constant([3, 7], tf.int64)), (0, 6)),
    "modulo below 0": (lambda a, **_: tf.math.floormod(a, -10), None),
    "modulo of what varies": (lambda a, c, **_: a % (tf.cast(c, tf.int64) + 1), (0, 255)),
    "modulo of what may be below 0": (lambda a, **_: a % (clipped(a, -2, 3) * 2 + 1), None),
    "truncated remainder": (lambda a, **_: tf.truncatemod(a, 10), None),
    "hashed": (lambda s, **_: tf.strings.to_hash_bucket_fast(s, 10), (0, 9)),
    "buckets": (lambda x, **_: tf.raw_ops.Bucketize(input=x, boundaries=[-1.0, 0.0, 1.0]), (0, 3)),
    "clipped": (lambda a, **_: clipped(a, 0, 4), (0, 4)),
    "clipped below": (lambda a, **_: tf.maximum(a, 0), (0, MOST)),
    "clipped above": (lambda a, **_: tf.minimum(a, 4), (LEAST, 4)),
    "clipped by value": (lambda a, **_: tf.raw_ops.ClipByValue(
        t=a, clip_value_min=tf.constant(2, tf.int64), clip_value_max=tf.constant(5, tf.int64)), (2, 5)),
    "moved": (lambda a, **_: clipped(a, 0, 4) + 3, (3, 7)),
    "moved back": (lambda a, **_: 2 - clipped(a, 0, 4), (-2, 2)),
    "times": (lambda a, **_: clipped(a, -2, 4) * -3, (-12, 6)),
    "too many to hold": (lambda b, **_: clipped(b, 0, 1 << 20) * (1 << 20), None),
    "as wide": (lambda c, **_: tf.cast(c, tf.int32), (0, 255)),
    "narrowed": (lambda a, **_: tf.cast(a, tf.int32), None),
    "narrowed and small": (lambda a, **_: tf.cast(a % 300, tf.int32), (0, 299)),
    "narrowed and not small": (lambda a, **_: tf.cast(tf.cast(a % 300, tf.uint8), tf.int32), (0, 255)),
    "of a float": (lambda x, **_: tf.cast(x, tf.int32), None),
    "true or not": (lambda a, **_: tf.cast(a > 0, tf.int32), (0, 1)),
    "one or the other": (lambda a, **_: tf.where(a > 0, a % 3, a % 8 + 2), (0, 9)),
    "one or what comes": (lambda a, **_: tf.where(a > 0, a % 3, a), None),
    "side by side": (lambda a, **_: tf.concat([a % 3, a % 8 - 1], 1), (-1, 6)),
    "of a table": (lambda a, **_: tf.gather(tf.constant([4, 2, 9], tf.int64), a % 3), (2, 9)),
    "turned": (lambda a, **_: tf.reshape(tf.transpose(a % 3), [-1, 1])[1:], (0, 2)),
    "added up": (lambda a, **_: tf.reduce_sum(a % 3, 1), None),
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = [spec.name for spec in SPECS]

    def function(*values: Any) -> Any:
        fed = dict(zip(names, values, strict=True))
        return {str(place): made(**fed) for place, (made, _) in enumerate(CASES.values())}

    made, _ = after(flat(tmp_path_factory.mktemp("ranges"), function, *SPECS), *GROUND)
    return made


@pytest.fixture(scope="module")
def answers(graph: Any) -> Any:
    rows = 500
    edges = np.array([LEAST, -1, 0, 1, MOST])
    a = np.concatenate([RNG.integers(-50, 50, (rows - 5, 2)), np.stack([edges, edges[::-1]], 1)])
    fed = {
        "a": a,
        "b": a.astype(np.int32),
        "c": (a % 256).astype(np.uint8),
        "x": RNG.standard_normal((rows, 2)).astype(np.float32) * 3,
        "s": RNG.choice([b"", b"oslo", b"a", b"b"], (rows, 2)).astype(object),
    }
    fed["x"][:3] = [[np.nan, np.inf], [-np.inf, 0.0], [-0.0, 1.0]]
    return run(graph, fed)


@pytest.mark.parametrize("name", CASES)
def test_the_bounds_are_known_and_hold(graph: Any, answers: Any, name: str) -> None:
    alias = str(list(CASES).index(name))
    _, right = CASES[name]
    assert bounds(graph, graph.outputs[alias]) == right
    if right is not None:
        assert right[0] <= answers[alias].min() and answers[alias].max() <= right[1]
        inside = right[0] >= 0
        assert within(graph, graph.outputs[alias], right[1] + 1) is inside
        assert not within(graph, graph.outputs[alias], right[1])
