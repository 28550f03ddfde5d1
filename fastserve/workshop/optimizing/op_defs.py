"""What an op's definition says of a node: its outputs, their types, whether running it has effects.

Used by the flat graph and by what turns functions into graphs and back. Imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DT_STRING, DT_RESOURCE, DT_VARIANT = 7, 20, 21
# Stateful by their definition, and yet they change nothing and give the same twice: they read.
_READS = frozenset(
    {
        "AnonymousHashTable", "HashTableV2", "LookupTableFindV2", "LookupTableSizeV2",
        "MutableDenseHashTableV2", "MutableHashTableOfTensorsV2", "MutableHashTableV2", "Placeholder",
        "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp", "VariableShape", "_Arg",
        "_Retval",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """`arg`: its name in the definition; `place`: which of that argument's tensors; `dtype`: a DataType."""

    arg: str
    place: int
    dtype: int


def definition(node: Any, library: Mapping[str, Any]) -> Any:
    """The OpDef of a node, which may be a function's. LookupError when nobody has defined it."""
    from tensorflow.python.framework import op_def_registry

    if node.op in library:
        return library[node.op].signature
    found = op_def_registry.get(node.op)
    if found is None:
        raise LookupError(node.op)
    return found


def fill_in_defaults(node: Any, library: Mapping[str, Any]) -> None:
    """Gives the node the attributes that files leave out: those that are as in the op's definition."""
    for attribute in definition(node, library).attr:
        if attribute.name not in node.attr and attribute.HasField("default_value"):
            node.attr[attribute.name].CopyFrom(attribute.default_value)


def outputs(node: Any, library: Mapping[str, Any]) -> list[Output]:
    """The node's outputs in their order."""
    return [output for arg in definition(node, library).output_arg for output in _tensors(arg, node)]


def _tensors(arg: Any, node: Any) -> list[Output]:
    if arg.type_list_attr:
        types = list(node.attr[arg.type_list_attr].list.type)
    else:
        dtype = arg.type or node.attr[arg.type_attr].type
        types = [dtype] * (node.attr[arg.number_attr].i if arg.number_attr else 1)
    return [Output(arg.name, place, dtype) for place, dtype in enumerate(types)]


def has_effects(node: Any, library: Mapping[str, Any]) -> bool:
    """Whether running the node once more, or not at all, could be noticed: it writes, draws a random number,
    checks, prints, or calls a function of which that is not known."""
    return node.op not in _READS and bool(definition(node, library).is_stateful)
