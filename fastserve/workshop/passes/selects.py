"""selects: a choice between a tensor of integers and one number becomes arithmetic.

TensorFlow chooses quickly where condition and both sides have one shape, and number by number, by way of
their coordinates, where a side has to be repeated: `where(known, ids, 0)` takes longer than the lookup behind
it. With c the number, c + (x - c) * condition is the same for integers of any size, for they wrap around, and
is repeated by the same rules. Not so for floats: 0 times infinity is not 0.
"""

from __future__ import annotations

from typing import Any

from fastserve.workshop.optimizing.graph import Graph, dtype_of
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.tables import binary

_BOOL, _INTEGERS = 10, (3, 9)


def selects(graph: Graph, _: Options) -> int:
    found = [node for node in graph.nodes.values() if node.op == "SelectV2"]
    changes = sum(_rewrite(graph, node) for node in found)
    if changes:
        graph.prune()
    return changes


def _rewrite(graph: Graph, node: Any) -> int:
    dtype = graph.dtype(node.name)
    if dtype not in _INTEGERS or not graph.is_taken(node) or any(t.startswith("^") for t in node.input):
        return 0
    condition, then, otherwise = node.input
    # With one condition for all, and with one shape, TensorFlow copies.
    if not graph.rank(condition):
        return 0
    like = f"{node.name}/arithmetic"
    if _is_number(graph, otherwise):
        tensor, instead = then, otherwise
    elif _is_number(graph, then):
        tensor, instead = otherwise, then
        condition = graph.add("LogicalNot", [condition], f"{like}/not")
    else:
        return 0
    flags = graph.add(
        "Cast", [condition], f"{like}/flags", SrcT=dtype_of(_BOOL), DstT=dtype_of(dtype), Truncate=False
    )
    if graph.scalar(instead) == 0:
        made = binary(graph, "Mul", tensor, flags, like)
    else:
        above = binary(graph, "Sub", tensor, instead, f"{like}/above")
        made = binary(graph, "AddV2", binary(graph, "Mul", above, flags, f"{like}/kept"), instead, like)
    graph.replace(node.name, made)
    return 1


def _is_number(graph: Graph, tensor: str) -> bool:
    value = graph.value(tensor)
    return value is not None and value.ndim == 0


PASS = Pass("selects", "choices between integers and one number become arithmetic", selects)
