"""Functions into flat graphs, and flat graphs into functions.

A signature of TensorFlow 2 is a call of a function, which calls others; passes want one graph. What they have
made of it becomes one function again, for servers and XLA to find as they would find the original. Calls that
mean something, such as those that XLA must compile, are left as they are. Imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing import op_defs
from fastserve.workshop.optimizing.graph import Graph, canonical, spelled, split

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Of nodes, that say nothing once nodes have moved.
_STALE = ("_class", "_output_shapes", "_has_manual_control_dependencies", "_collective_manager_ids")


class Inliner:
    """Replaces calls by what is called. `shapes`: what the functions knew of tensors' shapes. `done`: by
    call, the node that stands for its end."""

    def __init__(self, nodes: Iterable[Any], library: Mapping[str, Any]) -> None:
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.done: dict[str, str] = {}
        self._library = library
        self._stands_for: dict[str, str] = {}

    def run(self) -> None:
        waiting = list(self.nodes.values())
        for node in waiting:
            op_defs.fill_in_defaults(node, self._library)
        while waiting:
            node = waiting.pop()
            called = _called(node, self._library)
            if called is None:
                continue
            waiting += self._expand(node, self._library[called])
        for node in self.nodes.values():
            self._rewire(node)

    def tensor(self, tensor: str) -> str:
        """What stands for a tensor of the graph as it was."""
        if tensor.startswith("^"):
            name = tensor[1:]
            return f"^{self.done[name]}" if name in self.done else tensor
        tensor = canonical(tensor)
        while tensor in self._stands_for:
            tensor = self._stands_for[tensor]
        return tensor

    def _rewire(self, node: Any) -> None:
        fresh = [self.tensor(tensor) for tensor in node.input]
        data = [tensor for tensor in fresh if not tensor.startswith("^")]
        control = dict.fromkeys(tensor for tensor in fresh if tensor.startswith("^"))
        del node.input[:]
        node.input.extend([*data, *control])

    def _expand(self, call: Any, function: Any) -> list[Any]:
        """Puts the body in the place of the call. The body's nodes."""
        del self.nodes[call.name]
        arguments = Graph.arguments(call)
        controls = [tensor for tensor in call.input if tensor.startswith("^")]
        local = {arg.name: arguments[i] for i, arg in enumerate(function.signature.input_arg)}
        names = {node.name: self._free(f"{call.name}/{node.name}") for node in function.node_def}
        made = []
        for inner in function.node_def:
            node = type(inner)()
            node.CopyFrom(inner)
            node.name = names[inner.name]
            _fill_in(node, call)
            op_defs.fill_in_defaults(node, self._library)
            for place, output in enumerate(op_defs.outputs(node, self._library)):
                local[f"{inner.name}:{output.arg}:{output.place}"] = spelled(node.name, place)
            self._remember_shapes(node)
            made.append(node)
        gate = self._no_op(f"{call.name}/begin", controls) if controls else ""
        for node in made:
            fresh = [
                f"^{names[tensor[1:]]}" if tensor.startswith("^") else local[_full(tensor)]
                for tensor in node.input
            ]
            del node.input[:]
            node.input.extend([*fresh, *([f"^{gate}"] if gate else [])])
            self.nodes[node.name] = node
        for place, arg in enumerate(function.signature.output_arg):
            self._stands_for[spelled(call.name, place)] = canonical(local[_full(function.ret[arg.name])])
        ends = [f"^{names[node]}" for node in function.control_ret.values()]
        self.done[call.name] = self._no_op(f"{call.name}/end", [*ends, *([f"^{gate}"] if gate else [])])
        return made

    def _no_op(self, name: str, controls: list[str]) -> str:
        from tensorflow.core.framework import node_def_pb2

        node = node_def_pb2.NodeDef(name=self._free(name), op="NoOp", input=controls)
        self.nodes[node.name] = node
        return str(node.name)

    def _free(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.nodes:
            number += 1
            name = f"{wanted}_{number}"
        return name

    def _remember_shapes(self, node: Any) -> None:
        if "_output_shapes" in node.attr:
            for place, shape in enumerate(node.attr["_output_shapes"].list.shape):
                if not shape.unknown_rank:
                    sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
                    self.shapes[spelled(node.name, place)] = sizes


def _called(node: Any, library: Mapping[str, Any]) -> str | None:
    """The function that a node calls, if it may stand in its place."""
    name = node.op if node.op in library else node.attr["f"].func.name if node.op in _CALLS else ""
    if name not in library:
        return None
    means_something = (
        node.attr["_XlaMustCompile"].b if "_XlaMustCompile" in node.attr else False,
        "_XlaMustCompile" in library[name].attr and library[name].attr["_XlaMustCompile"].b,
        "api_implements" in library[name].attr,
        "_tpu_replicate" in node.attr,
    )
    return None if any(means_something) else str(name)


def _full(tensor: str) -> str:
    """ "node:out" is "node:out:0", in functions."""
    return f"{tensor}:0" if tensor.count(":") == 1 else tensor


def _fill_in(node: Any, call: Any) -> None:
    """Attributes that the call decides."""
    for key, value in node.attr.items():
        if value.WhichOneof("value") == "placeholder":
            if value.placeholder not in call.attr:
                raise WorkshopError(f"the graph cannot be read: {node.name} lacks its attribute {key}")
            value.CopyFrom(call.attr[value.placeholder])


def forget_stale(node: Any) -> None:
    """Drops attributes that name other nodes, or are about the graph as it was."""
    for key in _STALE:
        if key in node.attr:
            del node.attr[key]


def reachable(names: Iterable[str], library: Mapping[str, Any]) -> set[str]:
    """The functions of these names, and what they refer to."""
    found: set[str] = set()
    waiting = [name for name in names if name in library]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for node in library[name].node_def for other in mentioned(node, library)]
    return found


