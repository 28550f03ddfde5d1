"""What has effects keeps them, in their order: writes, also those of other signatures, reads of what is
written, checks and counters of TensorFlow 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import (
    GROUND,
    after,
    export_v1,
    flat,
    in_session,
    in_turn,
    loaded,
    ops,
    repackaged,
    run,
)

from fastserve.workshop.optimizing.graph import Graph
from fastserve.workshop.optimizing.source import read_source
from fastserve.workshop.passes.columns import PASS as COLUMNS
from fastserve.workshop.passes.common import PASS as COMMON
from fastserve.workshop.passes.user import PASS as USER

tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
RNG = np.random.default_rng(4)
IDS = tf.TensorSpec([None], tf.int64, name="ids")
ITEM = tf.TensorSpec([None, 3], tf.float32, name="item")
ROWS = {"ids": np.array([1, 1, 3, 0]), "item": RNG.standard_normal((4, 3)).astype(np.float32)}


def assert_read_before(graph: Graph, read: str, write: str) -> None:
    """What is read before something is written: all reads are."""
    (writer,) = [node.name for node in graph.nodes.values() if node.op == write]
    reads = [node.name for node in graph.nodes.values() if node.op == read]
    assert reads and set(reads) <= graph.ancestors([writer])


# ---- of another signature ----------------------------------------------------------------------------


class Updated(tf.Module):  # type: ignore[misc]
    """A model whose other signature changes what the first one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))
        self.more = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))
        self.matrix = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.5)

    @tf.function(input_signature=[IDS, ITEM])
    def predict(self, ids, item):  # type: ignore[no-untyped-def]
        hot = tf.matmul(tf.one_hot(ids, 5), self.matrix)
        beside = [tf.gather(self.rows, ids), tf.gather(self.more, ids)]
        return tf.concat([*beside, hot, item, self.table.lookup(ids)[:, None]], 1)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="by")])
    def update(self, by):  # type: ignore[no-untyped-def]
        for variable in (self.rows, self.more, self.matrix):
            variable.assign(variable * by)
        self.table.insert(tf.constant([1], tf.int64), by[None])
        return by


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("updated") / "model"
    module = Updated()
    signatures = {"serving_default": module.predict, "update": module.update}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.mark.parametrize("freeze_bytes", [0, 1 << 20])
def test_what_another_signature_writes_is_read_anew(updated: Path, tmp_path: Path, freeze_bytes: int) -> None:
    made = repackaged(updated, tmp_path / "made", freeze_bytes=freeze_bytes, user_inputs=("ids",))
    runs = [("serving_default", ROWS), ("update", {"by": np.float32(3.0)}), ("serving_default", ROWS)]
    right = in_turn(updated, *runs)
    assert not np.allclose(right[0]["output_0"], right[2]["output_0"])
    for one, other in zip(right, in_turn(made, *runs), strict=True):
        np.testing.assert_allclose(other["output_0"], one["output_0"], rtol=1e-5)


def test_what_no_signature_that_is_kept_writes_is_frozen(updated: Path, tmp_path: Path) -> None:
    made = repackaged(updated, tmp_path / "made", signatures=("serving_default",))
    (graph,) = read_source(made, ("serve",), ()).graphs.values()
    assert ops(graph)["VarHandleOp"] == ops(graph)["ReadVariableOp"] == 0


def test_what_the_initializer_writes_is_read_anew(tmp_path: Path) -> None:
    """It comes after the restore: the checkpoint's value is not the one that counts."""

    def build() -> Any:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        scale = tf.compat.v1.get_variable("scale", [], tf.float32, tf.ones_initializer())
        tf.compat.v1.add_to_collection("at_start", scale.assign(5.0).op)
        return {"x": x}, {"y": x * scale}

    model = export_v1(tmp_path / "model", build, at_start="at_start")
    made = repackaged(model, tmp_path / "made")
    for path in (model, made):
        (answer,) = in_turn(path, ("serving_default", {"x": np.ones(2, np.float32)}))
        np.testing.assert_array_equal(answer["y"], [5.0, 5.0])


# ---- of the same one -----------------------------------------------------------------------------------


