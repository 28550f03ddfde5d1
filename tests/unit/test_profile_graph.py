"""What is found in a graph without running it: names, host-only ops, clusters and what breaks them."""

from __future__ import annotations

import pytest

from fastserve.protos import message
from fastserve.workshop.profiling.clusters import read_clusters
from fastserve.workshop.profiling.graph import Node, read_nodes, with_traced
from fastserve.workshop.profiling.host_ops import COLUMNS, LOOKUPS, ONE_HOT, PARSING, STRINGS, find_host_ops
from fastserve.workshop.profiling.names import function_name, op_type, readable
from fastserve.workshop.profiling.steps import OpRun


@pytest.mark.parametrize(
    ("node", "functions", "name"),
    [
        ("StatefulPartitionedCall/StatefulPartitionedCall/wide/dense_1/MatMul", [], "wide/dense_1/MatMul"),
        (
            "StatefulPartitionedCall_2/PartitionedCall/MatMul_1",
            ["__inference_score_42"],
            "MatMul_1 in score()",
        ),
        ("PartitionedCall/MatMul", ["__inference_signature_wrapper_7"], "MatMul"),
        ("PartitionedCall/a", ["__inference_outer_7", "__inference_tower_net_12_3"], "a in tower_net()"),
        ("PartitionedCall/tower/a", ["__inference_outer_7"], "tower/a"),
        ("serving_default_x", [], "serving_default_x"),
    ],
)
def test_names_are_the_authors(node: str, functions: list[str], name: str) -> None:
    assert readable(node, functions) == name


def test_ops_have_the_names_that_they_have_in_a_model() -> None:
    wanted = {
        "_MklMatMul": "MatMul",
        "_MklNativeConv2D": "Conv2D",
        "_MklFusedMatMul": "_FusedMatMul",
        "_MklNativeFusedBatchMatMulV2": "_FusedBatchMatMulV2",
        "_FusedMatMul": "_FusedMatMul",
        "MatMul": "MatMul",
    }
    assert {op: op_type(op) for op in wanted} == wanted


def test_names_of_functions() -> None:
    assert function_name("__inference_my_fn_12_345") == "my_fn"
    assert function_name("__inference__wrapped_model_12") == ""


def node(name: str, op: str, *inputs: str) -> Node:
    return Node(name, op, inputs, name)


@pytest.mark.parametrize(
    ("op", "name", "kind", "says"),
    [
        ("StringToHashBucketFast", "x", STRINGS, "Hash(column, buckets)"),
        ("RegexReplace", "x", STRINGS, "send numbers"),
        ("LookupTableFindV2", "x", LOOKUPS, "Vocabulary"),
        ("ParseExampleV2", "x", PARSING, "Packer"),
        ("OneHot", "x", ONE_HOT, "tf.gather"),
        ("Bucketize", "x", COLUMNS, "Bucketize(column, boundaries)"),
        ("SparseReshape", "dense_features/city_embedding/SparseReshape", COLUMNS, "Packer"),
    ],
)
def test_host_only_ops_and_what_replaces_them(op: str, name: str, kind: str, says: str) -> None:
    (found,) = find_host_ops([node(name, op, "input")])
    assert (found.node, found.op, found.kind) == (name, op, kind)
    assert says in found.replacement


@pytest.mark.parametrize("op", ["MatMul", "HashTableV2", "StridedSlice", "SparseReshape", "GatherV2", "Relu"])
def test_what_is_the_models_own_work(op: str) -> None:
    assert find_host_ops([node("x", op, "input")]) == []


def test_a_one_hot_vector_is_followed_to_its_product() -> None:
    nodes = [
        node("hot", "OneHot", "ids"),
        node("flat", "Reshape", "hot", "shape"),
        node("all", "ConcatV2", "other", "flat", "axis"),
        node("dense/MatMul", "MatMul", "all", "weights"),
    ]
    (found,) = find_host_ops(nodes)
    assert found.feeds == "dense/MatMul"
    assert "instead of the product" in found.replacement
    (alone,) = find_host_ops([*nodes[:2], node("r", "Relu", "flat"), node("m", "MatMul", "r", "w")])
    assert alone.feeds == ""


# ---- graphs of a run -----------------------------------------------------------------------------


