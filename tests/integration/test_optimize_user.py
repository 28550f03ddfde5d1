"""The pass `user`: one user's rows cost his side once, and any batch answers as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, ops, run

from fastserve.workshop.passes.user import PASS as USER

RNG = np.random.default_rng(3)
SPECS = (
    tf.TensorSpec([None], tf.int64, name="user_id"),
    tf.TensorSpec([None, 6], tf.float32, name="user_dense"),
    tf.TensorSpec([None], tf.string, name="user_city"),
    tf.TensorSpec([None, 4], tf.float32, name="item"),
)
NAMES = ("user_id", "user_dense", "user_city")
TABLE = RNG.standard_normal((20, 5)).astype(np.float32)
FIRST = RNG.standard_normal((5 + 6 + 5 + 4, 8)).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)


def model(user_id: Any, user_dense: Any, user_city: Any, item: Any) -> Any:
    found = tf.gather(TABLE, tf.math.floormod(user_id, 20))
    city = tf.gather(TABLE, tf.strings.to_hash_bucket_fast(user_city, 20))
    profile = tf.concat([found, tf.math.log1p(tf.abs(user_dense)), city], 1)
    hidden = tf.nn.relu(tf.matmul(tf.concat([profile, item], 1), FIRST) + BIAS)
    return tf.concat([hidden, tf.sigmoid(tf.matmul(profile, FIRST[:16]))], 1)


def inputs(users: list[int]) -> dict[str, Any]:
    """A row for each, of the user of that number."""
    ids, dense = RNG.integers(0, 1000, 9), RNG.standard_normal((9, 6)).astype(np.float32)
    cities = np.array([b"oslo", b"bergen", b"", b"a", b"b", b"c", b"d", b"e", b"f"])
    rows = np.array(users, np.int64)
    item = RNG.standard_normal((len(rows), 4)).astype(np.float32)
    return {"user_id": ids[rows], "user_dense": dense[rows], "user_city": cities[rows], "item": item}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    graph = flat(tmp_path_factory.mktemp("user"), model, *SPECS)
    made, changes = after(graph, *GROUND, USER, user_inputs=NAMES)
    assert changes >= 2
    return graph, made


@pytest.mark.parametrize(
    "users",
    [[], [0], [0] * 50, [0] * 20 + [1] * 30, [0, 1, 2, 3], [0, 0, 1, 0, 0], [4] * 3 + [5] + [4] * 2],
    ids=str,
)
def test_any_batch_answers_as_before(graphs: Any, users: list[int]) -> None:
    graph, made = graphs
    assert_same(graph, made, inputs(users), atol=1e-5)


def test_undefined_numbers_are_themselves(graphs: Any) -> None:
    """The same NaN is the same user."""
    graph, made = graphs
    rows = inputs([0] * 5)
    rows["user_dense"][1:3, 2] = np.nan
    right, found = run(graph, rows), run(made, rows)
    for alias, value in right.items():
        np.testing.assert_allclose(found[alias][[0, 3, 4]], value[[0, 3, 4]], rtol=1e-5, atol=1e-5)
        # What relu makes of NaN is the kernel's own business; here it is the same for both rows.
        np.testing.assert_array_equal(np.isnan(found[alias][1]), np.isnan(found[alias][2]))


@pytest.mark.parametrize("kind", [tf.int64, tf.float32, tf.string], ids=lambda kind: str(kind.name))
def test_the_users_vectors_are_handled_together(tmp_path: Path, kind: Any) -> None:
    """Told apart as one matrix, and one lookup gives a row of each for each user."""
    names = [f"user_{place}" for place in range(6)]
    specs = [tf.TensorSpec([None], kind, name=name) for name in names]

    def predict(*values: Any) -> Any:
        item, *user = values[::-1]
        words = [each if kind == tf.string else tf.strings.as_string(each) for each in user]
        found = [tf.gather(TABLE, tf.strings.to_hash_bucket_fast(each, 20)) for each in words]
        return tf.add_n(found) * item[:, :1]

    graph = flat(tmp_path, predict, *specs, SPECS[-1])
    made, changes = after(graph, *GROUND, USER, user_inputs=names)
    assert changes == 1 and ops(made)["GatherV2"] == len(names) + 2  # the users' rows, and the rows' users
    assert ops(made)["ExpandDims"] == ops(graph)["ExpandDims"] and ops(made)["NotEqual"] == 1
    values = RNG.integers(0, 3, (9, 6))
    rows = np.array([0, 0, 1, 2, 2, 2, 0])
    as_kind = values.astype(str).astype(object) if kind == tf.string else values.astype(kind.as_numpy_dtype)
    given: dict[str, Any] = {name: as_kind[rows, place] for place, name in enumerate(names)}
    given["item"] = RNG.standard_normal((len(rows), 4)).astype(np.float32)
    assert_same(graph, made, given)
    assert_same(graph, made, {name: each[:0] for name, each in given.items()})


@pytest.mark.parametrize("taken", [False, True], ids=["alone", "taken by another"])
def test_the_bias_of_a_split_product_is_added_to_the_users_side(tmp_path: Path, taken: bool) -> None:
    """Once for each user; but not where somebody takes the product without it."""

    def predict(user_dense: Any, item: Any) -> Any:
        product = tf.matmul(tf.concat([user_dense, item], 1), FIRST[:10])
        biased = tf.nn.relu(tf.nn.bias_add(product, BIAS))
        return tf.concat([biased, product], 1) if taken else biased

    graph = flat(tmp_path, predict, SPECS[1], SPECS[3])
    made, changes = after(graph, *GROUND, USER, user_inputs=["user_dense"])
    (bias,) = (node for node in made.nodes.values() if node.op == "BiasAdd")
    assert changes == 1 and (made.inputs["item"] in made.ancestors([bias.name])) is taken
    for users in ([0] * 4 + [1] * 3, [2], []):
        given = inputs(users)
        assert_same(graph, made, {name: given[name] for name in ("user_dense", "item")}, atol=1e-5)


DTYPES = (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.complex64, tf.complex128)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype.name))
def test_users_are_told_apart_by_their_bits(tmp_path: Path, dtype: tf.DType) -> None:
    """0.0 and -0.0 are equal, and not the same."""

    def function(user_id: Any, user_dense: Any, item: Any) -> Any:
        found = tf.gather(TABLE, tf.math.floormod(user_id, 20))
        return tf.concat([found, tf.cast(user_dense, tf.float32), item], 1)

    specs = (SPECS[0], tf.TensorSpec([None, 2], dtype, name="user_dense"), SPECS[3])
    graph = flat(tmp_path, function, *specs)
    made, changes = after(graph, *GROUND, USER, user_inputs=("user_id", "user_dense"))
    assert changes == 1
    numbers = np.array([0.0, 0.0, -0.0, -0.0, np.nan, np.nan, 0.0]).astype(dtype.as_numpy_dtype)
    rows = inputs([3] * 7) | {"user_dense": np.stack([np.ones_like(numbers), numbers], 1)}
    fed = {name: rows[name] for name in ("user_id", "user_dense", "item")}
    (answer,) = assert_same(graph, made, fed).values()
    signs = np.signbit(answer[:, TABLE.shape[1] + 1])
    assert signs[:4].tolist() == [False, False, True, True] and not signs[6]
    np.testing.assert_array_equal(np.signbit(next(iter(run(made, fed).values()))), np.signbit(answer))


@pytest.mark.parametrize("short", NAMES)
def test_inputs_with_other_numbers_of_rows_stay_an_error(graphs: Any, short: str) -> None:
    for graph in graphs:
        rows = inputs([0] * 5)
        rows[short] = rows[short][:1]
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(graph, rows)


@pytest.mark.parametrize("shape", [[None, None, 2], [None, 0, 2], None], ids=str)
def test_a_user_whose_row_has_no_known_size_is_left_alone(tmp_path: Path, shape: Any) -> None:
    def function(user_id: Any, seen: Any, item: Any) -> Any:
        return tf.concat([tf.gather(TABLE, user_id), item], 1), seen

    specs = (SPECS[0], tf.TensorSpec(shape, tf.float32, name="seen"), SPECS[3])
    graph = flat(tmp_path, function, *specs)
    assert after(graph, *GROUND, USER, user_inputs=("user_id", "seen"))[1] == 0


def test_the_matrix_is_split_at_the_users_side(graphs: Any) -> None:
    """The user's products have as many rows as there are users."""
    graph, made = graphs
    assert ops(made)["MatMul"] == ops(graph)["MatMul"] + 1
    for node in made.nodes.values():
        if node.op == "GatherV2" and made.value(node.input[0]) is not None:
            assert "users" in str([made.ancestors([node.input[1]])])


