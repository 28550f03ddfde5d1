"""user: what depends on the user's inputs alone is computed once for each user, not for each row.

A ranking request has one user and many candidates, and the user's features stand in every row. `--user-input`
names them. Rows next to each other with the same values in all of them are one user: the user's side is
computed for the first row of each run, and its result is spread over the run. That holds for any batch,
several requests in one included; rows that differ are computed one by one, as before. A matrix that takes the
user's side beside the candidate's is split, so that its product with the user's side is computed once, too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, dtype_of, spelled, split
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.sizes import all_rows
from fastserve.workshop.passes.tables import (
    FLOATS,
    INT32,
    add_up,
    binary,
    concat,
    gather_rows,
    new_table,
    pack,
    reshape,
    table_of,
    value_of,
)

_UNARY = frozenset(
    {
        "Abs", "AsString", "Bucketize", "Cast", "Elu", "Erf", "Exp", "Floor", "Identity", "IsNan",
        "LeakyRelu", "Log", "Log1p", "LogicalNot", "Neg", "OnesLike", "Reciprocal", "Relu", "Relu6", "Rsqrt",
        "Selu", "Sigmoid", "Softplus", "Sqrt", "Square", "StringLower", "StringStrip", "StringToHashBucket",
        "StringToHashBucketFast", "StringToHashBucketStrong", "StringUpper", "Tanh", "ZerosLike",
    }
)  # fmt: skip
_NARY = frozenset(
    {
        "AddN", "AddV2", "Add", "DivNoNan", "Equal", "FloorDiv", "FloorMod", "Greater", "GreaterEqual",
        "Less", "LessEqual", "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Mul", "NotEqual", "Pow",
        "RealDiv", "SelectV2", "SquaredDifference", "Sub",
    }
)  # fmt: skip
_REDUCTIONS = ("All", "Any", "Max", "Mean", "Min", "Prod", "Sum")
# Worth it to compute less often.
_COSTLY = frozenset(
    {"GatherV2", "LookupTableFindV2", "MatMul", "ResourceGather", "SparseCross", "StringToHashBucketFast"}
)


# Integers as wide as floats. The widest are two.
_COMPLEX128 = 18
_BITS = {1: 3, 2: 9, 8: 9, 14: 5, 19: 5, _COMPLEX128: 9}


class Side:
    """Which tensors have a row for each row of the user's inputs, computed from nothing else."""

    def __init__(self, graph: Graph, inputs: list[str]) -> None:
        self._graph = graph
        self.rows = {split(tensor)[0] for tensor in inputs}
        # Of no input at all.
        self.free: set[str] = set()
        effectful = graph.effectful()
        for node in graph.in_order():
            if node.name in self.rows or node.name in effectful:
                continue
            if any(tensor.startswith("^") for tensor in node.input):
                continue
            if node.op in ("Const", "VarHandleOp") or (node.op != "Placeholder" and self._all_free(node)):
                self.free.add(node.name)
            elif self._by_rows(node):
                self.rows.add(node.name)

    def has(self, tensor: str) -> bool:
        return split(tensor)[0] in self.rows

    def is_free(self, tensor: str) -> bool:
        return split(tensor)[0] in self.free

    def _all_free(self, node: Any) -> bool:
        return bool(node.input) and all(self.is_free(tensor) for tensor in node.input)

    def _by_rows(self, node: Any) -> bool:
        """Whether each row of the node's output comes from the same row of the user's side."""
        graph, op, inputs = self._graph, node.op, list(node.input)
        if not any(self.has(tensor) for tensor in inputs):
            return False
        rank = graph.rank(node.name)
        if not rank:
            return False
        first = self.has(inputs[0])
        others_free = all(self.is_free(tensor) for tensor in inputs[1:])
        if op in _UNARY:
            return first
        if op in _NARY:
            return all(self._fits(tensor, rank) for tensor in inputs)
        if op in ("GatherV2", "ResourceGather"):
            known = op == "ResourceGather" or graph.scalar(inputs[2]) == 0
            return self.is_free(inputs[0]) and self.has(inputs[1]) and known and not node.attr["batch_dims"].i
        if op == "LookupTableFindV2":
            return self.has(inputs[1]) and self.is_free(inputs[2])
        if op == "MatMul":
            return first and others_free and not node.attr["transpose_a"].b
        if op == "BiasAdd":
            return first and others_free and node.attr["data_format"].s in (b"", b"NHWC")
        if op in ("ConcatV2", "Pack"):
            axis = graph.scalar(inputs[-1]) if op == "ConcatV2" else node.attr["axis"].i
            parts = inputs[: node.attr["N"].i]
            return all(self.has(part) for part in parts) and axis is not None and axis % rank != 0
        if op == "Reshape":
            return first and self._keeps_rows(inputs[0], graph.value(inputs[1]))
        if op == "ExpandDims":
            axis = graph.scalar(inputs[1])
            return first and axis is not None and axis % rank != 0
        if op == "Squeeze":
            axes, before = list(node.attr["squeeze_dims"].list.i), graph.rank(inputs[0])
            return first and bool(axes) and bool(before) and all(axis % (before or 1) for axis in axes)
        if op in _REDUCTIONS:
            found, before = graph.value(inputs[1]), graph.rank(inputs[0])
            return first and found is not None and bool(before) and bool((found % (before or 1)).all())
        if op == "Softmax":
            return first and rank > 1
        if op == "OneHot":
            return first and others_free and node.attr["axis"].i in (-1, rank - 1)
        if op == "StridedSlice":
            return first and others_free and all_rows(graph, node)
        return False

    def _fits(self, tensor: str, rank: int) -> bool:
        """Whether broadcasting leaves rows with rows."""
        own = self._graph.shape(tensor)
        if own is None:
            return False
        if self.has(tensor):
            return len(own) == rank
        return self.is_free(tensor) and (len(own) < rank or own[0] == 1)

    def _keeps_rows(self, tensor: str, wanted: Any) -> bool:
        own = self._graph.shape(tensor)
        if own is None or wanted is None or None in own[1:] or wanted.ndim != 1 or wanted.size == 0:
            return False
        inner = int(np.prod([size or 0 for size in own[1:]], dtype=np.int64))
        return int(wanted[0]) == -1 and int(np.prod(wanted[1:], dtype=np.int64)) == inner > 0


