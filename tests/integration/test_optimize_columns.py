"""The pass `columns`: TensorFlow's own feature columns become lookups and answer as before; what is not
provable stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import GROUND, after, assert_same, flat, in_session, ops, repackaged, saved

from fastserve.workshop.optimizing.source import read_source
from fastserve.workshop.passes.columns import PASS as COLUMNS
from fastserve.workshop.passes.common import PASS as COMMON
from fastserve.workshop.passes.crosses import PASS as CROSSES

fc = tf.feature_column
tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
RNG = np.random.default_rng(11)
# What feature columns are made of, and lookups are not.
MACHINERY = (
    "GatherNd",
    "SparseFillEmptyRows",
    "SparseReshape",
    "SparseSegmentMean",
    "SparseSegmentSum",
    "SparseSegmentSqrtN",
    "SparseToDense",
    "Unique",
    "Where",
)


class FromColumns:
    """A module's function made of feature columns, with random weights."""

    def __init__(self, build: Callable[[dict[str, Any]], Any], specs: dict[str, Any]) -> None:
        names = list(specs)

        def function(*values: Any) -> Any:
            with tf.compat.v1.variable_scope("columns", use_resource=True):
                return build(dict(zip(names, values, strict=True)))

        self.wrapped = tf.compat.v1.wrap_function(function, list(specs.values()))
        self.weights = list(self.wrapped.variables)
        for variable in self.weights:
            variable.assign(RNG.standard_normal(variable.shape).astype(np.float32))


def of_columns(folder: Path, build: Callable[[dict[str, Any]], Any], **dtypes: Any) -> Any:
    """The flat graph of inputs [N] with these dtypes, or TensorSpecs."""
    specs = {
        name: kind if isinstance(kind, tf.TensorSpec) else tf.TensorSpec([None], kind, name=name)
        for name, kind in dtypes.items()
    }
    made = FromColumns(build, specs)
    return flat(
        folder,
        lambda *values: made.wrapped(*values),
        *specs.values(),
        weights=made.weights,
        wrapped=made.wrapped,
    )


