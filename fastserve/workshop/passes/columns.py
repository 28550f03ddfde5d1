"""columns: the machinery of feature columns becomes lookups.

A feature column turns a dense tensor into a sparse one (dropping -1 or ""), hashes or looks up the values,
reshapes, prunes, fills empty rows, finds unique ids, gathers, adds up by segments, selects and reshapes: some
forty ops for each column. Of a dense tensor [N, L], all of it is one lookup, with a row of zeros for what was
dropped. Crosses are hashed by the same op as before, from dense inputs. What is sparse to begin with, has
weights, or more than one dimension is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, canonical, dtype_of, spelled, split
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.ranges import bounds, within
from fastserve.workshop.passes.sizes import Size, drop_reshapes, shape, sizes
from fastserve.workshop.passes.tables import (
    INT32,
    Table,
    both,
    gather,
    handle_table,
    new_table,
    number,
    reshape,
    select,
    table_of,
    total,
    value_of,
)

# Element by element; with one input that is not constant, or all of them made of the same values.
_ELEMENTWISE = frozenset(
    {
        "Abs", "AddV2", "Add", "AsString", "Bucketize", "Cast", "Equal", "FloorDiv", "FloorMod", "Greater",
        "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalNot", "LogicalOr", "LookupTableFindV2",
        "Maximum", "Minimum", "Mul", "NotEqual", "Select", "SelectV2", "StringLower", "StringStrip",
        "StringToHashBucket", "StringToHashBucketFast", "StringToHashBucketStrong", "StringUpper", "Sub",
        "ZerosLike", "OnesLike",
    }
)  # fmt: skip
_COMBINERS = {"SparseSegmentSum": "sum", "SparseSegmentMean": "mean", "SparseSegmentSqrtN": "sqrtn"}


@dataclass(frozen=True, slots=True)
class Column:
    """A sparse tensor's values as a dense tensor [N, L]: `ids`; and where they are there: all `conditions`,
    each [N, L]. `like`: a tensor of the input's, of that shape. `one`: L is 1."""

    ids: str
    conditions: tuple[str, ...]
    like: str
    one: bool