def mentioned(node: Any, library: Mapping[str, Any]) -> Iterator[str]:
    """Functions that a node names: as its op, or in its attributes."""
    if node.op in library:
        yield node.op
    for value in node.attr.values():
        for function in (
            [value.func, *value.list.func] if value.WhichOneof("value") in ("func", "list") else ()
        ):
            if function.name in library:
                yield function.name


def as_function(graph: Graph, name: str, arguments: list[str], outputs: list[str]) -> Any:
    """The graph as a FunctionDef. `arguments`: names of nodes that are given by the caller. Outputs wait for
    the effects, as in TensorFlow's own exports: loaders drop what no output waits for."""
    from tensorflow.core.framework import function_pb2

    made = function_pb2.FunctionDef()
    made.signature.name = name
    local: dict[str, str] = {}
    for place, argument in enumerate(arguments):
        made.signature.input_arg.add(name=f"input_{place}", type=graph.dtype(argument))
        local[argument] = f"input_{place}"
    given = set(arguments)
    body = [node for node in graph.nodes.values() if node.name not in given]
    for node in body:
        for place, output in enumerate(op_defs.outputs(node, graph.library)):
            local[spelled(node.name, place)] = f"{node.name}:{output.arg}:{output.place}"
    for node in body:
        copy = made.node_def.add()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(
            tensor if tensor.startswith("^") else local[tensor]
            for tensor in node.input
            if tensor.lstrip("^") not in given or not tensor.startswith("^")
        )
        made.signature.is_stateful |= bool(op_defs.definition(node, graph.library).is_stateful)
    for place, tensor in enumerate(outputs):
        made.signature.output_arg.add(name=f"output_{place}", type=graph.dtype(tensor))
        made.ret[f"output_{place}"] = _behind(made, graph, tensor, local) if graph.effects else local[tensor]
    for place, effect in enumerate(graph.effects):
        made.signature.control_output.append(f"effect_{place}")
        made.control_ret[f"effect_{place}"] = split(effect)[0]
    return made


def _behind(function: Any, graph: Graph, tensor: str, local: Mapping[str, str]) -> str:
    """A tensor of a function as an output that waits for the graph's effects."""
    node = function.node_def.add(name=graph.name("output"), op="Identity", input=[local[tensor]])
    node.input.extend(f"^{split(effect)[0]}" for effect in graph.effects)
    node.attr["T"].type = graph.dtype(tensor)
    return f"{node.name}:output:0"