def graph(*nodes: tuple[str, ...]) -> list[Node]:
    """As TensorFlow tells of them: name, op, inputs."""
    told = message("tensorflow.RunMetadata")()
    made = told.partition_graphs.add()
    for name, op, *inputs in nodes:
        made.node.add(name=name, op=op, input=inputs)
    return read_nodes(told.SerializeToString())


PLAIN = graph(
    ("x", "_Arg"),
    ("early", "StringToNumber", "x"),
    ("PartitionedCall/net/MatMul", "MatMul", "early", "weights:1"),
    ("PartitionedCall/net/Relu", "Relu", "PartitionedCall/net/MatMul"),
    ("PartitionedCall/net/AsString", "AsString", "PartitionedCall/net/Relu"),
    ("PartitionedCall/net/ToNumber", "StringToNumber", "PartitionedCall/net/AsString:0", "^x"),
    ("Identity", "Identity", "PartitionedCall/net/ToNumber"),
    ("PartitionedCall/net/MatMul_1", "MatMul", "Identity", "weights"),
    ("late", "AsString", "PartitionedCall/net/MatMul_1"),
    ("aside", "RegexReplace", "x"),
)
CLUSTERED = graph(
    ("x", "_Arg"),
    ("early", "StringToNumber", "x"),
    ("cluster_84_0_1/xla_compile", "_XlaCompile", "early"),
    ("cluster_84_0_1/xla_run", "_XlaRun", "early", "cluster_84_0_1/xla_compile"),
    ("cluster_84_0_1/stateful_partitioned_call", "StatefulPartitionedCall", "early"),
    ("PartitionedCall/net/AsString", "AsString", "cluster_84_0_1/merge_oidx_0"),
    ("PartitionedCall/net/ToNumber", "StringToNumber", "PartitionedCall/net/AsString"),
    ("Identity", "Identity", "PartitionedCall/net/ToNumber"),
    ("cluster_84_1_1/xla_run", "_XlaRun", "Identity"),
    ("late", "AsString", "cluster_84_1_1/xla_run"),
    ("aside", "RegexReplace", "x"),
)


def test_inputs_of_nodes_are_data() -> None:
    by_label = {node.label: node for node in PLAIN}
    assert by_label["net/MatMul"].inputs == ("early", "weights")
    assert by_label["net/ToNumber"].inputs == ("PartitionedCall/net/AsString",)


def test_what_is_gone_from_the_graph_is_in_clusters() -> None:
    found = read_clusters(PLAIN, CLUSTERED)
    assert found.clusters == 2
    assert [node.label for node in found.inside] == ["net/MatMul", "net/Relu", "net/MatMul_1"]
    assert [node.label for node in found.outside] == [
        "early",
        "net/AsString",
        "net/ToNumber",
        "late",
        "aside",
    ]


def test_breakers_have_compiled_nodes_before_and_after() -> None:
    found = read_clusters(PLAIN, CLUSTERED)
    assert [(breaker.label, breaker.before, breaker.after) for breaker in found.breakers] == [
        ("net/AsString", 2, 1),
        ("net/ToNumber", 2, 1),
    ]
    assert all("strings" in breaker.why for breaker in found.breakers)


def test_without_clusters_all_is_outside() -> None:
    found = read_clusters(PLAIN, PLAIN)
    assert (found.clusters, found.inside, found.breakers) == (0, (), ())
    assert len(found.outside) == 8


def test_nodes_inside_functions_are_known_from_the_trace() -> None:
    ops = [
        OpRun("late", "AsString", "late = AsString(x)", "cpu", 0, 0, 1, 1, 0, 0),
        OpRun("inner/hash", "StringToHashBucketFast", "inner/hash = StringToHashBucketFast(arg_0:1, ^go)",
              "cpu", 0, 0, 1, 1, 0, 0),
    ]  # fmt: skip
    nodes = with_traced(PLAIN, ops)
    assert nodes[:-1] == PLAIN
    assert nodes[-1] == Node("inner/hash", "StringToHashBucketFast", ("arg_0",), "inner/hash")
    assert [op.node for op in find_host_ops(nodes) if op.kind == STRINGS][-1] == "inner/hash"
