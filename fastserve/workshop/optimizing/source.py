"""A SavedModel as the optimizer takes it: a flat graph for each signature, and where its variables are.

What is not the signatures' (tables' initializers, assets, a restore that does more than fill variables) is
kept as it is. Refuses what cannot be moved about. Imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.savedmodel import read
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing import op_defs
from fastserve.workshop.optimizing.functions import Inliner, forget_stale
from fastserve.workshop.optimizing.graph import Graph, canonical, split
from fastserve.workshop.optimizing.variables import Variable, Variables

INTERNAL = "__saved_model_"
INIT_SIGNATURE, INIT_COLLECTION = f"{INTERNAL}init_op", "saved_model_main_op"
_CONTROL_FLOW_1 = ("Enter", "Exit", "LoopCond", "Merge", "NextIteration", "RefEnter", "RefSwitch", "Switch")
_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
_REFERENCES = ("Variable", "VariableV2")
_ASSIGNS = ("Assign", "AssignVariableOp")
# What a restore may do beside, and still does nothing but fill variables.
_OF_A_RESTORE = (*_ASSIGNS, *_REFERENCES, "RestoreV2", "ShardedFilename", "VarHandleOp")


@dataclass(frozen=True)
class Source:
    """`meta_graph`: as it is in the file. `graphs`: by signature. `kept_restore`: whether its restore does
    more than fill variables."""

    path: Path
    meta_graph: Any
    graphs: dict[str, Graph]
    variables: Variables
    kept_restore: bool


def read_source(path: Path, tags: Sequence[str], wanted: Sequence[str]) -> Source:
    """The version in directory `path`, its signatures `wanted`, or all. WorkshopError, SavedModelError."""
    meta_graph = _meta_graph(path, tags)
    names = _signatures(path, meta_graph, wanted)
    library = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    known, kept_restore = _restored(path, meta_graph, library)
    variables = Variables(str(path / "variables" / "variables"), known)
    graphs = {name: _flat(path, meta_graph, library, name, variables) for name in names}
    variables.written = _written(path, meta_graph, library, graphs.values())
    for graph in graphs.values():
        graph.fix_order()
    return Source(path, meta_graph, graphs, variables, kept_restore)


def _meta_graph(path: Path, tags: Sequence[str]) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    read(path, tags)  # says what is wrong with it
    saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return next(m for m in saved_model.meta_graphs if set(m.meta_info_def.tags) == set(tags))


def _signatures(path: Path, meta_graph: Any, wanted: Sequence[str]) -> list[str]:
    there = sorted(name for name in meta_graph.signature_def if not name.startswith(INTERNAL))
    for name in wanted:
        if name not in there:
            raise WorkshopError(f"{path} has no signature {name}; there are: {', '.join(there) or 'none'}")
    chosen = sorted(set(wanted)) or there
    if not chosen:
        raise WorkshopError(f"{path} has no signature: there is nothing to optimize")
    return chosen


def _inlined(where: str, nodes: Iterable[Any], library: dict[str, Any]) -> Inliner:
    """Copies of the nodes, with what they call in its place."""
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copies.append(copy)
    inliner = Inliner(copies, library)
    try:
        inliner.run()
    except LookupError as error:
        raise WorkshopError(
            f"{where} has the op {error.args[0]}, which this TensorFlow does not know"
        ) from None
    return inliner


def above(nodes: dict[str, Any], roots: Iterable[str]) -> list[Any]:
    """The nodes that `roots` (tensors or names of nodes) are computed by."""
    found: dict[str, Any] = {}
    waiting = [split(root.lstrip("^"))[0] for root in roots]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = nodes[name]
            waiting += [split(tensor.lstrip("^"))[0] for tensor in nodes[name].input]
    return list(found.values())


# ---- signatures --------------------------------------------------------------------------------


def _flat(path: Path, meta_graph: Any, library: dict[str, Any], name: str, variables: Variables) -> Graph:
    signature = meta_graph.signature_def[name]
    where = f"{path}: signature {name}"
    remedy = "name the signatures that can be optimized with --signature"
    for info in [*signature.inputs.values(), *signature.outputs.values()]:
        if info.WhichOneof("encoding") != "name":
            raise WorkshopError(f"{where} has a sparse or composite tensor, which cannot be served: {remedy}")
    inputs = {alias: canonical(info.name) for alias, info in sorted(signature.inputs.items())}
    tensors = [info.name for info in signature.outputs.values()]
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    _cut_off(meta_graph, signature, nodes)
    needed = above(nodes, [*tensors, *inputs.values()])
    _refuse_others(where, remedy, needed, inputs.values(), tensors)
    inliner = _inlined(where, needed, library)
    _refuse(where, remedy, inliner.nodes.values())
    for node in inliner.nodes.values():
        forget_stale(node)
    outputs = {alias: inliner.tensor(info.name) for alias, info in sorted(signature.outputs.items())}
    graph = Graph(
        inliner.nodes.values(), inputs, outputs, inliner.done.values(), library, variables, inliner.shapes
    )
    _read_references(where, graph)
    effectful, ends = graph.effectful(), set(inliner.done.values())
    graph.effects = sorted(
        node.name
        for node in graph.nodes.values()
        if op_defs.has_effects(node, library) or (node.name in ends and node.name in effectful)
    )
    missing = sorted(
        node.name for node in graph.nodes.values() if node.op == "VarHandleOp" and node.name not in variables
    )
    if missing:
        raise WorkshopError(f"{where}: the checkpoint has no value for the variable {missing[0]}: {remedy}")
    return graph


def _refuse(where: str, remedy: str, nodes: Iterable[Any]) -> None:
    for node in nodes:
        if node.op in _PYTHON:
            raise WorkshopError(f"{where} runs Python ({node.name}): no server can run it")
        if node.op in _CONTROL_FLOW_1:
            raise WorkshopError(
                f"{where} has TensorFlow 1's control flow ({node.op} {node.name}), whose parts cannot be "
                f"moved: {remedy}, or export it with TensorFlow 2"
            )


def _cut_off(meta_graph: Any, signature: Any, nodes: dict[str, Any]) -> None:
    """What is given from outside becomes a placeholder: inputs that are computed in the graph, as
    TensorFlow 1 allows, and the paths of assets."""
    for asset in meta_graph.asset_file_def:
        _placeholder(nodes, asset.tensor_info.name, op_defs.DT_STRING, None)
    for info in signature.inputs.values():
        shape = info.tensor_shape if info.HasField("tensor_shape") else None
        _placeholder(nodes, info.name, info.dtype, shape)


def _placeholder(nodes: dict[str, Any], tensor: str, dtype: int, shape: Any | None) -> None:
    name = split(tensor)[0]
    if name not in nodes or nodes[name].op == "Placeholder":
        return
    nodes[name] = type(nodes[name])(name=name, op="Placeholder")
    nodes[name].attr["dtype"].type = dtype
    if shape is not None:
        nodes[name].attr["shape"].shape.CopyFrom(shape)


def _refuse_others(
    where: str, remedy: str, nodes: Iterable[Any], inputs: Iterable[str], outputs: Iterable[str]
) -> None:
    """Only a node's first output can come in, and nobody may need the others then."""
    taken = [split(tensor) for node in nodes for tensor in node.input]
    others = {name for name, place in [*taken, *map(split, outputs)] if place}
    for name, place in map(split, inputs):
        if place or name in others:
            raise WorkshopError(f"{where} has an input that is one of the outputs of {name}: {remedy}")