def user(graph: Graph, options: Options) -> int:
    inputs = [graph.inputs[alias] for alias in options.user_inputs if alias in graph.inputs]
    if not inputs or not all(_has_rows(graph, tensor) for tensor in inputs):
        return 0
    _split_products(graph, options, Side(graph, inputs))
    _put_together(graph, Side(graph, inputs))
    graph.prune()
    side = Side(graph, inputs)
    ends = _ends(graph, side, set(inputs))
    if not ends:
        return 0
    blocks = _blocks(graph, inputs)
    firsts, runs = _runs(graph, [block for block, _ in blocks])
    fewer = _of_users(graph, blocks, firsts)
    for tensor in ends:
        spread = gather_rows(graph, _for_users(graph, side, tensor, fewer), runs, f"{tensor}/spread")
        for name, place in graph.consumers(tensor):
            if name not in side.rows:
                graph.set_input(graph.nodes[name], place, spread)
        for alias, output in graph.outputs.items():
            if output == tensor:
                graph.outputs[alias] = spread
    graph.prune()
    return len(ends)


def _has_rows(graph: Graph, tensor: str) -> bool:
    """Whether it is [N, ...], and in more than two dimensions the numbers in a row are known."""
    shape = graph.shape(tensor)
    return shape is not None and len(shape) > 0 and (len(shape) <= 2 or all(shape[1:]))


def _blocks(graph: Graph, inputs: list[str]) -> list[tuple[str, list[str]]]:
    """The inputs with what they are: vectors of one type next to each other as one matrix. A lookup in that
    costs as much as one in a vector."""
    vectors: dict[int, list[str]] = defaultdict(list)
    for tensor in inputs:
        if graph.rank(tensor) == 1:
            vectors[graph.dtype(tensor)].append(tensor)
    several = [tensors for tensors in vectors.values() if len(tensors) > 1]
    alone = [tensor for tensor in inputs if not any(tensor in tensors for tensors in several)]
    made = [(pack(graph, tensors, 1, "users"), tensors) for tensors in several]
    return made + [(tensor, [tensor]) for tensor in alone]


def _of_users(graph: Graph, blocks: list[tuple[str, list[str]]], firsts: str) -> dict[str, str]:
    """By input: one row for each user."""
    made: dict[str, str] = {}
    for block, tensors in blocks:
        rows = gather_rows(graph, block, firsts, f"{block}/users")
        if len(tensors) > 1:
            dtype = dtype_of(graph.dtype(rows))
            apart = graph.add("Unpack", [rows], f"{block}/each", num=len(tensors), T=dtype, axis=1)
            made |= {tensor: spelled(apart, place) for place, tensor in enumerate(tensors)}
        else:
            made[block] = rows
    return made


def _ends(graph: Graph, side: Side, inputs: set[str]) -> list[str]:
    """Tensors of the user's side that others take, and that cost more to compute than to spread. What costs
    less is computed for each row, as before."""
    found = []
    for name in sorted(side.rows - inputs):
        taken = [other for other, _ in graph.consumers(name)]
        if name not in graph.outputs.values() and all(other in side.rows for other in taken):
            continue
        if any(graph.nodes[other].op in _COSTLY for other in graph.ancestors([name]) & side.rows):
            found.append(name)
    return found


