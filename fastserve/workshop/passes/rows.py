"""Which tensors have as many rows as others: where TensorFlow would refuse others, they have.

A sum by AddN, a stack and a concatenation of columns want as many rows of each input. What is computed
element by element from tensors that have as many rows as each other has as many, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastserve.workshop.optimizing.graph import Graph, spelled
from fastserve.workshop.passes.sizes import Size, shape

_ELEMENTWISE = frozenset(
    {
        "Add", "AddV2", "Equal", "FloorMod", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd",
        "LogicalOr", "Maximum", "Minimum", "Mul", "NotEqual", "RealDiv", "SelectV2", "Sub",
    }
)  # fmt: skip


class Rows:
    """Of a graph as it is when this is made."""

    def __init__(self, graph: Graph, crosses: Iterable[Any]) -> None:
        """`crosses`: SparseCross nodes, of which each gives one id for a row of its columns."""
        self._graph = graph
        # Of sizes that are equal, all lead to the same one.
        self._leads_to: dict[Size, Size] = {}
        known = {node.name for node in crosses}
        # What is run whichever outputs are asked for.
        always = set(graph.nodes)
        for output in graph.outputs.values():
            always &= graph.ancestors([output])
        nodes, before = list(graph.in_order()), -1
        while before != len(self._leads_to):
            before = len(self._leads_to)
            for node in nodes:
                if node.name in known or (node.name in always and self._wants_equal(node)):
                    self._join({self.of(tensor) for tensor in self._parts(node)})
                self._of_inputs(node, node.name in known)

    def of(self, tensor: str) -> Size | None:
        """A number or a name, the same for tensors that have as many; None for scalars, and where the rank is
        not known."""
        found = shape(self._graph, tensor)
        return self._last(found[0]) if found else None

    def _of_inputs(self, node: Any, is_cross: bool) -> None:
        """Joins what a node gives with what it takes."""
        graph = self._graph
        if not is_cross and node.op not in _ELEMENTWISE:
            return
        tensor = spelled(node.name, 1 if is_cross else 0)
        own, rank = self.of(tensor), graph.rank(tensor)
        inputs = {taken: graph.rank(taken) for taken in graph.arguments(node)}
        if own is None or None in inputs.values():
            return
        rows = {self.of(taken) for taken, its in inputs.items() if is_cross or its == rank}
        # One row is repeated for the others'.
        rows = rows - {1} or rows
        if len(rows) == 1:
            self._join({own, *rows})

    def _wants_equal(self, node: Any) -> bool:
        if node.op == "ConcatV2":
            axis, rank = self._graph.scalar(node.input[node.attr["N"].i]), self._graph.rank(node.name)
            return bool(rank) and axis is not None and axis % rank != 0
        return node.op in ("AddN", "Pack")

    def _parts(self, node: Any) -> list[str]:
        tensors = self._graph.arguments(node)
        return tensors[:-1] if node.op == "ConcatV2" else tensors

    def _last(self, size: Size) -> Size:
        while size in self._leads_to:
            size = self._leads_to[size]
        return size

    def _join(self, sizes: Iterable[Size | None]) -> None:
        known = {size for size in sizes if size is not None}
        numbers = {size for size in known if isinstance(size, int)}
        names = sorted(size for size in known if not isinstance(size, int))
        # Of two numbers, a run fails.
        last = numbers.pop() if len(numbers) == 1 else names[0] if names else None
        for name in names:
            if last is not None and name != last:
                self._leads_to[name] = last