def input_layer(*columns: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda features: tf.compat.v1.feature_column.input_layer(features, list(columns))


def linear_model(*columns: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda features: tf.compat.v1.feature_column.linear_model(features, list(columns))


def hashed(name: str, dtype: Any = tf.int64) -> Any:
    return fc.categorical_column_with_hash_bucket(name, 50, dtype=dtype)


def ids(n: int = 40) -> Any:
    """Some missing."""
    return np.where(RNG.random(n) < 0.2, -1, RNG.integers(0, 1 << 40, n))


def words(n: int = 40) -> Any:
    return RNG.choice([b"", b"oslo", b"bergen", b"a longer name than fits"], n)


def assert_lookups(graph: Any, inputs: Any, changes: int = 1, *, empty: bool = True) -> Any:
    made, found = after(graph, *GROUND, COLUMNS)
    assert found == changes
    assert not {op: ops(made)[op] for op in MACHINERY if ops(made)[op]}
    assert_same(graph, made, inputs)
    if empty:
        assert_same(graph, made, {name: values[:0] for name, values in inputs.items()})
    return made


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_an_embedding_of_hashed_ids(tmp_path: Path, combiner: str) -> None:
    column = fc.embedding_column(hashed("a"), 4, combiner=combiner)
    graph = of_columns(tmp_path, input_layer(column), a=tf.int64)
    made = assert_lookups(graph, {"a": ids()})
    assert ops(made)["GatherV2"] == 1


def test_an_embedding_of_words(tmp_path: Path) -> None:
    graph = of_columns(tmp_path, input_layer(fc.embedding_column(hashed("a", tf.string), 4)), a=tf.string)
    assert_lookups(graph, {"a": words()})


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_several_values_in_a_row(tmp_path: Path, combiner: str) -> None:
    column = fc.embedding_column(hashed("a"), 4, combiner=combiner)
    graph = of_columns(tmp_path, input_layer(column), a=tf.TensorSpec([None, 3], tf.int64, name="a"))
    values = ids(60).reshape(20, 3)
    values[3] = -1
    assert_lookups(graph, {"a": values})


def test_an_identity_with_a_default(tmp_path: Path) -> None:
    column = fc.embedding_column(fc.categorical_column_with_identity("a", 10, default_value=3), 4)
    graph = of_columns(tmp_path, input_layer(column), a=tf.int64)
    assert_lookups(graph, {"a": RNG.integers(-3, 14, 40)})


def test_an_identity_that_checks_its_values_still_does(tmp_path: Path) -> None:
    column = fc.embedding_column(fc.categorical_column_with_identity("a", 10), 4)
    graph = of_columns(tmp_path, input_layer(column), a=tf.int64)
    made, _ = after(graph, *GROUND, COLUMNS)
    assert_same(graph, made, {"a": RNG.integers(0, 10, 40)})
    for each in (graph, made):
        with pytest.raises(tf.errors.InvalidArgumentError):
            assert_same(each, each, {"a": np.array([3, 10])})


def test_a_linear_model(tmp_path: Path) -> None:
    columns = [
        hashed("a"),
        hashed("b", tf.string),
        fc.categorical_column_with_identity("c", 10, default_value=0),
        fc.crossed_column(["a", "b"], 30),
        fc.crossed_column(["a", fc.categorical_column_with_identity("c", 10, default_value=0)], 30),
    ]
    graph = of_columns(tmp_path, linear_model(*columns), a=tf.int64, b=tf.string, c=tf.int64)
    inputs = {"a": ids(), "b": words(), "c": RNG.integers(-2, 12, 40)}
    made = assert_lookups(graph, inputs, changes=5, empty=False)  # the original refuses no rows
    assert ops(made)["SparseCross"] == 2


def test_an_embedding_of_a_cross(tmp_path: Path) -> None:
    cross = fc.crossed_column(
        [
            fc.categorical_column_with_identity("a", 9, default_value=2),
            fc.categorical_column_with_identity("b", 9, default_value=0),
        ],
        100,
    )
    graph = of_columns(tmp_path, input_layer(fc.embedding_column(cross, 3)), a=tf.int64, b=tf.int64)
    assert_lookups(graph, {"a": ids(), "b": RNG.integers(-1, 9, 40)})


def test_an_indicator_keeps_its_one_hot(tmp_path: Path) -> None:
    graph = of_columns(tmp_path, input_layer(fc.indicator_column(hashed("a"))), a=tf.int64)
    made = assert_lookups(graph, {"a": ids()})
    assert ops(made)["OneHot"] == 1


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
@pytest.mark.parametrize("kind", ["dropped", "default", "buckets"])
def test_a_vocabulary(tmp_path: Path, kind: str, combiner: str) -> None:
    """Words that are not in it are dropped, as is what is missing, or have a row of their own, or some."""
    known = [b"oslo", b"bergen"]
    keys = tf.lookup.KeyValueTensorInitializer(known, np.array([0, 1], np.int64))
    if kind == "buckets":
        table: Any = tf.lookup.StaticVocabularyTable(keys, num_oov_buckets=3)
    else:
        table = tf.lookup.StaticHashTable(keys, -1 if kind == "dropped" else 1)
    weights = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))

    def function(word: Any) -> Any:
        indices = tf.where(tf.not_equal(word, ""))
        found = table.lookup(tf.gather_nd(word, indices))
        sparse = tf.SparseTensor(indices, found, tf.shape(word, tf.int64))
        return tf.nn.safe_embedding_lookup_sparse(weights, sparse, combiner=combiner)

    spec = tf.TensorSpec([None, 3], tf.string, name="word")
    model = saved(tmp_path / "model", function, spec, table=table, weights=weights)
    (graph,) = read_source(model, ("serve",), ()).graphs.values()
    made, changes = after(graph, *GROUND, COLUMNS)
    assert changes == 1 and not {"SparseFillEmptyRows", "Where"} & ops(made).keys()
    path = repackaged(model, tmp_path / "made")
    words = RNG.choice([*known, b"", b"nowhere", b"x"], (30, 3)).astype(object)
    words[:3] = [[b""] * 3, [b"oslo"] * 3, [b"nowhere"] * 3]
    for fed in (words, words[:0]):
        right, answers = (in_session(each, {"word": fed}) for each in (model, path))
        np.testing.assert_allclose(answers["output_0"], right["output_0"], rtol=1e-5, atol=1e-6)


def test_wide_and_deep_of_one_feature_share_its_hash(tmp_path: Path) -> None:
    def build(features: dict[str, Any]) -> Any:
        deep = input_layer(fc.embedding_column(hashed("a"), 2))(features)
        return tf.concat([linear_model(hashed("a"))(features), deep], 1)

    graph = of_columns(tmp_path, build, a=tf.int64)
    assert_lookups(graph, {"a": ids()}, changes=2, empty=False)
    made, _ = after(graph, *GROUND, COLUMNS, COMMON)
    assert ops(made)["StringToHashBucketFast"] == 1


