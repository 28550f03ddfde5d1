"""common: what is computed twice from the same inputs is computed once."""

from __future__ import annotations

import hashlib
from typing import Any

from fastserve.workshop.optimizing.graph import Graph, canonical, spelled
from fastserve.workshop.optimizing.op_defs import outputs
from fastserve.workshop.passes.base import Options, Pass

_ALONE = ("NoOp", "Placeholder", "VarHandleOp")


def common(graph: Graph, _: Options) -> int:
    effectful = graph.effectful()
    seen: dict[bytes, str] = {}
    changes = 0
    for node in list(graph.in_order()):
        if node.name in effectful or node.op in _ALONE or _is_resource(graph, node):
            continue
        same = seen.setdefault(_key(node), node.name)
        if same != node.name:
            for place in range(len(outputs(node, graph.library))):
                graph.replace(spelled(node.name, place), spelled(same, place))
            changes += 1
    graph.prune()
    return changes


def _is_resource(graph: Graph, node: Any) -> bool:
    return any(output.dtype in (20, 21) for output in outputs(node, graph.library))


def _key(node: Any) -> bytes:
    digest = hashlib.sha256(node.op.encode())
    for tensor in node.input:
        digest.update(b"\0" + canonical(tensor).encode())
    digest.update(b"\0" + node.device.encode())
    for key in sorted(node.attr):
        digest.update(b"\0" + key.encode() + b"=" + node.attr[key].SerializeToString(deterministic=True))
    return digest.digest()


PASS = Pass("common", "computes once what is computed twice", common, lays_ground=True)
