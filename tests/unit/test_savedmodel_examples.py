"""What a graph looks for in the tf.Examples that are fed to it, found without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit.saved_model_files import add_function, add_node, add_signature, meta_graph, tensor_info, write

from fastserve.protos import message
from fastserve.savedmodel import Feature, read

FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9
EXPECTED = (
    Feature("ids", INT64, None),
    Feature("tags", STRING, None),
    Feature("wide", INT64, 6),
    Feature("x", FLOAT, 1),
)


def constant(graph: Any, name: str, *keys: str) -> None:
    tensor = message("tensorflow.TensorProto")(dtype=STRING, string_val=[key.encode() for key in keys])
    add_node(graph, name, "Const").attr["value"].tensor = tensor.SerializeToString()


def parse(graph: Any, op: str, examples: str, output: str = "") -> None:
    """A node that parses `examples`, and its keys. `output`: what a node's output is called in there."""
    if op == "ParseExample":
        keys = [("sparse_0", "ids"), ("sparse_1", "tags"), ("dense_0", "x"), ("dense_1", "wide")]
        for name, key in keys:
            constant(graph, name, key)
        node = add_node(
            graph, "parse", op, examples, "names", *(f"{name}{output}" for name, _ in keys), "x_default"
        )
        node.attr["Nsparse"].i = node.attr["Ndense"].i = 2
        node.attr["sparse_types"].list.type.extend([INT64, STRING])
    else:
        for name, key in (("sparse", ["ids"]), ("dense", ["x", "wide"]), ("ragged", ["tags"])):
            constant(graph, name, *key)
        keys_of = [f"{name}{output}" for name in ("sparse", "dense", "ragged")]
        node = add_node(graph, "parse", op, examples, "names", *keys_of, "x_default")
        node.attr["sparse_types"].list.type.append(INT64)
        node.attr["ragged_value_types"].list.type.append(STRING)
    node.attr["Tdense"].list.type.extend([FLOAT, INT64])
    shapes = node.attr["dense_shapes"].list.shape
    shapes.add()
    wide = shapes.add()
    for size in (2, 3, -1):
        wide.dim.add(size=size)


def features(tmp_path: Path, meta: Any, dtype: int = STRING) -> tuple[Feature, ...]:
    add_signature(meta, "s", {"inputs": tensor_info("examples:0", dtype)}, {"y": tensor_info("y:0")})
    return read(write(tmp_path, meta)).signatures[0].inputs[0].features


@pytest.mark.parametrize("op", ["ParseExample", "ParseExampleV2"])
def test_an_op_in_the_graph_itself(op: str, tmp_path: Path) -> None:
    meta = meta_graph()
    add_node(meta.graph_def, "examples", "Placeholder")
    add_node(meta.graph_def, "same", "Identity", "examples", "^other")
    parse(meta.graph_def, op, "same")
    assert features(tmp_path, meta) == EXPECTED


@pytest.mark.parametrize("op", ["ParseExample", "ParseExampleV2"])
def test_an_op_in_a_function_that_a_function_calls(op: str, tmp_path: Path) -> None:
    meta = meta_graph()
    graph = meta.graph_def
    add_node(graph, "examples", "Placeholder")
    add_node(graph, "w", "VarHandleOp")
    add_node(graph, "call", "StatefulPartitionedCall", "w", "examples", function="outer")
    outer = add_function(graph, "outer")
    outer.signature.input_arg.add(name="variable")
    outer.signature.input_arg.add(name="rows")
    add_node(outer, "inside", "PartitionedCall", "rows", function="inner")
    inner = add_function(graph, "inner")
    inner.signature.input_arg.add(name="serialized")
    add_node(inner, "same", "Identity", "serialized")
    parse(inner, op, "same:output:0", ":output:0")
    assert features(tmp_path, meta) == EXPECTED


def test_keys_that_a_function_is_given(tmp_path: Path) -> None:
    meta = meta_graph()
    graph = meta.graph_def
    add_node(graph, "examples", "Placeholder")
    constant(graph, "keys", "x")
    add_node(graph, "call", "PartitionedCall", "examples", "keys", function="f")
    function = add_function(graph, "f")
    function.signature.input_arg.add(name="serialized")
    function.signature.input_arg.add(name="dense")
    constant(function, "none")
    node = add_node(
        function, "parse", "ParseExampleV2", "serialized", "n", "none:output:0", "dense", "none:output:0"
    )
    node.attr["Tdense"].list.type.append(FLOAT)
    node.attr["dense_shapes"].list.shape.add()
    assert features(tmp_path, meta) == (Feature("x", FLOAT, 1),)


def test_what_parses_no_examples_has_no_features(tmp_path: Path) -> None:
    meta = meta_graph()
    add_node(meta.graph_def, "examples", "Placeholder")
    add_node(meta.graph_def, "other", "Placeholder")
    add_node(meta.graph_def, "upper", "StringUpper", "examples")
    parse(meta.graph_def, "ParseExample", "other")
    assert features(tmp_path, meta) == ()


def test_keys_that_are_computed_are_not_known(tmp_path: Path) -> None:
    meta = meta_graph()
    add_node(meta.graph_def, "examples", "Placeholder")
    add_node(meta.graph_def, "computed", "StringUpper", "examples")
    node = add_node(
        meta.graph_def, "parse", "ParseExampleV2", "examples", "n", "computed", "computed", "computed"
    )
    node.attr["Tdense"].list.type.append(FLOAT)
    node.attr["dense_shapes"].list.shape.add()
    assert features(tmp_path, meta) == ()


def test_functions_that_call_themselves_come_to_an_end(tmp_path: Path) -> None:
    meta = meta_graph()
    add_node(meta.graph_def, "examples", "Placeholder")
    add_node(meta.graph_def, "call", "PartitionedCall", "examples", function="f")
    function = add_function(meta.graph_def, "f", "f")
    function.signature.input_arg.add(name="a")
    function.node_def[0].input.append("a")
    assert features(tmp_path, meta) == ()


def test_inputs_of_other_types_are_not_looked_at(tmp_path: Path) -> None:
    meta = meta_graph()
    add_node(meta.graph_def, "examples", "Placeholder")
    parse(meta.graph_def, "ParseExample", "examples")
    assert features(tmp_path, meta, FLOAT) == ()
