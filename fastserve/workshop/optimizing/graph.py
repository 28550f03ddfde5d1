"""A signature's computation as one flat graph, which passes look at and change.

Tensors are strings as in a NodeDef's inputs, in one spelling: "node" for a node's first output, "node:2" for
its third. "^node" is a control input. Names are never given twice, so that what was found out of a tensor
stays true. Imports TensorFlow when it is asked for shapes or values; used on one thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.workshop.optimizing import op_defs
from fastserve.workshop.optimizing.variables import Variables

# What passes its input on.
_SAME = ("Identity", "Snapshot", "StopGradient", "PreventGradient")
# What takes the handle of a variable or table and changes nothing.
_READERS = (
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "VariableShape",
)


def spelled(name: str, place: int = 0) -> str:
    return f"{name}:{place}" if place else name


def split(tensor: str) -> tuple[str, int]:
    """The node's name and which of its outputs."""
    name, _, place = tensor.partition(":")
    return name, int(place or 0)


def canonical(tensor: str) -> str:
    return tensor if tensor.startswith("^") else spelled(*split(tensor))


class Graph:
    """`inputs`: by alias, placeholders. `outputs`: by alias, tensors. `effects`: nodes that must run although
    nobody takes what they give. `library`: functions by name, for control flow and whatever is still
    called."""

    def __init__(
        self,
        nodes: Iterable[Any],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        effects: Iterable[str],
        library: Mapping[str, Any],
        variables: Variables,
        shapes: Mapping[str, tuple[int | None, ...]],
    ) -> None:
        """`shapes`: what is known of them from elsewhere."""
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)
        self.effects = list(effects)
        self.library = library
        self.variables = variables
        self._taken = set(self.nodes)
        self._known_shapes = dict(shapes)
        self._shapes: dict[str, tuple[int | None, ...] | None] = {}
        self._values: dict[str, npt.NDArray[Any]] = {}
        self._consumers: dict[str, list[tuple[str, int]]] | None = None
        self._written: frozenset[str] | None = None
        # The nodes as TensorFlow has them, to infer shapes, and which of them it has.
        self._inferred: Any = None
        self._known_to_it: set[str] = set()

    def copy(self) -> Graph:
        """Another with nodes of its own."""
        nodes = []
        for node in self.nodes.values():
            twin = type(node)()
            twin.CopyFrom(node)
            nodes.append(twin)
        made = Graph(
            nodes, self.inputs, self.outputs, self.effects, self.library, self.variables, self._known_shapes
        )
        made._taken |= self._taken
        made._shapes = dict(self._shapes)
        made._values = dict(self._values)
        return made

    # ---- looking -------------------------------------------------------------------------

    def producer(self, tensor: str) -> Any:
        return self.nodes[split(tensor)[0]]

    def source(self, tensor: str) -> str:
        """`tensor`, or what it is the same as: identities are seen through."""
        while True:
            node = self.producer(tensor)
            if node.op not in _SAME or not self.arguments(node):
                return tensor
            tensor = node.input[0]

    def made_by(self, tensor: str, *ops: str) -> Any | None:
        """The node that gives `tensor` as its first output, if its op is one of `ops`; identities are seen
        through."""
        name, place = split(self.source(tensor))
        node = self.nodes[name]
        return node if place == 0 and node.op in ops else None

    @staticmethod
    def arguments(node: Any) -> list[str]:
        """Its inputs that are no control inputs."""
        return [tensor for tensor in node.input if not tensor.startswith("^")]

    def consumers(self, tensor: str) -> list[tuple[str, int]]:
        """Nodes that take `tensor`, and as which of their inputs."""
        if self._consumers is None:
            self._consumers = defaultdict(list)
            for node in self.nodes.values():
                for place, taken in enumerate(node.input):
                    self._consumers[taken].append((node.name, place))
        return list(self._consumers.get(tensor, ()))

    def takers(self, tensor: str) -> list[tuple[Any, int]]:
        """As `consumers`, looking through identities."""
        found = []
        for name, place in self.consumers(tensor):
            node = self.nodes[name]
            if node.op in _SAME:
                found += self.takers(name)
            else:
                found.append((node, place))
        return found

    def is_output(self, tensor: str) -> bool:
        return any(self.source(output) == self.source(tensor) for output in self.outputs.values())

    def is_taken(self, node: Any) -> bool:
        """Whether anybody takes the node's first output."""
        return bool(self.consumers(node.name)) or node.name in self.outputs.values()

    def dtype(self, tensor: str) -> int:
        name, place = split(tensor)
        return op_defs.outputs(self.nodes[name], self.library)[place].dtype

    def value(self, tensor: str) -> npt.NDArray[Any] | None:
        """The constant that `tensor` is, if it is one."""
        node = self.made_by(tensor, "Const")
        if node is None:
            return None
        if node.name not in self._values:
            from tensorflow.python.framework import tensor_util

            self._values[node.name] = tensor_util.MakeNdarray(node.attr["value"].tensor)
        return self._values[node.name]

    def scalar(self, tensor: str) -> Any:
        """As `value`, of one element; None for others."""
        value = self.value(tensor)
        return None if value is None or value.size != 1 else value.reshape(()).item()

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """What is known of the shape: None where a size is not, or for all of it."""
        tensor = self.source(tensor)
        if tensor not in self._shapes:
            self._infer()
        return self._shapes.get(tensor)

    def rank(self, tensor: str) -> int | None:
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def _infer(self) -> None:
        """Asks TensorFlow for the shapes of all nodes that it has not seen. That others took other inputs
        since it saw them changes no shape: passes replace tensors by equal ones."""
        import tensorflow as tf

        fresh = [node for node in self.nodes.values() if node.name not in self._known_to_it]
        if self._inferred is None:
            self._inferred = tf.Graph()
            part = self.graph_def()
        else:
            part = self.graph_def(fresh)
            part.ClearField("library")
            for node in part.node:
                data = self.arguments(node)
                del node.input[:]
                node.input.extend(data)
        with self._inferred.as_default():
            taken = {tensor for node in part.node for tensor in node.input if not tensor.startswith("^")}
            there = {tensor for tensor in taken if split(tensor)[0] in self._known_to_it}
            given = {t: self._inferred.get_tensor_by_name(t if ":" in t else f"{t}:0") for t in there}
            tf.graph_util.import_graph_def(part, input_map=given, name="")
        for node in fresh:
            op = self._inferred.get_operation_by_name(node.name)
            for place, output in enumerate(op.outputs):
                tensor = spelled(op.name, place)
                shape = None if output.shape.rank is None else tuple(output.shape.as_list())
                self._shapes[tensor] = _together(shape, self._known_shapes.get(tensor))
            self._known_to_it.add(node.name)

    def graph_def(self, nodes: Iterable[Any] | None = None) -> Any:
        """As TensorFlow takes it: all of it, or these nodes."""
        from tensorflow.core.framework import graph_pb2
        from tensorflow.python.framework import versions

        made = graph_pb2.GraphDef()
        made.versions.producer = versions.GRAPH_DEF_VERSION
        made.node.extend(self.nodes.values() if nodes is None else nodes)
        made.library.function.extend(self.library.values())
        return made

    def ancestors(self, roots: Iterable[str]) -> set[str]:
        """Names of the nodes that `roots` (tensors) are computed by, themselves included."""
        found: set[str] = set()
        waiting = [split(root.lstrip("^"))[0] for root in roots]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += [split(tensor.lstrip("^"))[0] for tensor in self.nodes[name].input]
        return found

    def in_order(self) -> Iterator[Any]:
        """The nodes, each after those that it takes from. Loops of TensorFlow 1 have no such order: their
        nodes come last."""
        waits = dict.fromkeys(self.nodes, 0)
        behind: dict[str, list[str]] = defaultdict(list)
        for node in self.nodes.values():
            for tensor in node.input:
                behind[split(tensor.lstrip("^"))[0]].append(node.name)
                waits[node.name] += 1
        ready = [name for name, count in waits.items() if count == 0]
        done = set()
        while ready:
            name = ready.pop()
            done.add(name)
            yield self.nodes[name]
            for other in behind[name]:
                waits[other] -= 1
                if waits[other] == 0:
                    ready.append(other)
        yield from (node for name, node in self.nodes.items() if name not in done)

    # ---- changing ------------------------------------------------------------------------

    def name(self, wanted: str) -> str:
        """A name that was never used."""
        made, number = wanted, 0
        while made in self._taken:
            number += 1
            made = f"{wanted}_{number}"
        self._taken.add(made)
        return made

    def add(self, op: str, inputs: Sequence[str], like: str, **attributes: Any) -> str:
        """A new node, and the name of its first output. `like`: what its name begins with. Attributes are
        DataTypes as `dtype(...)`, numbers, booleans, lists of numbers, or bytes; those of the types of inputs
        have to be given, too."""
        from tensorflow.core.framework import node_def_pb2

        node = node_def_pb2.NodeDef(name=self.name(like), op=op, input=[canonical(i) for i in inputs])
        for key, value in attributes.items():
            _set(node.attr[key], value)
        return self.insert(node)

    def insert(self, node: Any) -> str:
        """Adds a node that was made elsewhere, under a name from `name`. The name of its first output."""
        op_defs.fill_in_defaults(node, self.library)
        self.nodes[node.name] = node
        if self._consumers is not None:
            for place, tensor in enumerate(node.input):
                self._consumers[tensor].append((node.name, place))
        return str(node.name)

    def constant(self, value: npt.NDArray[Any] | np.generic, like: str, dtype: int | None = None) -> str:
        from tensorflow.python.framework import tensor_util

        array = np.asarray(value)
        proto = tensor_util.make_tensor_proto(array, dtype=dtype, shape=array.shape)
        return self.add("Const", [], like, dtype=dtype_of(proto.dtype), value=proto)

    def variable(self, name: str, like: str) -> str:
        """A tensor with the variable's value: the variable's node is there already, or is made."""
        info = self.variables[name]
        handle = name
        if name not in self.nodes:
            from tensorflow.core.framework import node_def_pb2

            node = node_def_pb2.NodeDef(name=name, op="VarHandleOp")
            node.attr["dtype"].type = info.dtype
            for size in info.shape:
                node.attr["shape"].shape.dim.add(size=size)
            if not info.shape:
                node.attr["shape"].shape.SetInParent()
            node.attr["shared_name"].s = name.encode()
            self._taken.add(name)
            handle = self.insert(node)
        return self.add("ReadVariableOp", [handle], like, dtype=dtype_of(info.dtype))

    def replace(self, old: str, new: str) -> None:
        """Whoever takes `old` takes `new` from now on."""
        new = canonical(new)
        for name, place in self.consumers(old):
            if name != split(new)[0]:
                self.set_input(self.nodes[name], place, new)
        for alias, output in self.outputs.items():
            if output == old:
                self.outputs[alias] = new

    def set_input(self, node: Any, place: int, tensor: str) -> None:
        tensor = canonical(tensor)
        if self._consumers is not None:
            self._consumers[node.input[place]].remove((node.name, place))
            self._consumers[tensor].append((node.name, place))
        node.input[place] = tensor

    def prune(self) -> int:
        """Removes what no output needs. How many nodes that were. The placeholders of the inputs stay."""
        needed = self.ancestors([*self.outputs.values(), *self.effects, *self.inputs.values()])
        gone = self.nodes.keys() - needed
        for name in gone:
            del self.nodes[name]
        self._consumers = None
        return len(gone)

    def replace_nodes(self, nodes: Iterable[Any]) -> None:
        """Other nodes, that compute the same outputs from the same inputs."""
        self.nodes = {}
        for node in nodes:
            inputs = [canonical(tensor) for tensor in node.input]
            del node.input[:]
            node.input.extend(inputs)
            op_defs.fill_in_defaults(node, self.library)
            self.nodes[node.name] = node
        self._taken |= self.nodes.keys()
        self._shapes.clear()
        self._values = {}
        self._known_shapes.clear()
        self._inferred, self._known_to_it = None, set()
        self._written = None
        self.prune()

    def changed(self) -> None:
        """Nodes were changed from outside."""
        self._consumers = None

    def written(self) -> frozenset[str]:
        """Names of variables' and tables' nodes that something here, or in another signature, may change.
        Passes add nothing that does."""
        if self._written is None:
            self._written = frozenset(
                split(self.source(tensor))[0]
                for node in self.nodes.values()
                if node.op not in _READERS and node.op not in _SAME
                for tensor in self.arguments(node)
                if self.dtype(tensor) == op_defs.DT_RESOURCE
            )
        return self._written | self.variables.written

    def effectful(self) -> set[str]:
        """Names of nodes that have effects, or come after one that has, or read what may be changed."""
        found: set[str] = set()
        written = self.written()
        for node in self.in_order():
            sources = {split(tensor.lstrip("^"))[0] for tensor in node.input}
            if sources & found or sources & written or op_defs.has_effects(node, self.library):
                found.add(node.name)
        return found

    def fix_order(self) -> None:
        """Each node that has effects, or takes what is changed, comes directly after those that it comes
        after by any path: what passes make of the nodes between does not matter then, nor whether they see
        through an identity that waits for something."""
        written = self.written()
        # Of those nodes, what to wait for; and by node, the nearest of these before it.
        ends: dict[str, str] = {}
        before: dict[str, frozenset[str]] = {}
        for node in list(self.in_order()):
            sources = {split(tensor.lstrip("^"))[0] for tensor in node.input}
            nearest = frozenset[str]().union(
                *([ends[name]] if name in ends else before.get(name, ()) for name in sources)
            )
            before[node.name] = nearest
            handles = {split(self.source(tensor))[0] for tensor in self.arguments(node)}
            if handles & written or op_defs.has_effects(node, self.library):
                node.input.extend(f"^{name}" for name in sorted(nearest - sources))
                ends[node.name] = self._end(node)
        self.effects = [ends.get(name, name) for name in self.effects]
        self._consumers = None

    def _end(self, node: Any) -> str:
        """What comes after all that the node does. Of a branch or a loop that is what takes its output: some
        effects are above its functions' outputs and nowhere else."""
        named = any(value.WhichOneof("value") == "func" or value.list.func for value in node.attr.values())
        if not (named or node.op in self.library) or not op_defs.outputs(node, self.library):
            return str(node.name)
        return self.add("Identity", [node.name], f"{node.name}/done", T=dtype_of(self.dtype(node.name)))


class dtype_of(int):
    """A DataType, for attributes."""


def _set(attribute: Any, value: Any) -> None:
    if isinstance(value, dtype_of):
        attribute.type = int(value)
    elif isinstance(value, bool):
        attribute.b = value
    elif isinstance(value, int):
        attribute.i = value
    elif isinstance(value, float):
        attribute.f = value
    elif isinstance(value, bytes):
        attribute.s = value
    elif isinstance(value, list):
        attribute.list.SetInParent()
        if value and isinstance(value[0], dtype_of):
            attribute.list.type.extend(int(item) for item in value)
        else:
            attribute.list.i.extend(value)
    else:
        attribute.tensor.CopyFrom(value)


def _together(
    one: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None
) -> tuple[int | None, ...] | None:
    """What both know of a shape."""
    if one is None or other is None or len(one) != len(other):
        return other if one is None else one
    return tuple(a if a is not None else b for a, b in zip(one, other, strict=True))
