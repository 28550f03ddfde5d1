"""crosses: crosses of integer columns become arithmetic, all of a kind at once.

SparseCross makes sparse tensors and goes through them number by number. What it computes of integers is
TensorFlow's FingerprintCat64, column after column from the hash key on, modulo the number of buckets: exact
in 64 bits without a sign. Only crosses of dense columns [N, 1] are taken, as feature columns' are after
`columns`; of strings they stay.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, dtype_of, spelled
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.rows import Rows
from fastserve.workshop.passes.sizes import Size
from fastserve.workshop.passes.tables import INT64, binary, pack, reshape

# Of core/platform/fingerprint.h.
_TIMES, _SHIFT = 0xC6A4A7935BD1E995, 47
_UINT64, _DT_INT64 = dtype_of(23), 9


def crosses(graph: Graph, _: Options) -> int:
    found = [node for node in graph.nodes.values() if _is_known(graph, node)]
    for nodes in _together(graph, found):
        for node, ids in zip(nodes, _ids(graph, nodes), strict=True):
            graph.replace(spelled(node.name, 1), ids)
            _straighten(graph, ids)
    if found:
        graph.prune()
    return len(found)


def _together(graph: Graph, nodes: list[Any]) -> list[list[Any]]:
    """Those that can be computed at once: of as many columns, of as many rows, and none by way of another."""
    rows = Rows(graph, nodes)
    groups: dict[tuple[int, Size | None], list[Any]] = defaultdict(list)
    alone = []
    for node in nodes:
        group = groups[len(node.input), rows.of(node.input[0])]
        behind = graph.ancestors(node.input)
        if any(other.name in behind or node.name in graph.ancestors(other.input) for other in group):
            alone.append([node])
        else:
            group.append(node)
    return [*groups.values(), *alone]


def _is_known(graph: Graph, node: Any) -> bool:
    if node.op != "SparseCross" or node.attr["N"].i or not node.input:
        return False
    if any(tensor.startswith("^") for tensor in node.input):
        return False
    if not node.attr["hashed_output"].b or node.attr["num_buckets"].i < 1:
        return False
    if not all(graph.dtype(tensor) == _DT_INT64 and _is_column(graph.shape(tensor)) for tensor in node.input):
        return False
    indices, values, shape = (_is_taken(graph, spelled(node.name, place)) for place in range(3))
    return values and not indices and not shape


def _is_taken(graph: Graph, tensor: str) -> bool:
    return bool(graph.consumers(tensor)) or graph.is_output(tensor)


def _is_column(shape: tuple[int | None, ...] | None) -> bool:
    return shape is not None and len(shape) == 2 and shape[1] == 1


def _ids(graph: Graph, nodes: list[Any]) -> list[str]:
    """Of crosses of as many columns each: [N]. Within, a row is a cross: so nothing is copied to part
    them."""
    like = f"{nodes[0].name}/crosses"
    count = len(nodes[0].input)
    columns = [_flat(graph, node.input[place], like) for place in range(count) for node in nodes]
    numbers = graph.add("Bitcast", [pack(graph, columns, 0, like)], f"{like}/bits", T=INT64, type=_UINT64)
    mixed = _times(graph, _shifted(graph, _times(graph, numbers, like), like), like)
    parts = [mixed]
    if count > 1:
        axis = graph.constant(np.int32(0), f"{like}/axis")
        split = graph.add("Split", [axis, mixed], f"{like}/split", num_split=count, T=_UINT64)
        parts = [spelled(split, place) for place in range(count)]
    made = _of_each(graph, [node.attr["hash_key"].i for node in nodes], f"{like}/key")
    for part in parts:
        made = binary(graph, "BitwiseXor", made, _number(graph, _TIMES, like), like)
        made = _times(graph, binary(graph, "BitwiseXor", part, made, like), like)
        made = _shifted(graph, _times(graph, _shifted(graph, made, like), like), like)
    buckets = _of_each(graph, [node.attr["num_buckets"].i for node in nodes], f"{like}/buckets")
    ids = binary(graph, "FloorMod", made, buckets, f"{like}/buckets")
    signed = graph.add("Cast", [ids], f"{like}/ids", SrcT=_UINT64, DstT=INT64, Truncate=False)
    apart = graph.add("Unpack", [signed], f"{like}/each", num=len(nodes), T=INT64, axis=0)
    return [spelled(apart, place) for place in range(len(nodes))]


def _flat(graph: Graph, tensor: str, like: str) -> str:
    """[N] of [N, 1]."""
    column = graph.made_by(tensor, "ExpandDims")
    if column is not None and graph.rank(column.input[0]) == 1 and len(column.input) == 2:
        return str(column.input[0])
    return reshape(graph, tensor, [-1], like)


def _straighten(graph: Graph, ids: str) -> None:
    """Who takes them as [N] after they were [N, 1] takes them as they are."""
    for column, _ in graph.takers(ids):
        if column.op == "Reshape":
            for flat, _ in graph.takers(column.name):
                wanted = graph.value(flat.input[1]) if flat.op == "Reshape" else None
                if wanted is not None and wanted.tolist() == [-1]:
                    graph.replace(flat.name, ids)


def _of_each(graph: Graph, values: list[int], like: str) -> str:
    """One number where all are alike, else one for each row."""
    array = np.array(values, np.int64).view(np.uint64)
    return graph.constant(array[0] if len(set(values)) == 1 else array[:, None], like)


def _number(graph: Graph, value: int, like: str) -> str:
    return graph.constant(np.uint64(value), f"{like}/number")


def _times(graph: Graph, tensor: str, like: str) -> str:
    return binary(graph, "Mul", tensor, _number(graph, _TIMES, like), f"{like}/times")


def _shifted(graph: Graph, tensor: str, like: str) -> str:
    """x ^ (x >> 47)"""
    high = binary(graph, "RightShift", tensor, _number(graph, _SHIFT, like), f"{like}/high")
    return binary(graph, "BitwiseXor", tensor, high, f"{like}/shifted")


PASS = Pass("crosses", "crosses of integers become arithmetic", crosses)