def test_the_order_of_reads_and_writes_of_a_table(tmp_path: Path) -> None:
    """The answer is what was there before, whenever that is replaced."""
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.5)

    def function(ids: Any) -> Any:
        before = table.lookup(ids)
        table.insert(ids, tf.cast(ids, tf.float32))
        return before, table.lookup(ids)

    graph = flat(tmp_path, function, IDS, table=table)
    made, _ = after(graph, *GROUND, COMMON)
    assert ops(made)["LookupTableFindV2"] == 2
    (insert,) = [node for node in made.nodes.values() if node.op == "LookupTableInsertV2"]
    assert any(made.nodes[name].op == "LookupTableFindV2" for name in made.ancestors([insert.name]))
    for _ in range(20):
        before, now = sorted(run(made, {"ids": ROWS["ids"] + 1}).values(), key=lambda value: value.sum())
        np.testing.assert_array_equal(before, np.full(4, 0.5, np.float32))
        np.testing.assert_array_equal(now, ROWS["ids"] + 1)


def test_a_read_that_a_write_waits_for_is_not_copied_for_users(tmp_path: Path) -> None:
    rows = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))

    def function(ids: Any, item: Any) -> Any:
        found = tf.gather(rows, ids)
        rows.assign_add(tf.ones([5, 3]))
        return tf.concat([found, item], 1)

    graph = flat(tmp_path, function, IDS, ITEM, rows=rows)
    made, changes = after(graph, *GROUND, USER, user_inputs=("ids",))
    assert changes == 0
    assert_read_before(made, "ResourceGather", "AssignAddVariableOp")


def test_a_lookup_that_an_insert_waits_for_is_not_copied_for_users(tmp_path: Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.5)

    def function(ids: Any, item: Any) -> Any:
        found = table.lookup(ids)
        table.insert(ids, item[:, 0])
        return tf.concat([found[:, None], item], 1)

    graph = flat(tmp_path, function, IDS, ITEM, table=table)
    made, changes = after(graph, *GROUND, USER, user_inputs=("ids",))
    assert changes == 0
    assert_read_before(made, "LookupTableFindV2", "LookupTableInsertV2")


def test_a_column_of_a_table_that_is_written_stays(tmp_path: Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)

    def function(ids: Any) -> Any:
        column = tf.expand_dims(ids, 1)
        indices = tf.where(tf.not_equal(column, -1))
        found = table.lookup(tf.gather_nd(column, indices))
        table.insert(ids, ids)
        sparse = tf.SparseTensor(indices, found, tf.shape(column, tf.int64))
        return tf.nn.safe_embedding_lookup_sparse(tf.eye(5), sparse)

    graph = flat(tmp_path, function, IDS, table=table)
    made, changes = after(graph, *GROUND, COLUMNS)
    assert changes == 0
    assert_read_before(made, "LookupTableFindV2", "LookupTableInsertV2")


def test_a_table_of_two_names_is_one(tmp_path: Path) -> None:
    def build() -> Any:
        ids = tf.compat.v1.placeholder(tf.int64, [None], "ids")
        read, write = (
            tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64, shared_name="seen")
            for _ in range(2)
        )
        found = tf.raw_ops.LookupTableFindV2(
            table_handle=read, keys=ids, default_value=tf.constant(7, tf.int64)
        )
        with tf.control_dependencies([found]):
            inserted = tf.raw_ops.LookupTableInsertV2(table_handle=write, keys=ids, values=ids)
        with tf.control_dependencies([inserted]):
            return {"ids": ids}, {"y": tf.identity(found)}

    model = export_v1(tmp_path / "model", build)
    made = repackaged(model, tmp_path / "made")
    (graph,) = read_source(made, ("serve",), ()).graphs.values()
    assert_read_before(graph, "LookupTableFindV2", "LookupTableInsertV2")
    asked = ("serving_default", {"ids": np.array([1, 4])})
    for path in (model, made):
        assert [answer["y"].tolist() for answer in in_turn(path, asked, asked)] == [[7, 7], [1, 4]]