def _read_references(where: str, graph: Graph) -> None:
    """TensorFlow 1's reference variables become those of TensorFlow 2."""
    for node in [node for node in graph.nodes.values() if node.op in _REFERENCES]:
        takers = graph.consumers(node.name)
        for name, place in takers:
            taker = graph.nodes[name]
            wanted = op_defs.definition(taker, graph.library).input_arg
            if place < len(wanted) and wanted[place].is_ref:
                raise WorkshopError(f"{where} changes the variable {node.name} ({taker.op} {name})")
        dtype = node.attr["dtype"].type
        for key in [key for key in node.attr if key not in ("dtype", "shape", "container", "shared_name")]:
            del node.attr[key]
        node.op = "VarHandleOp"
        node.attr["shared_name"].s = node.attr["shared_name"].s or node.name.encode()
        from fastserve.workshop.optimizing.graph import dtype_of

        value = graph.add("ReadVariableOp", [node.name], f"{node.name}/read_value", dtype=dtype_of(dtype))
        for name, place in takers:
            graph.set_input(graph.nodes[name], place, value)


# ---- variables ---------------------------------------------------------------------------------


def initializers(meta_graph: Any) -> list[str]:
    """Nodes and tensors that are run once, after the variables are restored."""
    roots: list[str] = []
    if INIT_SIGNATURE in meta_graph.signature_def:
        roots += [info.name for info in meta_graph.signature_def[INIT_SIGNATURE].outputs.values()]
    for key in ("legacy_init_op", INIT_COLLECTION):
        if key in meta_graph.collection_def:
            roots += meta_graph.collection_def[key].node_list.value
    nodes = {node.name for node in meta_graph.graph_def.node}
    return [root for root in roots if split(root)[0] in nodes]


