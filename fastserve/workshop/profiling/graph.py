"""The graph that ran, as RunMetadata has it: nodes with their inputs, under names that people know. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastserve.protos import message
from fastserve.workshop.profiling.names import op_type, readable
from fastserve.workshop.profiling.steps import OpRun

_INPUTS = re.compile(r"= \w+\((.*)\)$")


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `inputs`: names of nodes, control inputs left out. `label`: as its author knows it."""

    name: str
    op: str
    inputs: tuple[str, ...]
    label: str


def read_nodes(metadata: bytes) -> list[Node]:
    """The nodes of all devices' graphs in a serialized RunMetadata, after TensorFlow's rewrites. Functions
    that were not put into the graph are not there: see with_traced."""
    told = message("tensorflow.RunMetadata").FromString(metadata)
    return [
        Node(
            node.name,
            op_type(node.op),
            _inputs(node.input),
            readable(node.name, node.experimental_debug_info.original_func_names),
        )
        for graph in told.partition_graphs
        for node in graph.node
    ]


def with_traced(nodes: Sequence[Node], ops: Iterable[OpRun]) -> list[Node]:
    """The nodes, and those that ran inside functions, which only the trace knows."""
    known = {node.name for node in nodes}
    made = list(nodes)
    for op in ops:
        if op.node not in known:
            known.add(op.node)
            found = _INPUTS.search(op.says)
            inputs = found[1].split(", ") if found and found[1] else []
            made.append(Node(op.node, op.op, _inputs(inputs), readable(op.node)))
    return made


def _inputs(references: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.partition(":")[0] for name in references if not name.startswith("^"))
