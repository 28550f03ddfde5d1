"""freeze: small variables that nothing changes become constants. Large ones stay in the checkpoint."""

from __future__ import annotations

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, dtype_of
from fastserve.workshop.passes.base import Options, Pass

_INT32 = dtype_of(3)


def freeze(graph: Graph, options: Options) -> int:
    written = graph.written()
    changes = 0
    for handle in [node for node in graph.nodes.values() if node.op == "VarHandleOp"]:
        if handle.name in written:
            continue
        variable = graph.variables[handle.name]
        small = variable.nbytes <= options.freeze_bytes
        constant = ""
        for name, _ in graph.consumers(handle.name):
            node = graph.nodes[name]
            if any(tensor.startswith("^") for tensor in node.input):
                continue  # it comes after something with effects
            if node.op == "VariableShape":
                out = int(node.attr["out_type"].type) or int(_INT32)
                graph.replace(
                    name, graph.constant(np.array(variable.shape, np.int64), f"{name}/frozen", dtype_of(out))
                )
                changes += 1
            elif small and node.op in ("ReadVariableOp", "ResourceGather"):
                if not constant:
                    value = graph.variables.value(handle.name)
                    constant = graph.constant(value, f"{handle.name}/frozen", variable.dtype)
                if node.op == "ReadVariableOp":
                    graph.replace(name, constant)
                elif node.attr["batch_dims"].i == 0:
                    axis = graph.constant(np.int32(0), f"{name}/axis")
                    graph.replace(
                        name,
                        graph.add(
                            "GatherV2",
                            [constant, node.input[1], axis],
                            f"{name}/frozen",
                            Tparams=dtype_of(variable.dtype),
                            Tindices=dtype_of(graph.dtype(node.input[1])),
                            Taxis=_INT32,
                            batch_dims=0,
                        ),
                    )
                else:
                    continue
                changes += 1
    graph.prune()
    return changes


PASS = Pass("freeze", "makes constants of small variables", freeze, lays_ground=True)
