"""Between which numbers an integer tensor lies, as far as the graph shows it."""

from __future__ import annotations

from typing import Any

from fastserve.workshop.optimizing.graph import Graph, split

_WHOLE = ("ExpandDims", "GatherNd", "Reshape", "Squeeze", "Transpose", "Unpack")
_HASHES = ("StringToHashBucket", "StringToHashBucketFast", "StringToHashBucketStrong")
# Of integer types, what can be held.
_HELD = {1: None, 3: (-(1 << 31), (1 << 31) - 1), 4: (0, 255), 5: (-(1 << 15), (1 << 15) - 1),
         6: (-128, 127), 9: (-(1 << 63), (1 << 63) - 1), 10: (0, 1), 17: (0, (1 << 16) - 1),
         23: (0, (1 << 64) - 1)}  # fmt: skip
Range = tuple[int, int]


def bounds(graph: Graph, tensor: str, depth: int = 32) -> Range | None:
    """The least and the greatest that `tensor` may hold; None when that is not known."""
    tensor = graph.source(tensor)
    value = graph.value(tensor)
    if value is not None:
        if value.dtype.kind not in "iub" or value.size == 0:
            return None
        return int(value.min()), int(value.max())
    name, place = split(tensor)
    node = graph.nodes[name]
    if depth == 0:
        return None
    arguments = graph.arguments(node)

    def of(position: int) -> Range | None:
        return bounds(graph, arguments[position], depth - 1)

    if node.op in _HASHES:
        return 0, node.attr["num_buckets"].i - 1
    if node.op == "SparseCross" and place == 1 and node.attr["num_buckets"].i > 0:
        return 0, node.attr["num_buckets"].i - 1
    if node.op == "Bucketize":
        return 0, len(node.attr["boundaries"].list.f)
    if node.op == "FloorMod":
        by = of(1)
        return (0, by[1] - 1) if by is not None and by[0] > 0 else None
    if node.op in _WHOLE:
        return of(0)
    if node.op == "Cast":
        return _cast(node, of(0))
    if node.op in ("GatherV2", "StridedSlice", "Slice"):
        return of(0)
    if node.op in ("Pack", "ConcatV2"):
        return _hull([of(i) for i in range(node.attr["N"].i)])
    if node.op in ("Select", "SelectV2"):
        return _hull([of(1), of(2)])
    if node.op == "ClipByValue":
        low, high = of(1), of(2)
        return None if low is None or high is None or low[1] > high[0] else (low[0], high[1])
    if node.op in ("Maximum", "Minimum", "AddV2", "Add", "Sub", "Mul"):
        return _arithmetic(graph, node, of(0), of(1))
    return None


def _cast(node: Any, inner: Range | None) -> Range | None:
    source, target = _HELD.get(node.attr["SrcT"].type), _HELD.get(node.attr["DstT"].type)
    inner = inner or (source if node.attr["SrcT"].type in (4, 5, 6, 10, 17) else None)
    if inner is None or source is None or target is None:
        return None
    return inner if target[0] <= inner[0] and inner[1] <= target[1] else None


def _hull(ranges: list[Range | None]) -> Range | None:
    known = [each for each in ranges if each is not None]
    if len(known) != len(ranges) or not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _arithmetic(graph: Graph, node: Any, a: Range | None, b: Range | None) -> Range | None:
    held = _HELD.get(graph.dtype(node.name))
    if held is None:
        return None
    # One side is enough to bound from one side, if the type bounds the other.
    if node.op == "Maximum" and (a or b):
        a, b = a or held, b or held
        return max(a[0], b[0]), max(a[1], b[1])
    if node.op == "Minimum" and (a or b):
        a, b = a or held, b or held
        return min(a[0], b[0]), min(a[1], b[1])
    if a is None or b is None:
        return None
    if node.op in ("AddV2", "Add"):
        made = a[0] + b[0], a[1] + b[1]
    elif node.op == "Sub":
        made = a[0] - b[1], a[1] - b[0]
    else:
        products = [x * y for x in a for y in b]
        made = min(products), max(products)
    return made if held[0] <= made[0] and made[1] <= held[1] else None


def within(graph: Graph, tensor: str, rows: int) -> bool:
    """Whether all of `tensor` are rows of a table of so many."""
    found = bounds(graph, tensor)
    return found is not None and found[0] >= 0 and found[1] < rows