def _for_users(graph: Graph, side: Side, tensor: str, made: dict[str, str]) -> str:
    """`tensor`, computed of fewer rows. `made`: what there is of that already."""
    waiting = [tensor]
    while waiting:
        name = waiting[-1]
        missing = [t for t in graph.nodes[name].input if side.has(t) and t not in made]
        if name in made or not missing:
            waiting.pop()
            if name not in made:
                copy = type(graph.nodes[name])()
                copy.CopyFrom(graph.nodes[name])
                copy.name = graph.name(f"{name}/users")
                inputs = [made.get(t, t) for t in copy.input]
                del copy.input[:]
                copy.input.extend(inputs)
                made[name] = graph.insert(copy)
        else:
            waiting += missing
    return made[tensor]


def _put_together(graph: Graph, side: Side) -> None:
    """Parts of the user's side that stand next to each other in a concatenation or stack, or in one sum,
    become one: so they are spread together."""
    for node in [n for n in graph.nodes.values() if n.op in ("ConcatV2", "Pack") and n.name not in side.rows]:
        rank = graph.rank(node.name)
        axis = graph.scalar(node.input[-1]) if node.op == "ConcatV2" else node.attr["axis"].i
        parts = list(node.input[: node.attr["N"].i])
        if axis is None or not rank or axis % rank == 0 or any(t.startswith("^") for t in node.input):
            continue
        runs = [(mine, list(run)) for mine, run in itertools.groupby(parts, side.has)]
        if not any(mine and len(run) > 1 for mine, run in runs):
            continue
        like = f"{node.name}/user"
        if node.op == "Pack":
            joined = [pack(graph, run, axis, like) for _, run in runs]
        else:
            joined = [t for mine, run in runs for t in ([concat(graph, run, axis, like)] if mine else run)]
        graph.replace(node.name, concat(graph, joined, axis, f"{like}/all"))
    for node in [n for n in graph.nodes.values() if n.op == "AddN" and n.name not in side.rows]:
        mine, others = ([t for t in node.input if side.has(t) is wanted] for wanted in (True, False))
        if len(mine) > 1 and others and not any(t.startswith("^") for t in node.input):
            like = f"{node.name}/user"
            sums = [add_up(graph, tensors, like) for tensors in (mine, others)]
            graph.replace(node.name, add_up(graph, sums, f"{like}/all"))


def _split_products(graph: Graph, options: Options, side: Side) -> None:
    """concat([user, candidate]) times a matrix is the sum of two products."""
    for node in [n for n in graph.nodes.values() if n.op == "MatMul" and n.name not in side.rows]:
        joined = graph.made_by(node.input[0], "ConcatV2")
        table = table_of(graph, node.input[1])
        if joined is None or table is None or len(table.shape) != 2 or node.attr["transpose_a"].b:
            continue
        if table.dtype not in FLOATS or any(t.startswith("^") for t in [*node.input, *joined.input]):
            continue
        parts = list(joined.input[: joined.attr["N"].i])
        widths = [shape[1] if (shape := graph.shape(part)) and len(shape) == 2 else None for part in parts]
        if graph.scalar(joined.input[-1]) not in (1, -1) or None in widths:
            continue
        mine = [side.has(part) for part in parts]
        if not any(mine) or all(mine):
            continue
        value = value_of(graph, table)
        rows = value.T if node.attr["transpose_b"].b else value
        starts = np.concatenate([[0], np.cumsum([width or 0 for width in widths])])
        terms = []
        for wanted, what in ((True, "user"), (False, "others")):
            chosen = [i for i, is_mine in enumerate(mine) if is_mine is wanted]
            taken = np.concatenate([rows[starts[i] : starts[i + 1]] for i in chosen])
            like = f"{node.name}/{what}"
            fresh = new_table(graph, options, taken, table.dtype, like)
            matrix = fresh.constant or graph.variable(fresh.variable, f"{like}/read")
            left = concat(graph, [parts[i] for i in chosen], 1, like)
            terms.append(
                graph.add(
                    "MatMul",
                    [left, matrix],
                    f"{like}/product",
                    T=dtype_of(table.dtype),
                    transpose_a=False,
                    transpose_b=False,
                )
            )
        biased = _bias_of(graph, node, side)
        if biased is not None:
            bias = [terms[0], biased.input[1]]
            terms[0] = graph.add("BiasAdd", bias, f"{node.name}/user/bias", T=dtype_of(table.dtype))
        graph.replace((biased or node).name, add_up(graph, terms, f"{node.name}/split"))