def _written(path: Path, meta_graph: Any, library: dict[str, Any], graphs: Iterable[Graph]) -> frozenset[str]:
    """Nodes of variables and tables that a signature changes, so that all read them anew; of variables that
    the initializers change; and others that share one of these."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    inliner = _inlined(f"{path}: the initializer", above(nodes, initializers(meta_graph)), library)
    first = Graph(inliner.nodes.values(), {}, {}, [], library, Variables("", []), {})
    found = [first.nodes[name] for name in first.written() if first.nodes[name].op == "VarHandleOp"]
    found += [graph.nodes[name] for graph in graphs for name in graph.written()]
    shared = {_shared(node) for node in found}
    return frozenset(
        node.name for graph in graphs for node in graph.nodes.values() if _shared(node) in shared
    )


def _shared(node: Any) -> tuple[bytes, bytes]:
    """What nodes of one variable or table have in common."""
    container, name = (node.attr[key].s if key in node.attr else b"" for key in ("container", "shared_name"))
    return container, name or node.name.encode()


def _restored(path: Path, meta_graph: Any, library: dict[str, Any]) -> tuple[list[Variable], bool]:
    """The variables that the model's restore fills, and whether it does more than that."""
    restore = meta_graph.saver_def.restore_op_name
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    restore = split(restore)[0]
    if restore not in nodes:
        return [], False
    inliner = _inlined(f"{path}: the restore", above(nodes, [restore]), library)
    graph = Graph(inliner.nodes.values(), {}, {}, [], library, Variables("", []), {})
    shapes = _checkpoint_shapes(path)
    found = []
    for node in graph.nodes.values():
        if node.op not in _ASSIGNS:
            continue
        variable, value = graph.producer(graph.source(node.input[0])), graph.source(node.input[1])
        read, place = graph.producer(value), split(value)[1]
        if read.op != "RestoreV2" or variable.op not in (*_REFERENCES, "VarHandleOp"):
            continue
        names, parts = graph.value(read.input[1]), graph.value(read.input[2])
        if names is None or parts is None:
            continue
        key, part = names[place].decode(), parts[place].decode()
        sizes = [dim.size for dim in variable.attr["shape"].shape.dim]
        if variable.attr["shape"].shape.unknown_rank or any(size < 0 for size in sizes):
            sizes = list(shapes.get(key, ())) if not part else []
        dtype = variable.attr["dtype"].type
        found.append(Variable(variable.name, dtype, tuple(int(size) for size in sizes), key, part))
    more = any(
        op_defs.has_effects(node, library) and node.op not in _OF_A_RESTORE for node in graph.nodes.values()
    )
    return found, more


def _checkpoint_shapes(path: Path) -> dict[str, Any]:
    import tensorflow as tf

    if not (path / "variables" / "variables.index").exists():
        return {}
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    shapes: dict[str, Any] = reader.get_variable_to_shape_map()
    return shapes