def test_ids_beyond_the_table_stay_an_error(tmp_path: Path) -> None:
    weights = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))

    def function(a: Any) -> Any:
        column = tf.expand_dims(a, 1)
        indices = tf.where(tf.not_equal(column, -1))
        sparse = tf.SparseTensor(indices, tf.gather_nd(column, indices), tf.shape(column, tf.int64))
        return tf.nn.safe_embedding_lookup_sparse(weights, sparse)

    graph = flat(tmp_path, function, tf.TensorSpec([None], tf.int64, name="a"), weights=weights)
    made, changes = after(graph, *GROUND, COLUMNS)
    assert changes == 1
    assert_same(graph, made, {"a": np.array([0, -1, 4, -7])})
    for each in (graph, made):
        with pytest.raises(tf.errors.InvalidArgumentError):
            assert_same(each, each, {"a": np.array([0, 5])})


# ---- left alone ------------------------------------------------------------------------------------


def sparse_of(function: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """function(column, indices where it is not -1) of an input [N]."""

    def whole(a: Any) -> Any:
        column = tf.expand_dims(a, 1)
        return function(column, tf.where(tf.not_equal(column, -1)))

    return whole


def weighted(column: Any, indices: Any) -> Any:
    values, shape = tf.gather_nd(column, indices), tf.shape(column, tf.int64)
    sparse = tf.SparseTensor(indices, values, shape)
    weights = tf.SparseTensor(indices, tf.cast(values, tf.float32), shape)
    return tf.nn.safe_embedding_lookup_sparse(tf.ones([50, 3]), sparse, weights, combiner="sum")


def other_values(column: Any, indices: Any) -> Any:
    """Not element by element: the values are turned around."""
    values = tf.reverse(tf.gather_nd(column, indices), [0])
    sparse = tf.SparseTensor(indices, values, tf.shape(column, tf.int64))
    return tf.nn.safe_embedding_lookup_sparse(tf.eye(50), sparse)


def more_rows(column: Any, indices: Any) -> Any:
    """The sparse tensor has rows that the dense one has not."""
    shape = tf.add(tf.shape(column, tf.int64), [2, 0])
    sparse = tf.SparseTensor(indices, tf.gather_nd(column, indices), shape)
    return tf.nn.safe_embedding_lookup_sparse(tf.eye(50), sparse)


def known_rows(column: Any, indices: Any) -> Any:
    sparse = tf.SparseTensor(indices, tf.gather_nd(column, indices), [9, 1])
    return tf.nn.safe_embedding_lookup_sparse(tf.eye(50), sparse)


def default_row(column: Any, indices: Any) -> Any:
    """Rows without ids get row 7, not zeros."""
    sparse = tf.SparseTensor(indices, tf.gather_nd(column, indices), tf.shape(column, tf.int64))
    return tf.nn.safe_embedding_lookup_sparse(tf.eye(50), sparse, default_id=7)


@pytest.mark.parametrize("function", [weighted, other_values, more_rows, known_rows, default_row])
def test_near_misses(tmp_path: Path, function: Callable[[Any, Any], Any]) -> None:
    graph = flat(tmp_path, sparse_of(function), tf.TensorSpec([None], tf.int64, name="a"))
    made, changes = after(graph, *GROUND, COLUMNS)
    assert changes == 0 and ops(made)["SparseFillEmptyRows"] >= 1
    assert_same(graph, made, {"a": np.array([3, -1, 7, 49, -1, 0])})


def test_a_column_that_is_sparse_to_begin_with(tmp_path: Path) -> None:
    specs = [
        tf.TensorSpec([None, 2], tf.int64, name="indices"),
        tf.TensorSpec([None], tf.int64, name="values"),
        tf.TensorSpec([2], tf.int64, name="shape"),
    ]

    def function(indices: Any, values: Any, shape: Any) -> Any:
        return tf.nn.safe_embedding_lookup_sparse(tf.eye(9), tf.SparseTensor(indices, values, shape))

    graph = flat(tmp_path, function, *specs)
    assert after(graph, *GROUND, COLUMNS)[1] == 0


def test_crosses_of_numbers_become_arithmetic(tmp_path: Path) -> None:
    pairs = [fc.crossed_column(list(pair), 30) for pair in ("ab", "bc", "ca")]
    graph = of_columns(tmp_path, linear_model(*pairs), a=tf.int64, b=tf.int64, c=tf.int64)
    made, found = after(graph, *GROUND, COLUMNS, CROSSES)
    assert found == 3 and not ops(made)["SparseCross"]
    assert_same(graph, made, {name: ids() for name in "abc"})