def _bias_of(graph: Graph, product: Any, side: Side) -> Any | None:
    """What adds a bias to the product, if nobody else takes it: it is the user's once."""
    takers = graph.takers(product.name)
    if len(takers) != 1 or graph.is_output(product.name):
        return None
    ((taker, place),) = takers
    plain = taker.op == "BiasAdd" and place == 0 and len(taker.input) == 2
    known = plain and side.is_free(taker.input[1]) and taker.attr["data_format"].s in (b"", b"NHWC")
    return taker if known else None


# ---- runs of equal rows ---------------------------------------------------------------------------


def _runs(graph: Graph, inputs: list[str]) -> tuple[str, str]:
    """The first row of each run of equal rows, and for each row the number of its run."""
    like = "users"
    by_type: dict[int, list[str]] = defaultdict(list)
    for tensor in inputs:
        flat = _flat(graph, tensor, like)
        by_type[graph.dtype(flat)].append(flat)
    changed = [_changes(graph, concat(graph, tensors, 1, like), like) for tensors in by_type.values()]
    # Side by side, which wants as many rows of each.
    differs = changed[0] if len(changed) == 1 else _any(graph, pack(graph, changed, 1, like), like)
    # The first row begins a run; where there is no row, none does.
    first = graph.add("OnesLike", [_part(graph, differs, 0, 1, like)], f"{like}/first", T=dtype_of(10))
    begins = concat(graph, [first, _part(graph, differs, 1, None, like)], 0, like)
    places = reshape(graph, graph.add("Where", [begins], f"{like}/where", T=dtype_of(10)), [-1], like)
    counted = graph.add("Cast", [begins], f"{like}/counted", SrcT=dtype_of(10), DstT=INT32, Truncate=False)
    zero = graph.constant(np.int32(0), f"{like}/axis")
    numbers = graph.add(
        "Cumsum", [counted, zero], f"{like}/cumsum", T=INT32, Tidx=INT32, exclusive=False, reverse=False
    )
    one = graph.constant(np.int32(1), f"{like}/one")
    return places, binary(graph, "Sub", numbers, one, f"{like}/runs")


def _flat(graph: Graph, tensor: str, like: str) -> str:
    """[N, numbers in a row]. Of floats their bits as integers: 0.0 is not -0.0, and what is undefined is
    itself."""
    shape = graph.shape(tensor) or ()
    own = graph.dtype(tensor)
    if own in _BITS:
        bits = _BITS[own]
        tensor = graph.add("Bitcast", [tensor], f"{like}/bits", T=dtype_of(own), type=dtype_of(bits))
        shape = (*shape, 2) if own == _COMPLEX128 else shape
    if len(shape) == 2:
        return tensor
    if len(shape) == 1:
        axis = graph.constant(np.int32(1), f"{like}/axis")
        dtype = dtype_of(graph.dtype(tensor))
        return graph.add("ExpandDims", [tensor, axis], f"{like}/column", T=dtype, Tdim=INT32)
    return reshape(graph, tensor, [-1, int(np.prod([size or 0 for size in shape[1:]]))], like)


def _changes(graph: Graph, rows: str, like: str) -> str:
    """[N] of bool: which rows are not as the one before. The first is."""
    before = concat(
        graph, [_part(graph, rows, 0, 1, like), _part(graph, rows, 0, -1, like)], 0, f"{like}/before"
    )
    # Of no rows, x[:1] and x[:-1] are none; of one or more, together as many as x.
    differ = graph.add(
        "NotEqual",
        [rows, before],
        f"{like}/differ",
        T=dtype_of(graph.dtype(rows)),
        incompatible_shape_error=True,
    )
    return _any(graph, differ, like)


def _any(graph: Graph, flags: str, like: str) -> str:
    """[N]: which rows have one."""
    axis = graph.constant(np.int32(1), f"{like}/axis")
    return graph.add("Any", [flags, axis], f"{like}/any", Tidx=INT32, keep_dims=False)


def _part(graph: Graph, tensor: str, begin: int, end: int | None, like: str) -> str:
    """tensor[begin:end]"""
    ends = [
        graph.constant(np.array([value], np.int32), f"{like}/{what}")
        for what, value in (("begin", begin), ("end", end or 0), ("step", 1))
    ]
    return graph.add(
        "StridedSlice",
        [tensor, *ends],
        f"{like}/part",
        T=dtype_of(graph.dtype(tensor)),
        Index=INT32,
        begin_mask=0,
        end_mask=0 if end is not None else 1,
        ellipsis_mask=0,
        new_axis_mask=0,
        shrink_axis_mask=0,
    )


PASS = Pass("user", "computes the user's side once for each user (--user-input)", user)
