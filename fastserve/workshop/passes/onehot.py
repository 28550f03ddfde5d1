"""onehot: a one-hot or multi-hot vector times a matrix becomes a lookup of the matrix's rows.

Also where one-hots are only parts of what the matrix takes, as in Dense(concat([one-hots, numbers])): their
rows are looked up and added to the product of the rest. An id outside of the depth is a row of zeros to
one_hot and an error to a lookup, so the table gets a row of zeros for it, unless no id can be outside.
Left alone: other values than 1 and 0, another axis than the last, one-hots that somebody else takes too, and
matrices with infinite or undefined numbers (0 times infinity is not 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.workshop.optimizing.graph import Graph, dtype_of
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.ranges import within
from fastserve.workshop.passes.tables import (
    FLOATS,
    add_up,
    binary,
    concat,
    gather,
    inside,
    new_table,
    number,
    reshape,
    select,
    table_of,
    total,
    value_of,
)


@dataclass(frozen=True, slots=True)
class Hot:
    """A tensor [M, width] of zeros and ones. `ids`: what is hot. They are [M] after a reshape if `picks` is
    None; otherwise [M, picks] (-1: any number), which are added up. `spaced`: each of the `picks` has its own
    range of `depth` columns; otherwise all share one."""

    ids: str
    depth: int
    picks: int | None
    spaced: bool

    @property
    def width(self) -> int:
        return self.depth * (self.picks or 1) if self.spaced else self.depth


class OneHots:
    """One run of the pass."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options

    def run(self) -> int:
        changes = sum(self._rewrite(node) for node in list(self._graph.nodes.values()) if node.op == "MatMul")
        if changes:
            self._graph.prune()
        return changes

    def _rewrite(self, node: Any) -> int:
        graph = self._graph
        matrix = self._matrix(node)
        if matrix is None:
            return 0
        parts = self._parts(node)
        hots = [self._hot(part) if alone else None for part, alone in parts]
        if not any(hots):
            return 0
        widths = [hot.width if hot else self._width(part) for hot, (part, _) in zip(hots, parts, strict=True)]
        if None in widths or sum(width or 0 for width in widths) != matrix.shape[0]:
            return 0
        starts = np.concatenate([[0], np.cumsum([width or 0 for width in widths])])
        rows = [matrix[starts[i] : starts[i + 1]] for i in range(len(parts))]
        chosen = [(hot, rows[i]) for i, hot in enumerate(hots) if hot]
        if not all(np.isfinite(part.astype(np.float64)).all() for _, part in chosen):
            return 0
        like = f"{node.name}/onehot"
        terms = self._lookups(chosen, graph.dtype(node.name), like)
        rest = [i for i, hot in enumerate(hots) if hot is None]
        if rest:
            terms.append(self._product([parts[i][0] for i in rest], [rows[i] for i in rest], node, like))
        graph.replace(node.name, add_up(graph, terms, like))
        return 1

    def _matrix(self, node: Any) -> npt.NDArray[Any] | None:
        graph = self._graph
        if node.attr["transpose_a"].b or any(t.startswith("^") for t in node.input):
            return None
        if graph.dtype(node.name) not in FLOATS:
            return None
        table = table_of(graph, node.input[1])
        if table is None or len(table.shape) != 2:
            return None
        value = value_of(graph, table)
        return value.T if node.attr["transpose_b"].b else value

    def _parts(self, node: Any) -> list[tuple[str, bool]]:
        """What the matrix takes side by side, and whether nobody else takes it."""
        graph = self._graph
        alone = self._taken_once(node.input[0])
        joined = graph.made_by(node.input[0], "ConcatV2")
        if joined is None or any(t.startswith("^") for t in joined.input):
            return [(node.input[0], alone)]
        count = joined.attr["N"].i
        if graph.scalar(joined.input[count]) not in (1, -1) or graph.rank(joined.name) != 2:
            return [(node.input[0], alone)]
        return [(tensor, alone and self._taken_once(tensor)) for tensor in joined.input[:count]]

    def _taken_once(self, tensor: str) -> bool:
        tensor = self._graph.source(tensor)
        return len(self._graph.takers(tensor)) == 1 and not self._graph.is_output(tensor)

    def _width(self, tensor: str) -> int | None:
        known = self._graph.shape(tensor)
        return None if known is None or len(known) != 2 else known[1]

    # ---- recognizing ---------------------------------------------------------------------

    def _hot(self, tensor: str) -> Hot | None:
        graph = self._graph
        node = graph.producer(graph.source(tensor))
        if any(t.startswith("^") for t in node.input):
            return None
        if node.op == "Cast" and graph.dtype(node.name) in FLOATS and self._taken_once(node.input[0]):
            return self._hot(node.input[0])
        if node.op == "OneHot":
            found = self._one_hot(node)
            return Hot(found[0], found[1], None, False) if found and graph.rank(found[0]) == 1 else None
        if node.op == "Sum":
            return self._summed(node)
        if node.op in ("Reshape", "Squeeze"):
            return self._reshaped(node)
        return None

    def _one_hot(self, node: Any) -> tuple[str, int] | None:
        """Its ids and its depth, if it is of 1 and 0 along the last axis."""
        graph = self._graph
        depth, on, off = (graph.scalar(tensor) for tensor in node.input[1:4])
        rank = graph.rank(node.input[0])
        last = rank is not None and node.attr["axis"].i in (-1, rank)
        return (node.input[0], int(depth)) if depth and on == 1 and off == 0 and last else None

    def _inner(self, tensor: str) -> tuple[str, int] | None:
        """As `_one_hot`, of a one-hot that nobody else takes, perhaps cast."""
        graph = self._graph
        if not self._taken_once(tensor):
            return None
        node = graph.producer(graph.source(tensor))
        if node.op == "Cast" and not any(t.startswith("^") for t in node.input):
            return self._inner(node.input[0]) if graph.dtype(node.name) in FLOATS else None
        return self._one_hot(node) if node.op == "OneHot" else None

    def _summed(self, node: Any) -> Hot | None:
        """Sum(OneHot [M, L, depth], 1): counts."""
        graph = self._graph
        found = self._inner(node.input[0])
        axis = graph.value(node.input[1])
        if found is None or axis is None or axis.size != 1 or node.attr["keep_dims"].b:
            return None
        known = graph.shape(found[0])
        if known is None or len(known) != 2 or int(axis.reshape(())) not in (1, -2):
            return None
        return Hot(found[0], found[1], known[1] if known[1] is not None else -1, False)

    def _reshaped(self, node: Any) -> Hot | None:
        """[..., depth] to [M, depth], or [M, L, depth] to [M, L * depth]."""
        graph = self._graph
        found = self._inner(node.input[0])
        known = graph.shape(node.name)
        if found is None or known is None or len(known) != 2:
            return None
        ids, depth = found
        shape = graph.shape(ids)
        if known[1] == depth and shape is not None:
            return Hot(ids, depth, None, False)
        picks = shape[1] if shape is not None and len(shape) == 2 else None
        if picks is not None and known[1] == picks * depth:
            return Hot(ids, depth, picks, True)
        return None

    # ---- making --------------------------------------------------------------------------

    def _lookups(self, chosen: list[tuple[Hot, npt.NDArray[Any]]], dtype: int, like: str) -> list[str]:
        """Terms whose sum is all one-hots times their rows. Those with a known number of picks share a table
        and a lookup."""
        graph = self._graph
        known = [(hot, rows) for hot, rows in chosen if hot.picks != -1]
        terms = []
        if known:
            table = np.concatenate([rows for _, rows in known])
            safe = all(within(graph, hot.ids, hot.depth) for hot, _ in known)
            if not safe:
                table = np.concatenate([table, np.zeros_like(table[:1])])
            made = new_table(graph, self._options, table, dtype, like)
            ids = self._beside_each_other([hot for hot, _ in known], safe, len(table) - 1, like)
            if len(known) == 1 and (known[0][0].picks or 1) == 1:
                terms.append(gather(graph, made, reshape(graph, ids, [-1], like), like))
            else:
                terms.append(total(graph, gather(graph, made, ids, like), 1, like))
        for hot, rows in chosen:
            if hot.picks == -1:
                padded = np.concatenate([rows, np.zeros_like(rows[:1])])
                made = new_table(graph, self._options, padded, dtype, like)
                terms.append(total(graph, gather(graph, made, self._rows(hot, like), like), 1, like))
        return terms

    def _beside_each_other(self, hots: list[Hot], safe: bool, outside: int, like: str) -> str:
        """[M, all picks]: ids as rows of one table, in which each one-hot's rows follow those of the one
        before. Ids beyond a depth become `outside`, unless it is `safe` that there are none."""
        graph = self._graph
        columns = self._one_type([reshape(graph, hot.ids, [-1, hot.picks or 1], like) for hot in hots], like)
        dtype = graph.dtype(columns[0])
        ids = concat(graph, columns, 1, like)
        starts: list[int] = []
        depths: list[int] = []
        start = 0
        for hot in hots:
            picks = hot.picks or 1
            starts += [start + (hot.depth * pick if hot.spaced else 0) for pick in range(picks)]
            depths += [hot.depth] * picks
            start += hot.width
        made = binary(graph, "AddV2", ids, self._vector(starts, dtype, f"{like}/starts"), f"{like}/rows")
        if safe:
            return made
        ok = inside(graph, ids, self._vector(depths, dtype, f"{like}/depths"), like)
        return select(graph, ok, made, number(graph, outside, dtype, f"{like}/none"), f"{like}/guarded")

    def _vector(self, values: list[int], dtype: int, like: str) -> str:
        return self._graph.constant(np.array(values, np.int32 if dtype == 3 else np.int64), like)

    def _rows(self, hot: Hot, like: str) -> str:
        """Ids of any number for each row; those beyond the depth become the row behind it."""
        graph = self._graph
        (ids,) = self._one_type([hot.ids], like)
        if within(graph, hot.ids, hot.depth):
            return ids
        rows = number(graph, hot.depth, graph.dtype(ids), f"{like}/rows")
        return select(graph, inside(graph, ids, rows, like), ids, rows, f"{like}/guarded")

    def _one_type(self, tensors: list[str], like: str) -> list[str]:
        """Ids of one type that lookups take."""
        graph = self._graph
        types = {graph.dtype(tensor) for tensor in tensors}
        wanted = 3 if 9 not in types else 9
        return [
            tensor
            if graph.dtype(tensor) == wanted
            else graph.add(
                "Cast",
                [tensor],
                f"{like}/wide",
                SrcT=dtype_of(graph.dtype(tensor)),
                DstT=dtype_of(wanted),
                Truncate=False,
            )
            for tensor in tensors
        ]

    def _product(self, tensors: list[str], rows: list[npt.NDArray[Any]], node: Any, like: str) -> str:
        """What is left of the product."""
        graph = self._graph
        dtype = dtype_of(graph.dtype(node.name))
        table = new_table(graph, self._options, np.concatenate(rows), dtype, f"{like}/rest")
        matrix = table.constant or graph.variable(table.variable, f"{like}/rest/read")
        left = concat(graph, tensors, 1, f"{like}/rest")
        return graph.add(
            "MatMul", [left, matrix], f"{like}/rest/product", T=dtype, transpose_a=False, transpose_b=False
        )


def onehot(graph: Graph, options: Options) -> int:
    return OneHots(graph, options).run()


PASS = Pass("onehot", "one-hot times a matrix becomes a lookup", onehot)