def test_without_user_inputs_nothing_is_done(tmp_path: Path) -> None:
    graph = flat(tmp_path, model, *SPECS)
    assert after(graph, *GROUND, USER)[1] == 0


def test_rows_that_are_mixed_stay_together(tmp_path: Path) -> None:
    """What looks at other rows, or at how many there are, is no user's side."""

    def function(user_id: Any, user_dense: Any, user_city: Any, item: Any) -> Any:
        found = tf.gather(TABLE, tf.math.floormod(user_id, 20))
        centred = found - tf.reduce_mean(found, axis=0)
        turned = tf.reverse(found, [0])
        rows = tf.cast(tf.shape(found)[0], tf.float32)
        return tf.concat([centred, turned, found / rows, tf.cumsum(found), item], 1)

    graph = flat(tmp_path, function, *SPECS)
    made, _ = after(graph, *GROUND, USER, user_inputs=("user_id",))
    assert_same(graph, made, inputs([0, 0, 0, 1, 1, 2]), atol=1e-5)


STEPS: list[Callable[[Any], Any]] = [
    lambda x: tf.nn.relu(x),
    lambda x: tf.matmul(x, tf.constant(np.ones((x.shape[1], 3), np.float32) * 0.3)),
    lambda x: tf.reduce_sum(x, axis=1, keepdims=True) + x,
    lambda x: x - tf.reduce_max(x, axis=0, keepdims=True),
    lambda x: tf.reshape(tf.expand_dims(x, 2), [-1, x.shape[1]]),
    lambda x: tf.nn.softmax(x),
    lambda x: tf.where(x > 0.0, x, tf.zeros_like(x)),
    lambda x: x[:, ::-1],
    lambda x: tf.transpose(tf.transpose(x) * 2.0),
]


def chain(steps: list[Callable[[Any], Any]]) -> Callable[..., Any]:
    """Half of the steps on the user's side alone, half after the candidate's came in."""

    def function(user_id: Any, user_dense: Any, user_city: Any, item: Any) -> Any:
        x = tf.gather(TABLE, tf.math.floormod(user_id, 20))
        for step in steps[:2]:
            x = step(x)
        x = tf.concat([x, user_dense, item], 1)
        x = tf.matmul(x, tf.constant(np.full((x.shape[1], 5), 0.1, np.float32)))
        for step in steps[2:]:
            x = step(x)
        return x

    return function


def test_random_models(tmp_path: Path) -> None:
    """Chains of ops by rows and ops that are not, of both sides."""
    rng = np.random.default_rng(8)
    for case in range(5):
        steps = [STEPS[i] for i in rng.integers(0, len(STEPS), 4)]
        graph = flat(tmp_path / str(case), chain(steps), *SPECS)
        made, _ = after(graph, *GROUND, USER, user_inputs=NAMES)
        for users in ([0] * 4, [0, 0, 1, 2, 2, 2, 0]):
            assert_same(graph, made, inputs(users), atol=1e-4)
