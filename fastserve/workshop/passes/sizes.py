"""Sizes as graphs compute them, followed as symbols: which reshapes change nothing, which sizes are known.

A vector of sizes is a list of numbers and of ("dim", tensor, axis): the size of `tensor` along `axis`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve.workshop.optimizing.graph import Graph, dtype_of, split

Size = int | tuple[str, str, int]

_PASSES_ON = ("Cast", "Identity", "Squeeze", "ExpandDims")
# As many rows as the first input, where a second one has fewer dimensions.
_ROWS_KEPT = (
    "Cast",
    "Identity",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
    "FloorMod",
    "NotEqual",
    "AsString",
    "StringToHashBucketFast",
)


def sizes(graph: Graph, tensor: str) -> list[Size] | None:
    """What a tensor of sizes holds (a scalar is a list of one); None where that cannot be said."""
    tensor = graph.source(tensor)
    value = graph.value(tensor)
    if value is not None:
        return [int(item) for item in value.flat] if value.dtype.kind in "iu" and value.ndim <= 1 else None
    name, place = split(tensor)
    node = graph.nodes[name]
    known = None
    if node.op == "Shape":
        known = shape(graph, node.input[0])
    elif node.op == "SparseReshape" and place == 1:
        known = _reshaped(graph, node)
    elif node.op == "SparseCross" and place == 2:
        known = _crossed(graph, node)
    elif node.op in _PASSES_ON or node.op == "Reshape":
        known = sizes(graph, node.input[0])
    elif node.op in ("Pack", "ConcatV2"):
        parts = [sizes(graph, item) for item in graph.arguments(node)[: node.attr["N"].i]]
        known = None if any(p is None for p in parts) else [size for p in parts for size in p or ()]
    elif node.op == "Prod":
        known = _product(sizes(graph, node.input[0]))
    elif node.op in ("GatherV2", "Slice", "StridedSlice"):
        known = _selected(graph, node)
    return known


def shape(graph: Graph, tensor: str) -> list[Size] | None:
    """The shape of a tensor; None when its rank is not known."""
    tensor = graph.source(tensor)
    static = graph.shape(tensor)
    if static is None:
        return None
    return [size if size is not None else _unknown(graph, tensor, axis) for axis, size in enumerate(static)]


def _unknown(graph: Graph, tensor: str, axis: int) -> Size:
    """A size that is not known: named by the tensor it comes from, where ops keep their rows."""
    while axis == 0 and (position := _rows_from(graph, graph.producer(tensor))) is not None:
        tensor = graph.source(graph.producer(tensor).input[position])
    return ("dim", tensor, axis)


def _rows_from(graph: Graph, node: Any) -> int | None:
    """The input that has as many rows as what a node gives; None where that cannot be said."""
    if node.op in ("GatherV2", "ResourceGather"):
        return 1 if _looks_up(graph, node) else None
    return 0 if _keeps_rows(graph, node) else None


def _looks_up(graph: Graph, node: Any) -> bool:
    """Whether it gives something for each of its ids, which are not one alone."""
    on_rows = node.op == "ResourceGather" or graph.scalar(node.input[2]) == 0
    return on_rows and node.attr["batch_dims"].i == 0 and bool(graph.rank(node.input[1]))


def _keeps_rows(graph: Graph, node: Any) -> bool:
    """Whether what a node gives has as many rows as its first input."""
    if node.op in ("ExpandDims", "Squeeze"):
        return _keeps_first(graph, node)
    if node.op == "StridedSlice":
        return all_rows(graph, node)
    if node.op == "Reshape":
        return _same_width(graph.shape(node.input[0]), graph.shape(node.name))
    if node.op == "MatMul":
        return not node.attr["transpose_a"].b
    if node.op in ("AddN", "BiasAdd"):
        return True
    if node.op in ("Pack", "Unpack"):
        return bool(node.attr["axis"].i > 0)
    if node.op not in _ROWS_KEPT or graph.rank(node.input[0]) is None:
        return False
    ranks = [graph.rank(tensor) for tensor in graph.arguments(node)]
    own = graph.rank(node.name)
    return ranks[0] == own and all(rank is not None and own is not None and rank < own for rank in ranks[1:])


def _same_width(old: tuple[int | None, ...] | None, new: tuple[int | None, ...] | None) -> bool:
    """Whether rows of both hold as many numbers, if that is known."""
    if not old or not new or None in old[1:] or None in new[1:]:
        return False
    numbers = [int(np.prod([size or 0 for size in each[1:]], dtype=np.int64)) for each in (old, new)]
    return numbers[0] == numbers[1] > 0


def all_rows(graph: Graph, node: Any) -> bool:
    """Whether a slice is x[:, ...]."""
    steps = graph.value(node.input[3])
    masks = [node.attr[key].i for key in ("begin_mask", "end_mask")]
    odd = [node.attr[key].i for key in ("ellipsis_mask", "new_axis_mask")]
    shrunk = node.attr["shrink_axis_mask"].i & 1
    return (
        steps is not None
        and steps.size > 0
        and steps.flat[0] == 1
        and all(mask & 1 for mask in masks)
        and not any(odd)
        and not shrunk
    )


def _keeps_first(graph: Graph, node: Any) -> bool:
    if node.op == "ExpandDims":
        axis = graph.scalar(node.input[1])
        return axis is not None and axis != 0 and (axis > 0 or -axis <= (graph.rank(node.input[0]) or 0))
    axes = list(node.attr["squeeze_dims"].list.i)
    return bool(axes) and all(axis > 0 for axis in axes)


def _product(factors: list[Size] | None) -> list[Size] | None:
    if factors is None:
        return None
    number, symbols = 1, []
    for factor in factors:
        if isinstance(factor, int):
            number *= factor
        else:
            symbols.append(factor)
    if not symbols:
        return [number]
    return [symbols[0]] if number == 1 and len(symbols) == 1 else None


def _reshaped(graph: Graph, node: Any) -> list[Size] | None:
    """The new shape of a SparseReshape, its -1 filled in."""
    old, new = sizes(graph, node.input[1]), sizes(graph, node.input[2])
    if old is None or new is None or -1 not in new:
        return new
    rest = [size for size in new if size != -1]
    left = list(old)
    for size in rest:
        if size not in left:
            return None
        left.remove(size)
    filled = _product(left)
    return None if filled is None else [filled[0] if size == -1 else size for size in new]


def _crossed(graph: Graph, node: Any) -> list[Size] | None:
    """Of a SparseCross, which has the rows of its inputs."""
    count = node.attr["N"].i
    tensors = graph.arguments(node)
    first = sizes(graph, tensors[2 * count]) if count else shape(graph, tensors[0])
    return None if not first else [first[0], ("dim", f"{node.name}:2", 1)]


def _selected(graph: Graph, node: Any) -> list[Size] | None:
    known = sizes(graph, node.input[0])
    if known is None:
        return None
    rest = [graph.value(tensor) for tensor in graph.arguments(node)[1:]]
    if any(value is None or value.dtype.kind not in "iu" for value in rest):
        return None
    numbers = [[int(item) for item in value.flat] for value in rest if value is not None]
    if node.op == "GatherV2":
        picked = numbers[0]
        return [known[i] for i in picked] if all(0 <= i < len(known) for i in picked) else None
    if node.op == "Slice":
        (begin,), (size,) = numbers[0], numbers[1]
        return known[begin:] if size == -1 else known[begin : begin + size]
    begins, ends, steps = numbers
    attributes = {key: node.attr[key].i for key in node.attr if key.endswith("_mask")}
    if len(begins) != 1 or steps != [1] or attributes.get("ellipsis_mask") or attributes.get("new_axis_mask"):
        return None
    if attributes.get("shrink_axis_mask"):
        return [known[begins[0]]] if -len(known) <= begins[0] < len(known) else None
    first = None if attributes.get("begin_mask") else begins[0]
    last = None if attributes.get("end_mask") else ends[0]
    return known[first:last]


def drop_reshapes(graph: Graph) -> int:
    """Takes away reshapes to the shape that a tensor has already."""
    changes = 0
    for node in [node for node in graph.nodes.values() if node.op == "Reshape"]:
        if any(tensor.startswith("^") for tensor in node.input) or not graph.is_taken(node):
            continue
        old, new = shape(graph, node.input[0]), sizes(graph, node.input[1])
        if old is None or new is None or len(old) != len(new):
            continue
        # One size may be left to be inferred, or be another name of the one that is not known.
        unsure = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        if len(unsure) <= 1 and all(new[i] == -1 for i in unsure):
            graph.replace(node.name, node.input[0])
            changes += 1
    return changes


def known_sizes(graph: Graph) -> int:
    """Makes constants of single sizes that are known, taken from shapes of which not all is."""
    changes = 0
    for node in [n for n in graph.nodes.values() if n.op in ("StridedSlice", "Slice", "GatherV2", "Prod")]:
        if graph.value(node.input[0]) is not None or not graph.is_taken(node):
            continue
        dtype = graph.dtype(node.name)
        static = graph.shape(node.name)
        if dtype not in (3, 9) or static is None or None in static or len(static) > 1:
            continue
        if any(tensor.startswith("^") for tensor in node.input):
            continue
        known = sizes(graph, node.name)
        if known is not None and all(isinstance(size, int) and size >= 0 for size in known):
            array = np.array(known, np.int32 if dtype == 3 else np.int64).reshape(
                [int(d or 0) for d in static]
            )
            graph.replace(node.name, graph.constant(array, f"{node.name}/known", dtype_of(dtype)))
            changes += 1
    return changes