class Columns:
    """One run of the pass."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self._graph = graph
        self._options = options
        # What was made for what, so that two columns of one input share it.
        self._made: dict[tuple[str, str], str] = {}
        self._crosses: dict[str, Column | None] = {}
        self._padded: dict[tuple[str, bool], Table] = {}

    def run(self) -> int:
        graph = self._graph
        changes = 0
        for node in [node for node in graph.nodes.values() if node.op == "SparseFillEmptyRows"]:
            changes += self._embeddings(node)
        for node in [node for node in graph.nodes.values() if node.op == "SparseToDense"]:
            changes += self._dense(node)
        if changes:
            drop_reshapes(graph)
            graph.prune()
        return changes

    # ---- what is rewritten ---------------------------------------------------------------

    def _embeddings(self, filled: Any) -> int:
        """Every embedding that is looked up by the ids of one column."""
        column = self._column(filled.input[0], filled.input[1], filled.input[2])
        if column is None:
            return 0
        changes = 0
        graph = self._graph
        for segment in [n for n in graph.nodes.values() if n.op in _COMBINERS]:
            table = self._segment_table(segment, filled)
            ends = [] if table is None else self._selects(segment, filled)
            if table is None or not ends:
                continue
            made = self._lookup(column, table, _COMBINERS[segment.op], segment.name)
            for end in ends:
                for reshaped, place in graph.takers(end.name):
                    if reshaped.op == "Reshape" and place == 0 and self._keeps_rows(reshaped, filled, table):
                        graph.replace(reshaped.name, made)
                graph.replace(end.name, made)
            changes += 1
        return changes

    def _dense(self, node: Any) -> int:
        """A sparse tensor made dense again: what was dropped has a constant in its place."""
        graph = self._graph
        default = graph.value(node.input[3])
        column = self._column(node.input[0], node.input[2], node.input[1])
        if column is None or default is None or default.size != 1 or not graph.is_taken(node):
            return 0
        if not self._shape_kept(node.input[1], column):
            return 0
        condition = both(graph, list(column.conditions), node.name)
        made = column.ids
        if condition is not None:
            made = select(graph, condition, column.ids, node.input[3], f"{node.name}/dense")
        graph.replace(node.name, made)
        return 1

    # ---- the sparse tensor ---------------------------------------------------------------

    def _column(self, indices: str, values: str, dense_shape: str) -> Column | None:
        graph = self._graph
        indices, values = graph.source(indices), graph.source(values)
        pruned = self._pruned(indices, values, dense_shape)
        if pruned is not None:
            return pruned
        name, place = split(indices)
        node = graph.nodes[name]
        if node.op == "SparseReshape" and place == 0:
            inner = self._column(node.input[0], values, node.input[1])
            return inner if inner is not None and self._same_rows(node, inner) else None
        if node.op == "SparseCross" and place == 0:
            column = self._cross(node)
            if column is None:
                return None
            ids = self._densified(values, name, 1, column.ids)
            return None if ids is None else Column(ids, column.conditions, column.like, True)
        if node.op == "Where":
            return self._where(node, values, dense_shape)
        return None

    def _where(self, where: Any, values: str, dense_shape: str) -> Column | None:
        """indices = Where(x != constant), values = f(GatherNd(x, indices)), and as many rows as x."""
        graph = self._graph
        test = graph.made_by(where.input[0], "NotEqual")
        if test is None:
            return None
        dense = test.input[0] if graph.scalar(test.input[1]) is not None else test.input[1]
        if graph.scalar(test.input[0]) is None and graph.scalar(test.input[1]) is None:
            return None
        known = graph.shape(dense)
        if known is None or len(known) != 2:
            return None
        rows, own = sizes(graph, dense_shape), shape(graph, dense)
        if not rows or own is None or rows[0] != own[0]:
            return None
        gathers = [
            n
            for n in graph.nodes.values()
            if n.op == "GatherNd"
            and graph.source(n.input[1]) == where.name
            and graph.source(n.input[0]) == graph.source(dense)
        ]
        for found in gathers:
            ids = self._densified(values, found.name, 0, dense)
            if ids is not None:
                return Column(ids, (test.name,), dense, known[1] == 1)
        return None

    def _pruned(self, indices: str, values: str, dense_shape: str) -> Column | None:
        """Ids below 0 taken out: both gathered at Reshape(Where(ids >= 0), [-1])."""
        graph = self._graph
        one, other = graph.made_by(indices, "GatherV2"), graph.made_by(values, "GatherV2")
        if (
            one is None
            or other is None
            or graph.scalar(one.input[2]) != 0
            or graph.scalar(other.input[2]) != 0
        ):
            return None
        if graph.source(one.input[1]) != graph.source(other.input[1]):
            return None
        flat = graph.made_by(one.input[1], "Reshape", "Squeeze")
        where = None if flat is None else graph.made_by(flat.input[0], "Where")
        test = None if where is None else graph.made_by(where.input[0], "GreaterEqual")
        if test is None or graph.scalar(test.input[1]) != 0:
            return None
        if graph.source(test.input[0]) != graph.source(other.input[0]):
            return None
        column = self._column(one.input[0], other.input[0], dense_shape)
        if column is None:
            return None
        found = bounds(graph, column.ids)
        if found is not None and found[0] >= 0:
            return column
        zero = number(graph, 0, graph.dtype(column.ids), f"{test.name}/zero")
        valid = graph.add(
            "GreaterEqual",
            [column.ids, zero],
            f"{test.name}/dense",
            T=dtype_of(graph.dtype(column.ids)),
        )
        return Column(column.ids, (*column.conditions, valid), column.like, column.one)

    def _same_rows(self, node: Any, column: Column) -> bool:
        """Whether a SparseReshape leaves rows of [N, L] where they are."""
        old, new = sizes(self._graph, node.input[1]), sizes(self._graph, spelled(node.name, 1))
        if old is None or new is None or len(old) != 2 or len(new) != 2:
            return False
        return old == new or (column.one and old[0] == new[0])

    def _shape_kept(self, dense_shape: str, column: Column) -> bool:
        """Whether this is the shape of the column's dense tensor."""
        found = sizes(self._graph, dense_shape)
        own = shape(self._graph, column.like)
        if found is None or own is None or len(found) != 2 or len(own) != 2:
            return False
        return found == own or (column.one and found[1] == 1 and found[0] == own[0])

    def _densified(self, values: str, base: str, place: int, dense: str) -> str | None:
        """`values`, computed element by element from the tensor `place` of node `base`, computed from `dense`
        instead. None where it is computed otherwise."""
        graph = self._graph
        values = graph.source(values)
        if values == spelled(base, place):
            return dense
        key = (values, dense)
        if key in self._made:
            return self._made[key]
        name, _ = split(values)
        node = graph.nodes[name]
        if node.op == "Fill":
            # As many as there are values: of a shape, only its tensor counts.
            counted = graph.made_by(node.input[0], "Shape")
            of = None if counted is None else self._densified(counted.input[0], base, place, dense)
            made = node.input[1] if of is not None and graph.scalar(node.input[1]) is not None else None
            return made
        if node.op not in _ELEMENTWISE or any(t.startswith("^") for t in node.input):
            return None
        fresh = []
        for position, tensor in enumerate(node.input):
            kept = graph.scalar(tensor) is not None or self._is_table(node, position) or self._is_size(tensor)
            if self._is_table(node, position) and split(graph.source(tensor))[0] in graph.written():
                return None
            replaced = tensor if kept else self._densified(tensor, base, place, dense)
            if replaced is None:
                return None
            fresh.append(replaced)
        if node.op == "Select" and len({graph.rank(tensor) for tensor in fresh}) != 1:
            return None
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = graph.name(f"{node.name}/dense")
        del copy.input[:]
        copy.input.extend(canonical(tensor) for tensor in fresh)
        self._made[key] = graph.insert(copy)
        return self._made[key]

    @staticmethod
    def _is_table(node: Any, position: int) -> bool:
        return bool(node.op == "LookupTableFindV2" and position == 0)

    def _is_size(self, tensor: str) -> bool:
        """Of a vocabulary, behind which words that are not in it are numbered."""
        node = self._graph.made_by(tensor, "LookupTableSizeV2")
        if node is None or any(t.startswith("^") for t in node.input):
            return False
        return split(self._graph.source(node.input[0]))[0] not in self._graph.written()

    def _cross(self, node: Any) -> Column | None:
        if node.name not in self._crosses:
            self._crosses[node.name] = self._crossed(node)
        return self._crosses[node.name]

    def _crossed(self, node: Any) -> Column | None:
        """A cross of columns with one value in each row: the same op on dense inputs gives one in each
        row."""
        graph = self._graph
        count = node.attr["N"].i
        tensors = graph.arguments(node)
        if not node.attr["hashed_output"].b or any(t.startswith("^") for t in node.input):
            return None
        # That all have as many rows, the op checks as before.
        dense_inputs: list[str] = []
        conditions: list[str] = []
        for i in range(count):
            column = self._column(tensors[i], tensors[count + i], tensors[2 * count + i])
            if column is None or not column.one:
                return None
            dense_inputs.append(column.ids)
            conditions += column.conditions
        dense_inputs += tensors[3 * count :]
        for tensor in dense_inputs:
            known = shape(graph, tensor)
            if known is None or len(known) != 2 or known[1] != 1 or graph.dtype(tensor) not in (7, 9):
                return None
        fresh = graph.add(
            "SparseCross",
            dense_inputs,
            f"{node.name}/dense",
            N=0,
            hashed_output=True,
            num_buckets=node.attr["num_buckets"].i,
            hash_key=node.attr["hash_key"].i,
            sparse_types=[],
            dense_types=[dtype_of(graph.dtype(tensor)) for tensor in dense_inputs],
            out_type=dtype_of(node.attr["out_type"].type),
            internal_type=dtype_of(node.attr["internal_type"].type),
        )
        ids = reshape(graph, spelled(fresh, 1), [-1, 1], fresh)
        return Column(ids, tuple(dict.fromkeys(conditions)), dense_inputs[0], True)

    # ---- from the filled rows to the embedding ---------------------------------------------

    def _segment_table(self, segment: Any, filled: Any) -> Table | None:
        """The table whose rows `segment` adds up, if it does so by the ids and rows of `filled`."""
        graph = self._graph
        rows = graph.made_by(segment.input[2], "Cast", "StridedSlice")
        if rows is not None and rows.op == "Cast":
            rows = graph.made_by(rows.input[0], "StridedSlice")
        if rows is None or graph.source(rows.input[0]) != filled.name or not self._first_column(rows):
            return None
        ids = spelled(filled.name, 1)
        if graph.source(segment.input[1]) == ids:
            table = table_of(graph, segment.input[0])
        else:
            unique, place = split(graph.source(segment.input[1]))
            found = graph.nodes[unique]
            if found.op not in ("Unique", "UniqueV2") or place != 1 or graph.source(found.input[0]) != ids:
                return None
            gathered = graph.producer(graph.source(segment.input[0]))
            if gathered.op not in ("GatherV2", "ResourceGather") or graph.source(gathered.input[1]) != unique:
                return None
            if gathered.op == "GatherV2":
                on_rows = graph.scalar(gathered.input[2]) == 0 and gathered.attr["batch_dims"].i == 0
                table = table_of(graph, gathered.input[0]) if on_rows else None
            else:
                table = handle_table(graph, gathered.input[0])
        return table if table is not None and len(table.shape) == 2 else None

    def _first_column(self, node: Any) -> bool:
        """Whether it is x[:, 0]."""
        values = [self._graph.value(tensor) for tensor in node.input[1:4]]
        if any(value is None for value in values):
            return False
        begin, _, steps = ([int(item) for item in value.flat] for value in values if value is not None)
        return (
            begin == [0, 0]
            and steps == [1, 1]
            and node.attr["shrink_axis_mask"].i == 2
            and node.attr["begin_mask"].i & 1 == 1
            and node.attr["end_mask"].i & 1 == 1
            and node.attr["ellipsis_mask"].i == 0
            and node.attr["new_axis_mask"].i == 0
        )

    def _selects(self, segment: Any, filled: Any) -> list[Any]:
        """Where rows without ids get zeros; none unless everybody who takes `segment` is one of them, or asks
        for its shape."""
        found = []
        for node, place in self._graph.takers(segment.name):
            if node.op in ("Shape", "ZerosLike"):
                continue
            if (
                node.op not in ("Select", "SelectV2")
                or place != 2
                or not self._zeros_where_empty(node, filled)
            ):
                return []
            found.append(node)
        return found

    def _zeros_where_empty(self, node: Any, filled: Any) -> bool:
        graph = self._graph
        zeros = graph.made_by(node.input[1], "ZerosLike")
        constant = graph.value(node.input[1])
        if zeros is None and (constant is None or np.any(constant)):
            return False
        empty = graph.producer(graph.source(node.input[0]))
        while empty.op in ("Tile", "Reshape", "ExpandDims", "BroadcastTo"):
            if graph.source(empty.input[0]) == spelled(filled.name, 2):
                return True
            empty = graph.producer(graph.source(empty.input[0]))
        return False

    def _keeps_rows(self, node: Any, filled: Any, table: Table) -> bool:
        """Whether a reshape behind leaves [N, width] as it is."""
        wanted: list[Size] | None = sizes(self._graph, node.input[1])
        rows = sizes(self._graph, filled.input[2])
        return wanted is not None and rows is not None and wanted == [rows[0], table.shape[1]]

    def _lookup(self, column: Column, table: Table, combiner: str, like: str) -> str:
        """[N, width]: the column's embedding."""
        graph = self._graph
        like = f"{like}/column"
        condition = both(graph, list(column.conditions), like)
        ids = column.ids
        if condition is not None:
            # What was dropped gets a row of zeros: the last one, or where an id may lie beyond the table,
            # which is an error and stays one, the first.
            last = within(graph, ids, table.rows)
            padded = self._with_zeros(table, last, like)
            dtype = graph.dtype(ids)
            if not last:
                shifted = number(graph, 1, dtype, f"{like}/one")
                ids = graph.add("AddV2", [ids, shifted], f"{like}/shifted", T=dtype_of(dtype))
            ids = select(
                graph,
                condition,
                ids,
                number(graph, table.rows if last else 0, dtype, f"{like}/none"),
                f"{like}/ids",
            )
            table = padded
        if column.one:
            return gather(graph, table, reshape(graph, ids, [-1], like), like)
        rows = total(graph, gather(graph, table, ids, like), 1, like)
        if combiner == "sum":
            return rows
        return self._divided(rows, column, condition, combiner, table.dtype, like)

    def _divided(
        self, rows: str, column: Column, condition: str | None, combiner: str, dtype: int, like: str
    ) -> str:
        graph = self._graph
        there = condition
        if there is None:
            there = graph.add("OnesLike", [column.ids], f"{like}/there", T=dtype_of(graph.dtype(column.ids)))
        source = dtype_of(graph.dtype(there))
        numbers = graph.add(
            "Cast", [there], f"{like}/numbers", SrcT=source, DstT=dtype_of(dtype), Truncate=False
        )
        axes = graph.constant(np.array(1, np.int32), f"{like}/axis")
        count = graph.add(
            "Sum", [numbers, axes], f"{like}/count", T=dtype_of(dtype), Tidx=INT32, keep_dims=True
        )
        if combiner == "sqrtn":
            count = graph.add("Sqrt", [count], f"{like}/root", T=dtype_of(dtype))
        return graph.add("DivNoNan", [rows, count], f"{like}/mean", T=dtype_of(dtype))

    def _with_zeros(self, table: Table, last: bool, like: str) -> Table:
        key = (table.key, last)
        if key not in self._padded:
            value = value_of(self._graph, table)
            zeros = np.zeros_like(value[:1])
            self._padded[key] = new_table(
                self._graph,
                self._options,
                np.concatenate([value, zeros] if last else [zeros, value]),
                table.dtype,
                like,
            )
        return self._padded[key]


def columns(graph: Graph, options: Options) -> int:
    return Columns(graph, options).run()


PASS = Pass("columns", "feature columns become lookups", columns)
