"""Which tf.Examples an input takes: what the ops that parse them look for, read from the graph.

Serialized examples go from a signature's input, through function calls, to ops of the ParseExample family.
Their keys are constants of the graph, or of the function that the op is in, or handed to it by its callers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.protos import message
from fastserve.savedmodel.signature import Feature

_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_PASSED_ON = ("Identity", "Reshape", "PlaceholderWithDefault", "StopGradient", "Squeeze", "ExpandDims")
# Functions within functions deeper than this are not looked into.
_DEPTH = 64


def find_features(graph: Any, tensor: str) -> tuple[Feature, ...]:
    """What the graph looks for in the examples that are fed as `tensor`, by name; empty where it parses none,
    or in a way that is not known here."""
    functions = {function.signature.name: function for function in graph.library.function}
    scope = _Scope({node.name: node for node in graph.node}, (), None, ())
    found: dict[str, Feature] = {}
    for node, inside in _parsers(scope, _source(tensor), functions, _DEPTH):
        for feature in _features(node, inside):
            found.setdefault(feature.name, feature)
    return tuple(found[name] for name in sorted(found))


@dataclass(frozen=True, slots=True)
class _Scope:
    """The graph, or one call of a function: `inputs` are what the caller gives for `arguments`."""

    nodes: dict[str, Any]
    arguments: Sequence[str]
    caller: _Scope | None
    inputs: Sequence[str]


def _source(reference: str) -> tuple[str, int]:
    """Whose output it is, and which: "node:1", "node" for the first; in functions "node:name:1" or an
    argument."""
    name, _, index = reference.partition(":")
    return name, int(index.rpartition(":")[2] or 0)


def _parsers(
    scope: _Scope, source: tuple[str, int], functions: dict[str, Any], depth: int
) -> Iterator[tuple[Any, _Scope]]:
    """The ops that parse what comes from `source`, each with the scope that it is in."""
    if depth == 0:
        return
    for node in scope.nodes.values():
        for position, reference in enumerate(node.input):
            if reference.startswith("^") or _source(reference) != source:
                continue
            called = functions.get(node.attr["f"].func.name if node.op in _CALLS else node.op)
            if called is not None:
                arguments = [argument.name for argument in called.signature.input_arg]
                inside = _Scope(
                    {inner.name: inner for inner in called.node_def}, arguments, scope, node.input
                )
                if position < len(arguments):
                    yield from _parsers(inside, (arguments[position], 0), functions, depth - 1)
            elif position == 0 and node.op in ("ParseExample", "ParseExampleV2"):
                yield node, scope
            elif position == 0 and node.op in _PASSED_ON:
                yield from _parsers(scope, (node.name, 0), functions, depth - 1)


def _features(node: Any, scope: _Scope) -> Iterator[Feature]:
    """What one op looks for. Its inputs are the examples, their names, and the keys: sparse, dense and ragged
    ones, each a tensor of its own in the first version and one for each kind in the second."""
    attr = node.attr
    if node.op == "ParseExample":
        sparse_end = 2 + attr["Nsparse"].i
        sparse = _keys(node.input[2:sparse_end], scope)
        dense = _keys(node.input[sparse_end : sparse_end + attr["Ndense"].i], scope)
        ragged: list[str] = []
    else:
        sparse, dense, ragged = (_keys(node.input[at : at + 1], scope) for at in (2, 3, 4))
    kinds = (
        (sparse, attr["sparse_types"].list.type, None),
        (ragged, attr["ragged_value_types"].list.type, None),
        (dense, attr["Tdense"].list.type, attr["dense_shapes"].list.shape),
    )
    for names, types, shapes in kinds:
        for index, (name, dtype) in enumerate(zip(names, types, strict=False)):
            yield Feature(name, dtype, None if shapes is None else _values(shapes[index]))


def _values(shape: Any) -> int:
    """How many values a dense feature has; of a dimension of any size the smallest that is not empty."""
    return math.prod(dim.size if dim.size >= 0 else 1 for dim in shape.dim)


def _keys(references: Sequence[str], scope: _Scope) -> list[str]:
    """The strings in constants; none where one of them is no constant."""
    keys: list[str] = []
    for reference in references:
        tensor = _constant(reference, scope)
        if tensor is None:
            return []
        keys.extend(key.decode("utf-8", "replace") for key in tensor.string_val)
    return keys


def _constant(reference: str, scope: _Scope) -> Any:
    """The TensorProto that a reference stands for; None where it is computed."""
    name, _ = _source(reference)
    for _ in range(_DEPTH):
        node = scope.nodes.get(name)
        if node is None:
            if scope.caller is None or name not in scope.arguments:
                return None
            name, _ = _source(scope.inputs[scope.arguments.index(name)])
            scope = scope.caller
        elif node.op == "Identity":
            name, _ = _source(node.input[0])
        elif node.op == "Const":
            return message("tensorflow.TensorProto").FromString(node.attr["value"].tensor)
        else:
            return None
    return None
