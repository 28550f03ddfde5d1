"""What XLA's auto-clustering makes of a graph: which nodes it compiles together, and which keep clusters
apart. Pure.

A node breaks a cluster when it is not compiled itself and compiled nodes lie before and after it, along the
data: what could be one cluster is two, with a way out of compiled code and back between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastserve.workshop.profiling.graph import Node

# What takes no time of its own, and what TensorFlow puts in between devices and around clusters.
_PLUMBING = frozenset(
    {
        "Const", "NoOp", "Identity", "IdentityN", "Placeholder", "PlaceholderWithDefault", "VarHandleOp",
        "ReadVariableOp", "Merge", "RefMerge", "Switch", "RefSwitch", "_XlaMerge", "_Arg", "_Retval", "_Send",
        "_Recv", "VariableV2", "_HostSend", "_HostRecv", "_SwitchN", "Snapshot", "StopGradient",
    }
)  # fmt: skip
_SHAPE_OF_VALUES = frozenset(
    {
        "Where", "Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2", "ListDiff",
        "NonMaxSuppressionV3", "NonMaxSuppressionV4", "NonMaxSuppressionV5", "CombinedNonMaxSuppression",
        "DynamicPartition", "RaggedRange", "RaggedTensorToTensor",
    }
)  # fmt: skip
# What TensorFlow runs a cluster by. All that it puts there has one name, up to a slash.
_CLUSTER_OPS = ("_XlaCompile", "_XlaRun", "XlaLaunch")


@dataclass(frozen=True, slots=True)
class Breaker:
    """A node that keeps clusters apart. `before`, `after`: how many compiled nodes its value depends on, and
    how many depend on it."""

    node: str
    label: str
    op: str
    why: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Clustering:
    """`inside`: the nodes that are compiled, in so many `clusters`; `outside`: those that are not. Plumbing
    is left out of both."""

    clusters: int
    inside: tuple[Node, ...]
    outside: tuple[Node, ...]
    breakers: tuple[Breaker, ...]


def read_clusters(plain: Sequence[Node], clustered: Sequence[Node]) -> Clustering:
    """`plain`: the graph without clusters, its own nodes and none that only a trace knows; `clustered`: the
    same in a session that clusters. A node of the first that the second has not is in a cluster."""
    clusters = {_first(node.name) for node in clustered if node.op.startswith(_CLUSTER_OPS)}
    left = {node.name for node in clustered if _first(node.name) not in clusters}
    real = [node for node in plain if node.op not in _PLUMBING]
    inside = tuple(node for node in real if clusters and node.name not in left)
    outside = tuple(node for node in real if not clusters or node.name in left)
    inputs = {node.name: node.inputs for node in plain}
    outputs: dict[str, list[str]] = {}
    for node in plain:
        for name in node.inputs:
            outputs.setdefault(name, []).append(node.name)
    compiled = {node.name for node in inside}
    breakers = []
    for node in outside:
        before = len(_reached(node.name, inputs) & compiled)
        after = len(_reached(node.name, outputs) & compiled)
        if before and after:
            why = why_not_compiled(node.op)
            breakers.append(Breaker(node.name, node.label, node.op, why, before, after))
    breakers.sort(key=lambda breaker: -min(breaker.before, breaker.after))
    return Clustering(len(clusters), inside, outside, tuple(breakers))


def _first(name: str) -> str:
    return name.partition("/")[0]


def why_not_compiled(op: str) -> str:
    """As far as the type of an op says it."""
    if (
        "String" in op
        or "Regex" in op
        or op in ("AsString", "Substr", "ReduceJoin", "Fingerprint", "DecodeRaw")
    ):
        return "works on strings, which XLA does not know"
    if "HashTable" in op or op.startswith("LookupTable"):
        return "looks into a table, which XLA does not know"
    if op.startswith(("Parse", "Decode")):
        return "parses bytes, which XLA does not know"
    if op in _SHAPE_OF_VALUES or op.startswith("Sparse"):
        return "the shape of its output depends on values"
    if op in ("LoopCond", "NextIteration", "Enter", "Exit"):
        return "is a loop's own control flow: XLA compiles what lies between"
    if op in ("PyFunc", "PyFuncStateless", "EagerPyFunc"):
        return "calls Python"
    if op.startswith("Assert") or op in ("CheckNumerics", "Print", "PrintV2"):
        return "checks or prints values"
    return "auto-clustering leaves it out"


def _reached(start: str, ways: Mapping[str, Iterable[str]]) -> set[str]:
    seen: set[str] = set()
    front = list(ways.get(start, ()))
    while front:
        name = front.pop()
        if name not in seen:
            seen.add(name)
            front.extend(ways.get(name, ()))
    return seen
