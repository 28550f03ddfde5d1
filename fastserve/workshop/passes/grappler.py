"""grappler: TensorFlow's own rewrites, done once and for all.

Sessions do them again when a version is loaded, so this gains load time more than anything. Those that suit
one processor (layouts, fused kernels) are left to the session, so that the version runs anywhere.
"""

from __future__ import annotations

from typing import Any

from fastserve.workshop.optimizing.graph import Graph
from fastserve.workshop.passes.base import Options, Pass

_REWRITES = (
    "pruning",
    "shape",
    "constfold",
    "arithmetic",
    "loop",
    "dependency",
    "common_subgraph_elimination",
)


def grappler(graph: Graph, _: Options) -> int:
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph.graph_def())
    signature = meta_graph.signature_def["signature"]
    for alias, tensor in graph.inputs.items():
        _describe(signature.inputs[alias], graph, tensor)
    for alias, tensor in graph.outputs.items():
        _describe(signature.outputs[alias], graph, tensor)
    kept = meta_graph.collection_def["train_op"].node_list.value
    kept.extend([*graph.outputs.values(), *graph.effects])
    config = config_pb2.ConfigProto(device_count={"GPU": 0})
    rewrites = config.graph_options.rewrite_options
    rewrites.optimizers.extend(_REWRITES)
    rewrites.min_graph_nodes = -1
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.TWO
    optimized = tf_optimizer.OptimizeGraph(config, meta_graph, verbose=False)
    before = {node.name: node.SerializeToString(deterministic=True) for node in graph.nodes.values()}
    after = {node.name: node for node in optimized.node}
    if any(node.op.startswith("_") for node in optimized.node):
        return 0  # ops that only a session may use
    needed = {tensor.partition(":")[0] for tensor in (*graph.outputs.values(), *graph.effects)}
    if not needed <= after.keys():
        return 0
    changes: int = sum(
        node.SerializeToString(deterministic=True) != before.get(n) for n, node in after.items()
    )
    changes += len(before.keys() - after.keys())
    for name in graph.inputs.values():
        after.setdefault(name, graph.nodes[name])
    graph.replace_nodes(after.values())
    return changes


def _describe(info: Any, graph: Graph, tensor: str) -> None:
    info.name = tensor if ":" in tensor else f"{tensor}:0"
    info.dtype = graph.dtype(tensor)
    shape = graph.shape(tensor)
    if shape is None:
        info.tensor_shape.unknown_rank = True
        return
    info.tensor_shape.SetInParent()
    for size in shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)


PASS = Pass("grappler", "TensorFlow's own rewrites, done beforehand", grappler)