def test_a_table_that_nobody_writes_is_looked_up_once_for_each_user(tmp_path: Path) -> None:
    keys = tf.constant([1, 2, 3], tf.int64)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, keys * 2), 0)

    def function(ids: Any, item: Any) -> Any:
        return tf.concat([tf.cast(table.lookup(ids), tf.float32)[:, None], item], 1)

    graph = flat(tmp_path, function, IDS, ITEM, table=table)
    assert graph.written() == frozenset()
    _, changes = after(graph, *GROUND, USER, user_inputs=("ids",))
    assert changes == 1


# ---- hanging on an identity, as TensorFlow 1 has it ------------------------------------------------------


def counted(on: Callable[[Any], Any]) -> Callable[[], Any]:
    """Two lookups side by side, one behind `on` of the ids; and how often that ran."""

    def build() -> Any:
        ids = tf.compat.v1.placeholder(tf.int64, [None], "ids")
        tables = [tf.constant(RNG.standard_normal((9, 3)).astype(np.float32)) for _ in range(2)]
        with tf.control_dependencies([on(ids)]):
            first = tf.identity(tf.gather(tables[0], ids))
        return {"ids": ids}, {"y": tf.concat([first, tf.gather(tables[1], ids)], 1)}

    return build


def test_a_check_on_an_identity_still_checks(tmp_path: Path) -> None:
    def check(ids: Any) -> Any:
        return tf.compat.v1.assert_less(ids, tf.constant(5, tf.int64))

    model = export_v1(tmp_path / "model", counted(check))
    made = repackaged(model, tmp_path / "made")
    assert ops(read_source(made, ("serve",), ()).graphs["serving_default"])["GatherV2"] == 1
    for path in (model, made):
        for load in (in_session, loaded):
            load(path, {"ids": np.array([1, 4])})
            with pytest.raises(tf.errors.InvalidArgumentError):
                load(path, {"ids": np.array([1, 5])})


def test_a_counter_on_an_identity_still_counts(tmp_path: Path) -> None:
    def count(_: Any) -> Any:
        runs = tf.compat.v1.get_variable("runs", [], tf.float32, tf.zeros_initializer())
        return runs.assign_add(1.0, read_value=False)

    model = export_v1(tmp_path / "model", counted(count))
    made = repackaged(model, tmp_path / "made")
    for path in (model, made):
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
            info = meta_graph.signature_def["serving_default"]
            handle = graph.get_tensor_by_name("runs:0")
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
            for _ in range(3):
                session.run(info.outputs["y"].name, {info.inputs["ids"].name: [1, 2]})
            assert session.run(value) == 3.0


def test_writes_behind_each_others_identities_keep_their_order(tmp_path: Path) -> None:
    """The second write waits for the first only through an identity between lookups that are merged."""

    def build() -> Any:
        ids = tf.compat.v1.placeholder(tf.int64, [None], "ids")
        total = tf.compat.v1.get_variable("total", [], tf.float32, tf.zeros_initializer())
        tables = [tf.constant(RNG.standard_normal((9, 3)).astype(np.float32)) for _ in range(2)]
        emptied = total.assign(0.0, read_value=False)
        first = tf.gather(tables[0], ids)
        with tf.control_dependencies([emptied]):
            first = tf.identity(first)
        found = tf.concat([first, tf.gather(tables[1], ids)], 1)
        added = total.assign_add(tf.reduce_sum(tf.ones_like(found)), read_value=False)
        with tf.control_dependencies([added]):
            return {"ids": ids}, {"y": found, "total": total.read_value()}

    model = export_v1(tmp_path / "model", build)
    made = repackaged(model, tmp_path / "made")
    (graph,) = read_source(made, ("serve",), ()).graphs.values()
    (assign,) = [node.name for node in graph.nodes.values() if node.op == "AssignVariableOp"]
    (add,) = [node.name for node in graph.nodes.values() if node.op == "AssignAddVariableOp"]
    assert ops(graph)["GatherV2"] == 1 and assign in graph.ancestors([add])
    for path in (model, made):
        asked = ("serving_default", {"ids": np.array([1, 4])})
        assert [float(answer["total"]) for answer in in_turn(path, asked, asked, asked)] == [12.0] * 3
