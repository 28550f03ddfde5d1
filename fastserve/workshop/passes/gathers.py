"""gathers: several lookups become one, in tables put together.

Where lookups meet, in a concatenation, a stack or a sum, their tables of one width are laid below each other
and their ids, each moved by where its table begins, go into one lookup. An id outside of its own table is an
error and stays one. Columns of a concatenation are reordered where only matrices take it: their rows are,
too.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.workshop.optimizing.graph import Graph, dtype_of, spelled
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.ranges import within
from fastserve.workshop.passes.sizes import Size, shape
from fastserve.workshop.passes.tables import (
    INT64,
    Lookup,
    Table,
    add_up,
    binary,
    concat,
    gather,
    inside,
    lookup_of,
    new_table,
    number,
    pack,
    reshape,
    select,
    table_of,
    total,
    value_of,
)

_AT_LEAST = 2
# Where lookups meet.
_MEET = ("Add", "AddN", "AddV2", "ConcatV2", "Pack")


@dataclass(slots=True)
class Part:
    """An input of a concatenation: `columns` wide, the lookup it is, if it may be merged, who takes it, and
    its first column."""

    tensor: str
    columns: int
    lookup: Lookup | None
    takers: frozenset[str]
    first: int

    @property
    def kind(self) -> tuple[Any, ...] | None:
        """What has to be equal for two to be merged."""
        return None if self.lookup is None else (self.columns, self.lookup.table.dtype, self.takers)


class Gathers:
    """One run of the pass."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options
        # The same tables for other ids, and the same rows for another sum: made once.
        self._tables: dict[tuple[Any, ...], Table] = {}
        self._ids: dict[tuple[Any, ...], str] = {}
        self._rows: dict[tuple[Any, ...], str] = {}

    def run(self) -> int:
        graph = self._graph
        changes = 0
        for node in [n for n in graph.nodes.values() if n.op in ("ConcatV2", "Pack")]:
            if graph.is_taken(node):
                changes += self._concat(node) if node.op == "ConcatV2" else self._stack(node)
        for node in [n for n in graph.nodes.values() if n.op in ("AddN", "AddV2", "Add")]:
            if graph.is_taken(node):
                changes += self._sum(node)
        if changes:
            graph.prune()
        return changes

    def _lookup(self, tensor: str) -> Lookup | None:
        """A lookup of a row for each id of [N], that nobody takes but where lookups meet."""
        graph = self._graph
        tensor = graph.source(tensor)
        found = lookup_of(graph, tensor)
        if found is None or len(found.table.shape) != 2 or graph.rank(found.ids) != 1:
            return None
        alone = all(taker.op in _MEET for taker, _ in graph.takers(tensor)) and not graph.is_output(tensor)
        return found if alone and graph.dtype(found.ids) in (3, 9) else None

    def _takers(self, tensor: str) -> frozenset[str]:
        """Who takes a lookup: those with the same takers are merged the same way in each."""
        return frozenset(taker.name for taker, _ in self._graph.takers(self._graph.source(tensor)))

    # ---- in a stack ----------------------------------------------------------------------

    def _stack(self, node: Any) -> int:
        """[N, k, width], all of it lookups."""
        graph = self._graph
        tensors = list(node.input)
        if any(t.startswith("^") for t in tensors) or node.attr["axis"].i not in (1, -2):
            return 0
        lookups = [self._lookup(tensor) for tensor in tensors]
        found = [lookup for lookup in lookups if lookup is not None]
        if (
            len(found) < max(_AT_LEAST, len(tensors))
            or len({(k.table.width, k.table.dtype) for k in found}) > 1
        ):
            return 0
        graph.replace(node.name, self._merged(found, f"{node.name}/gathers"))
        return len(found) - 1

    # ---- in a concatenation --------------------------------------------------------------

    def _concat(self, node: Any) -> int:
        graph = self._graph
        count = node.attr["N"].i
        if any(t.startswith("^") for t in node.input) or graph.rank(node.name) != 2:
            return 0
        if graph.scalar(node.input[count]) not in (1, -1):
            return 0
        parts: list[Part] = []
        for tensor in node.input[:count]:
            known = graph.shape(tensor)
            if known is None or len(known) != 2 or known[1] is None:
                return 0
            first = parts[-1].first + parts[-1].columns if parts else 0
            parts.append(Part(tensor, known[1], self._lookup(tensor), self._takers(tensor), first))
        matrices = self._matrices(node)
        runs = self._groups(parts) if matrices else self._neighbours(parts)
        merged = [run for run in runs if len(run) >= _AT_LEAST and run[0].lookup is not None]
        if not merged:
            return 0
        order = [part for run in runs for part in run]
        tensors = []
        for run in runs:
            if run in merged:
                tensors.append(self._side_by_side(run, f"{node.name}/gathers"))
            else:
                tensors += [part.tensor for part in run]
        made = concat(graph, tensors, 1, f"{node.name}/gathers")
        columns = np.concatenate([np.arange(p.first, p.first + p.columns) for p in order])
        if not np.array_equal(columns, np.arange(len(columns))):
            for matrix in matrices:
                self._reorder(matrix, columns)
        graph.replace(node.name, made)
        return sum(len(run) - 1 for run in merged)

    def _matrices(self, node: Any) -> list[Any]:
        """The products that take all of `node`, if nothing else does and their matrices are known."""
        graph = self._graph
        takers = graph.takers(node.name)
        if graph.is_output(node.name):
            return []
        for taker, place in takers:
            if taker.op != "MatMul" or place != 0 or taker.attr["transpose_a"].b:
                return []
            table = table_of(graph, taker.input[1])
            if table is None or len(table.shape) != 2 or any(t.startswith("^") for t in taker.input):
                return []
        return [taker for taker, _ in takers]

    @staticmethod
    def _groups(parts: list[Part]) -> list[list[Part]]:
        """Lookups of one kind together, wherever they are; the others in their order."""
        groups: dict[tuple[Any, ...], list[Part]] = defaultdict(list)
        others = []
        for part in parts:
            if part.kind is None:
                others.append([part])
            else:
                groups[part.kind].append(part)
        return [*groups.values(), *others]

    @staticmethod
    def _neighbours(parts: list[Part]) -> list[list[Part]]:
        runs: list[list[Part]] = []
        for part in parts:
            if runs and part.kind is not None and part.kind == runs[-1][-1].kind:
                runs[-1].append(part)
            else:
                runs.append([part])
        return runs

    def _reorder(self, product: Any, columns: npt.NDArray[Any]) -> None:
        graph = self._graph
        table = table_of(graph, product.input[1])
        assert table is not None
        value = value_of(graph, table)
        turned = value[:, columns] if product.attr["transpose_b"].b else value[columns]
        fresh = new_table(graph, self._options, turned, table.dtype, f"{product.name}/reordered")
        tensor = fresh.constant or graph.variable(fresh.variable, f"{product.name}/reordered/read")
        graph.set_input(product, 1, tensor)

    def _side_by_side(self, run: list[Part], like: str) -> str:
        """[N, all columns]: the lookups of a run."""
        lookups = [part.lookup for part in run if part.lookup is not None]
        rows = self._merged(lookups, like)
        return reshape(self._graph, rows, [-1, sum(part.columns for part in run)], like)

    def _merged(self, lookups: list[Lookup], like: str) -> str:
        """[N, lookups, width]."""
        graph = self._graph
        nodes = tuple(lookup.node.name for lookup in lookups)
        if nodes in self._rows:
            return self._rows[nodes]
        keys = tuple(lookup.table.key for lookup in lookups)
        if keys not in self._tables:
            # A table that several look into is laid down once.
            distinct = {lookup.table.key: lookup.table for lookup in lookups}
            value = np.concatenate([value_of(graph, table) for table in distinct.values()])
            self._tables[keys] = new_table(graph, self._options, value, lookups[0].table.dtype, like)
        self._rows[nodes] = gather(graph, self._tables[keys], self._all_ids(lookups, like), like)
        return self._rows[nodes]

    def _all_ids(self, lookups: list[Lookup], like: str) -> str:
        """[N, lookups]: the ids, each moved by where its table begins."""
        graph = self._graph
        starts, start = {}, 0
        for lookup in lookups:
            if lookup.table.key not in starts:
                starts[lookup.table.key] = start
                start += lookup.table.rows
        moved = tuple(starts[lookup.table.key] for lookup in lookups)
        sizes = tuple(lookup.table.rows for lookup in lookups)
        key = (*(graph.source(lookup.ids) for lookup in lookups), moved, sizes)
        if key not in self._ids:
            self._ids[key] = self._moved(lookups, moved, sizes, like)
        return self._ids[key]

    def _moved(
        self, lookups: list[Lookup], starts: tuple[int, ...], sizes: tuple[int, ...], like: str
    ) -> str:
        graph = self._graph
        types = {graph.dtype(lookup.ids) for lookup in lookups}
        dtype = types.pop() if len(types) == 1 and sum(sizes) < 1 << 31 else int(INT64)
        tensors = [self._as_type(lookup.ids, dtype, like) for lookup in lookups]
        ids = pack(graph, tensors, 1, like)
        kind = np.int32 if dtype == 3 else np.int64
        safe = all(within(graph, lookup.ids, lookup.table.rows) for lookup in lookups)
        offsets = graph.constant(np.array(starts, kind), f"{like}/offsets")
        moved = binary(graph, "AddV2", ids, offsets, f"{like}/rows")
        if safe:
            return moved
        ok = inside(graph, ids, graph.constant(np.array(sizes, kind), f"{like}/sizes"), like)
        return select(graph, ok, moved, number(graph, -1, dtype, f"{like}/outside"), f"{like}/guarded")

    def _as_type(self, ids: str, dtype: int, like: str) -> str:
        graph = self._graph
        own = graph.dtype(ids)
        if own == dtype:
            return ids
        return graph.add(
            "Cast", [ids], f"{like}/wide", SrcT=dtype_of(own), DstT=dtype_of(dtype), Truncate=False
        )

    # ---- in a sum ------------------------------------------------------------------------

    def _sum(self, node: Any) -> int:
        """The whole sum that `node` is the end of."""
        graph = self._graph
        takers = graph.takers(node.name)
        if len(takers) == 1 and self._is_sum(takers[0][0]) and not graph.is_output(node.name):
            return 0  # part of a larger one
        terms = self._terms(node)
        groups: dict[tuple[int, int, Size], list[tuple[str, Lookup]]] = defaultdict(list)
        rest: list[tuple[str, Size | None]] = []
        for term, rows in terms:
            lookup = self._lookup(term)
            if lookup is None or rows is None or len(self._takers(term)) > 1:
                rest.append((term, rows))
            else:
                groups[(lookup.table.width, lookup.table.dtype, rows)].append((term, lookup))
        merged = {key: group for key, group in groups.items() if len(group) >= _AT_LEAST}
        width = graph.shape(node.name)
        if len(merged) != 1 or width is None or len(width) != 2:
            return 0
        ((key, group),) = merged.items()
        if width[1] != key[0]:
            return 0  # broadcast
        like = f"{node.name}/gathers"
        rest += [(term, other[2]) for other, members in groups.items() if other != key for term, _ in members]
        made = total(graph, self._merged([lookup for _, lookup in group], like), 1, like)
        alike = [term for term, rows in rest if rows == key[2] and self._width(term) == key[0]]
        made = add_up(graph, [made, *alike], like)
        for term, _ in rest:
            if term not in alike:
                made = binary(graph, "AddV2", made, term, f"{like}/add")
        graph.replace(spelled(node.name), made)
        return len(group) - 1

    def _width(self, tensor: str) -> int | None:
        known = self._graph.shape(tensor)
        return known[1] if known is not None and len(known) == 2 else None

    def _is_sum(self, node: Any) -> bool:
        return node.op in ("AddN", "AddV2", "Add") and not any(t.startswith("^") for t in node.input)

    def _terms(self, node: Any) -> list[tuple[str, Size | None]]:
        """All that is added up, and how many rows each has: AddN wants as many of all, Add repeats one."""
        graph = self._graph
        if not self._is_sum(node):
            return []
        terms: list[tuple[str, Size | None]] = []
        for tensor in node.input:
            inner = graph.producer(graph.source(tensor))
            alone = len(graph.takers(inner.name)) == 1 and not graph.is_output(inner.name)
            same = graph.rank(tensor) == 2 and graph.shape(tensor) == graph.shape(node.name)
            if self._is_sum(inner) and alone and same:
                terms += self._terms(inner)
            else:
                sized = shape(graph, node.name if node.op == "AddN" else tensor)
                terms.append((tensor, sized[0] if sized else None))
        return terms


def gathers(graph: Graph, options: Options) -> int:
    return Gathers(graph, options).run()


PASS = Pass("gathers", "several lookups become one", gathers)
