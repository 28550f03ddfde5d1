"""Ops of a graph that call back into the Python process that made it. Pure: reads GraphDefs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def python_ops(graph: Any) -> Iterator[tuple[str, str]]:
    """Op and node of each, in the graph and in the functions that it reaches, by call or as an attribute
    (what a branch, a loop or a tf.data pipeline runs)."""
    library = {function.signature.name: function for function in graph.library.function}
    waiting, seen = [graph.node], set()
    while waiting:
        for node in waiting.pop():
            if node.op in PYTHON_OPS:
                yield node.op, node.name
            for name in (node.op, *_functions(node)):
                if name in library and name not in seen:
                    seen.add(name)
                    waiting.append(library[name].node_def)


def _functions(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for function in value.list.func:
            yield function.name
