"""Gives the functions of a graph's library names that depend on the model's structure alone.

TensorFlow numbers functions by a counter of the exporting process, so that two exports of the same program
differ in nothing but names. Its compile cache counts names: only with names that are equal does a retrained
version find what an earlier one has compiled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_COUNTER = re.compile(r"(_\d+)+$")


def rename_functions(graph: Any) -> dict[str, str]:
    """Renames every function of `graph.library`, definition and uses. Returns new names by old ones.

    Functions are numbered as a walk from the graph's nodes meets them, then what the walk does not meet, in
    the library's order.
    """
    names = _numbered(graph)
    for node in graph.node:
        _rename_in_node(node, names)
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
        for value in function.attr.values():
            _rename_in_value(value, names)
        for node in function.node_def:
            _rename_in_node(node, names)
    for gradient in graph.library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)
    for registered in graph.library.registered_gradients:
        registered.gradient_func = names.get(registered.gradient_func, registered.gradient_func)
    return names


def _numbered(graph: Any) -> dict[str, str]:
    functions = {function.signature.name: function for function in graph.library.function}
    names: dict[str, str] = {}

    def visit(nodes: Iterable[Any]) -> None:
        # A stack of iterators: libraries nest deeper than Python's own stack likes.
        walks = [_functions_in(nodes)]
        while walks:
            name = next(walks[-1], None)
            if name is None:
                walks.pop()
            elif name in functions and name not in names:
                names[name] = f"{_COUNTER.sub('', name)}__f{len(names)}"
                walks.append(_functions_in(functions[name].node_def))

    visit(graph.node)
    for function in graph.library.function:
        name = function.signature.name
        if name not in names:
            names[name] = f"{_COUNTER.sub('', name)}__f{len(names)}"
            visit(function.node_def)
    return names


def _functions_in(nodes: Iterable[Any]) -> Iterator[str]:
    """Names that may be functions', in an order that the nodes' own order fixes."""
    for node in nodes:
        yield node.op
        for _, value in sorted(node.attr.items()):
            yield from _functions_of(value)


def _referred(value: Any) -> list[Any]:
    """The functions that an attribute names: NameAttrLists."""
    kind = value.WhichOneof("value")
    if kind == "func":
        return [value.func]
    return list(value.list.func) if kind == "list" else []


def _functions_of(value: Any) -> Iterator[str]:
    for function in _referred(value):
        yield function.name
        for _, inner in sorted(function.attr.items()):
            yield from _functions_of(inner)


def _rename_in_node(node: Any, names: dict[str, str]) -> None:
    node.op = names.get(node.op, node.op)
    for value in node.attr.values():
        _rename_in_value(value, names)


def _rename_in_value(value: Any, names: dict[str, str]) -> None:
    for function in _referred(value):
        function.name = names.get(function.name, function.name)
        for inner in function.attr.values():
            _rename_in_value(inner, names)
