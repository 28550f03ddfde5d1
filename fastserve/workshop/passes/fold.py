"""fold: what depends on constants alone is computed now, and so are sizes that are known.

Reshapes to a tensor's own shape go, and concatenations within concatenations are taken apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, spelled
from fastserve.workshop.optimizing.op_defs import has_effects, outputs
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.concats import flatten_concats
from fastserve.workshop.passes.sizes import drop_reshapes, known_sizes

_NOT = ("Const", "NoOp", "Placeholder", "PlaceholderWithDefault", "ReadVariableOp", "VarHandleOp")
# What may come of it, beside the limit for constants: small tensors are folded whatever they are made of.
_SMALL_BYTES = 1 << 16


def fold(graph: Graph, options: Options) -> int:
    changes = known_sizes(graph) + drop_reshapes(graph) + flatten_concats(graph)
    graph.prune()
    wanted = _wanted(graph, max(options.freeze_bytes, _SMALL_BYTES))
    for tensor, value in zip(wanted, _evaluate(graph, wanted), strict=True):
        graph.replace(
            tensor, graph.constant(value, f"{tensor.replace(':', '_')}/folded", graph.dtype(tensor))
        )
        changes += 1
    graph.prune()
    return changes


def _wanted(graph: Graph, most_bytes: int) -> list[str]:
    """Tensors that are constant, and that something takes which is not."""
    constant = {node.name for node in graph.nodes.values() if node.op == "Const"}
    folded = set()
    for node in graph.in_order():
        if node.op in _NOT or not node.input or node.name in constant:
            continue
        if any(tensor.startswith("^") for tensor in node.input) or has_effects(node, graph.library):
            continue
        if any(value.WhichOneof("value") == "func" or value.list.func for value in node.attr.values()):
            continue
        inputs = {graph.producer(tensor).name for tensor in node.input}
        if inputs <= constant and _fits(graph, node, most_bytes):
            constant.add(node.name)
            folded.add(node.name)
    taken = [
        spelled(name, place)
        for name in folded
        for place in range(len(outputs(graph.nodes[name], graph.library)))
    ]
    ends = set(graph.outputs.values())
    return sorted(
        tensor
        for tensor in taken
        if tensor in ends or any(name not in constant for name, _ in graph.consumers(tensor))
    )


def _fits(graph: Graph, node: Any, most_bytes: int) -> bool:
    from tensorflow.python.framework import dtypes

    for place, output in enumerate(outputs(node, graph.library)):
        shape = graph.shape(spelled(node.name, place))
        dtype = dtypes.as_dtype(output.dtype)
        if output.dtype in (20, 21) or dtype._is_ref_dtype:
            return False
        size = 16 if dtype.size is None else dtype.size
        if shape is None or None in shape:
            # Constants in, so only its value decides; that of a small one is small.
            if sum(_bytes(graph, tensor) for tensor in node.input) > _SMALL_BYTES or node.op in (
                "Fill",
                "Range",
            ):
                return False
        elif math.prod(int(dim or 0) for dim in shape) * size > most_bytes:
            return False
    return True


def _bytes(graph: Graph, tensor: str) -> int:
    value = graph.value(tensor)
    return 0 if value is None else value.nbytes


def _evaluate(graph: Graph, tensors: list[str]) -> list[Any]:
    if not tensors:
        return []
    import tensorflow as tf
    from tensorflow.core.framework import graph_pb2

    part = graph_pb2.GraphDef()
    part.node.extend(graph.nodes[name] for name in sorted(graph.ancestors(tensors)))
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default() as alone, tf.compat.v1.Session(graph=alone, config=config) as session:
        tf.graph_util.import_graph_def(part, name="")
        fetched = session.run([t if ":" in t else f"{t}:0" for t in tensors])
    return [np.asarray(value) for value in fetched]


PASS = Pass("fold", "computes now what depends on constants alone", fold, lays_ground=True)
