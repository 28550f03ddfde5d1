"""Concatenations within concatenations, taken apart: what lies side by side is found side by side."""

from __future__ import annotations

from typing import Any

from fastserve.workshop.optimizing.graph import Graph
from fastserve.workshop.passes.tables import concat


def flatten_concats(graph: Graph) -> int:
    """Where a concatenation is taken by another along the same axis and by nobody else."""
    changes = 0
    for node in [node for node in graph.nodes.values() if node.op == "ConcatV2"]:
        if not graph.is_taken(node):
            continue
        parts = _parts(graph, node)
        axis = _axis(graph, node)
        if axis is not None and len(parts) > node.attr["N"].i:
            graph.replace(node.name, concat(graph, parts, axis, f"{node.name}/flat"))
            changes += 1
    return changes


def _axis(graph: Graph, node: Any) -> int | None:
    axis, rank = graph.scalar(node.input[-1]), graph.rank(node.name)
    if axis is None or not rank or any(tensor.startswith("^") for tensor in node.input):
        return None
    return int(axis) % rank


def _parts(graph: Graph, node: Any) -> list[str]:
    axis = _axis(graph, node)
    found = []
    for tensor in node.input[: node.attr["N"].i]:
        inner = graph.made_by(tensor, "ConcatV2")
        alone = inner is not None and len(graph.takers(inner.name)) == 1 and not graph.is_output(inner.name)
        if inner is not None and alone and axis is not None and _axis(graph, inner) == axis:
            found += _parts(graph, inner)
        else:
            found.append(tensor)
    return found
