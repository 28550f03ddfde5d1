"""prune: what no output of the signature needs goes, and so do orders between nodes that nobody can notice.

Inlined calls leave identities behind, and control inputs that say which read of a variable comes before
which. Where nothing writes, prints or checks, an order is of no use, and it hides patterns from later passes.
"""

from __future__ import annotations

from fastserve.workshop.optimizing.graph import Graph, split
from fastserve.workshop.passes.base import Options, Pass


def prune(graph: Graph, _: Options) -> int:
    effectful = graph.effectful()
    changes = 0
    for node in graph.nodes.values():
        kept = [t for t in node.input if not t.startswith("^") or split(t[1:])[0] in effectful]
        if len(kept) != len(node.input):
            changes += len(node.input) - len(kept)
            del node.input[:]
            node.input.extend(kept)
    graph.changed()
    graph.effects = [name for name in graph.effects if name in effectful]
    for node in list(graph.nodes.values()):
        if node.op == "Identity" and len(node.input) == 1 and graph.source(node.name) != node.name:
            graph.replace(node.name, graph.source(node.name))
    return changes + graph.prune()


PASS = Pass("prune", "removes what the signatures do not need", prune, lays_ground=True)
