"""A SavedModel made of flat graphs: each signature one function, variables and their restore of our own.

Beside the graphs, all that the source had is there: names, dtypes and shapes of signatures, defaults, tables
and their initializers, assets, assets.extra. It opens in a session (TensorFlow Serving, FastServe) and with
tf.saved_model.load. Writes where it is told to, and knows nothing of versions. Imports TensorFlow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing import op_defs
from fastserve.workshop.optimizing.functions import as_function, forget_stale, mentioned, reachable
from fastserve.workshop.optimizing.graph import Graph, split
from fastserve.workshop.optimizing.source import INIT_COLLECTION, INIT_SIGNATURE, Source, above, initializers
from fastserve.workshop.optimizing.variables import Variables

_COLLECTIONS = ("legacy_init_op", "saved_model_assets", INIT_COLLECTION)
_FOLDERS = ("assets", "assets.extra")
# Names of the nodes that save and restore.
_SAVE = "optimized_save"
# Of variables, in one file.
_PART_BYTES = 1 << 28


class Package:
    """Writes graphs that were made of one source. Checkpoints of the same variables are written once and
    linked, where the file system does that."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # By variables: folders with a checkpoint of them, some of which are gone.
        self._written: dict[tuple[str, ...], list[Path]] = {}

    def keep(self, graphs: Mapping[str, Graph]) -> None:
        """Only these will be worked on and written from now on."""
        self._source.variables.keep(_variables(graphs))

    def write(self, graphs: Mapping[str, Graph], folder: Path, *, linked: bool = False) -> None:
        """`linked`: assets are linked to the source's, for versions that live shortly."""
        folder.mkdir(parents=True, exist_ok=True)
        used = _variables(graphs)
        meta_graph = _meta_graph(self._source, graphs, used)
        from tensorflow.core.protobuf import saved_model_pb2

        saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
        saved_model.meta_graphs.append(meta_graph)
        (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString(deterministic=True))
        for name in _FOLDERS:
            there = self._source.path / name
            if there.exists() and not (linked and _linked(there, folder / name)):
                shutil.copytree(there, folder / name)
        if used or self._source.kept_restore:
            self._write_checkpoint(used, folder / "variables")

    def _write_checkpoint(self, used: list[str], folder: Path) -> None:
        folder.mkdir()
        there = self._written.setdefault(tuple(used), [])
        made = next((other for other in there if other.exists()), None)
        if made is None:
            _save(self._source, used, folder)
        else:
            for file in made.iterdir():
                _link_or_copy(file, folder / file.name)
        there.append(folder)


def stored_bytes(path: Path) -> int:
    """Of a SavedModel: its graph and its variables."""
    files = [*path.glob("saved_model.pb*"), *(path / "variables").glob("*")]
    return sum(file.stat().st_size for file in files)


def _linked(there: Path, place: Path) -> bool:
    """Whether `place` is another name of the directory now: some file systems have no links."""
    try:
        place.symlink_to(there.absolute(), target_is_directory=True)
    except OSError:
        return False
    return True


def _link_or_copy(there: Path, place: Path) -> None:
    try:
        os.link(there, place)
    except OSError:
        shutil.copyfile(there, place)


def _variables(graphs: Mapping[str, Graph]) -> list[str]:
    return sorted({node.name for graph in graphs.values() for node in _handles(graph, "VarHandleOp")})


def _save(source: Source, used: list[str], folder: Path) -> None:
    """In files that are put together, so that not all of the values are in memory at once. WorkshopError."""
    import tensorflow as tf

    names = dict.fromkeys(used, 0)
    kept: Any = None
    if source.kept_restore:
        kept = tf.train.load_checkpoint(str(source.path / "variables" / "variables"))
        names |= dict.fromkeys(kept.get_variable_to_shape_map(), 0)
    target = str(folder / "variables")
    parts: list[str] = []

    def save(tensors: dict[str, Any]) -> None:
        parts.append(f"{target}.part-{len(parts)}")
        tf.raw_ops.SaveV2(
            prefix=parts[-1],
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )

    variables, wanted = source.variables, set(used)
    waiting: dict[str, Any] = {}
    try:
        with tf.device("/cpu:0"):
            for name in names:
                waiting[name] = (
                    tf.constant(variables.value(name), tf.dtypes.as_dtype(variables[name].dtype))
                    if name in wanted
                    else tf.constant(kept.get_tensor(name))
                )
                if sum(t.shape.num_elements() * t.dtype.size for t in waiting.values()) > _PART_BYTES:
                    save(waiting)
                    waiting = {}
            if waiting or not parts:
                save(waiting)
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=parts, destination_prefix=target, delete_old_dirs=False
            )
    except tf.errors.OpError as error:
        raise WorkshopError(f"{folder}: the variables cannot be written: {error.message}") from None


# ---- the graph -----------------------------------------------------------------------------------


def _handles(graph: Graph, *ops: str) -> list[Any]:
    """What is given to the graph by name and not by value: variables and tables."""
    return [
        node
        for node in graph.nodes.values()
        if (node.op in ops)
        or (not ops and not node.input and any(o.dtype == op_defs.DT_RESOURCE for o in _outputs(graph, node)))
    ]


def _outputs(graph: Graph, node: Any) -> list[op_defs.Output]:
    return op_defs.outputs(node, graph.library)


def _meta_graph(source: Source, graphs: Mapping[str, Graph], used: list[str]) -> Any:
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow.python.framework import meta_graph as meta_graphs

    made = meta_graph_pb2.MetaGraphDef()
    made.meta_info_def.CopyFrom(source.meta_graph.meta_info_def)
    made.asset_file_def.extend(source.meta_graph.asset_file_def)
    for key in _COLLECTIONS:
        if key in source.meta_graph.collection_def:
            made.collection_def[key].CopyFrom(source.meta_graph.collection_def[key])
    # TensorFlow 2 has the initializer as a signature, which its own loader refuses in a graph of functions
    # alone. Loaders take it from here as well.
    if INIT_SIGNATURE in source.meta_graph.signature_def:
        (info,) = source.meta_graph.signature_def[INIT_SIGNATURE].outputs.values()
        made.collection_def[INIT_COLLECTION].node_list.value[:] = [split(info.name)[0]]
    builder = _GraphBuilder(source)
    for name, graph in graphs.items():
        made.signature_def[name].CopyFrom(source.meta_graph.signature_def[name])
        for alias, tensor in builder.add_signature(name, graph).items():
            made.signature_def[name].outputs[alias].name = tensor
    if used or source.kept_restore:
        builder.add_saver(made, used, source.variables)
    made.graph_def.CopyFrom(builder.finish())
    made.meta_info_def.ClearField("stripped_op_list")
    made.meta_info_def.stripped_op_list.CopyFrom(meta_graphs.stripped_op_list_for_graph(made.graph_def))
    return made


class _GraphBuilder:
    def __init__(self, source: Source) -> None:
        from tensorflow.core.framework import graph_pb2

        self._source = source
        self._original = {node.name: node for node in source.meta_graph.graph_def.node}
        self._library = {f.signature.name: f for f in source.meta_graph.graph_def.library.function}
        self._made = graph_pb2.GraphDef()
        self._made.versions.CopyFrom(source.meta_graph.graph_def.versions)
        self._names: set[str] = set()
        self._functions: list[Any] = []
        self._keep(self._roots())

    def _roots(self) -> list[str]:
        """Tensors and nodes of the original that are needed beside the signatures."""
        meta_graph = self._source.meta_graph
        roots = [asset.tensor_info.name for asset in meta_graph.asset_file_def] + initializers(meta_graph)
        if self._source.kept_restore:
            roots += [meta_graph.saver_def.filename_tensor_name, meta_graph.saver_def.restore_op_name]
        return [root for root in roots if split(root)[0] in self._original]

    def _keep(self, roots: Iterable[str]) -> None:
        for node in above(self._original, roots):
            self._add(node)

    def _add(self, node: Any) -> Any:
        if node.name in self._names:
            return None
        self._names.add(node.name)
        copy = self._made.node.add()
        copy.CopyFrom(node)
        forget_stale(copy)
        return copy

    def _new(self, name: str, op: str, inputs: Iterable[str]) -> Any:
        from tensorflow.core.framework import node_def_pb2

        while name in self._names or name in self._original:
            name += "_"
        return self._add(node_def_pb2.NodeDef(name=name, op=op, input=inputs))

    def add_signature(self, name: str, graph: Graph) -> dict[str, str]:
        """Its placeholders and its call. By alias, the outputs' tensors."""
        given = [node.name for node in graph.nodes.values() if node.op == "Placeholder"]
        for node in _handles(graph):
            given.append(node.name)
            self._add(self._original.get(node.name, node) if node.op != "VarHandleOp" else node)
        self._keep(n for n in given if n in self._original and graph.nodes[n].op == "Placeholder")
        body = graph.copy()
        body.prune()
        outputs = dict.fromkeys(body.outputs.values())
        given = [name for name in dict.fromkeys(given) if name in body.nodes]
        places = {tensor: place for place, tensor in enumerate(outputs)}
        function = as_function(body, f"optimized_{name}", given, list(outputs))
        self._functions.append(function)
        call = self._new(f"optimized_call_{name}", "StatefulPartitionedCall", given)
        call.attr["Tin"].list.type.extend(arg.type for arg in function.signature.input_arg)
        call.attr["Tout"].list.type.extend(arg.type for arg in function.signature.output_arg)
        call.attr["f"].func.name = function.signature.name
        return {alias: f"{call.name}:{places[tensor]}" for alias, tensor in body.outputs.items()}

    def add_saver(self, meta_graph: Any, used: list[str], variables: Variables) -> None:
        """Restores `used` from the file that is fed, and saves them."""
        path = self._filename()
        names = self._strings("names", used)
        parts = self._strings("parts", [""] * len(used))
        dtypes = [variables[name].dtype for name in used]
        done, reads = [], []
        if used:
            restore = self._new(f"{_SAVE}/restore", "RestoreV2", [path, names, parts])
            restore.attr["dtypes"].list.type.extend(dtypes)
        for place, name in enumerate(used):
            assign = self._new(
                f"{_SAVE}/assign_{place}", "AssignVariableOp", [name, f"{restore.name}:{place}"]
            )
            assign.attr["dtype"].type = dtypes[place]
            done.append(f"^{assign.name}")
            read = self._new(f"{_SAVE}/read_{place}", "ReadVariableOp", [name])
            read.attr["dtype"].type = dtypes[place]
            reads.append(read.name)
            self._collect(meta_graph, name, assign.name, read.name)
        if self._source.kept_restore:
            done.append(f"^{split(self._source.meta_graph.saver_def.restore_op_name)[0]}")
        everything = self._new(f"{_SAVE}/restore_all", "NoOp", done)
        save = self._new(f"{_SAVE}/save", "SaveV2", [path, names, parts, *reads]) if used else None
        if save is not None:
            save.attr["dtypes"].list.type.extend(dtypes)
        saved = self._new(f"{_SAVE}/saved", "Identity", [path, *([f"^{save.name}"] if save else [])])
        saved.attr["T"].type = 7
        saver = meta_graph.saver_def
        saver.filename_tensor_name = f"{path}:0"
        saver.save_tensor_name = f"{saved.name}:0"
        saver.restore_op_name = everything.name
        saver.max_to_keep = 5
        saver.version = saver.V2

    def _filename(self) -> str:
        if self._source.kept_restore:
            return split(self._source.meta_graph.saver_def.filename_tensor_name)[0]
        default = self._strings("default", "model")
        path = self._new(f"{_SAVE}/path", "PlaceholderWithDefault", [default])
        path.attr["dtype"].type = 7
        path.attr["shape"].shape.SetInParent()
        return str(path.name)

    def _strings(self, name: str, values: list[str] | str) -> str:
        import numpy as np
        from tensorflow.python.framework import tensor_util

        array = np.array(values, dtype=object)
        node = self._new(f"{_SAVE}/{name}", "Const", [])
        node.attr["dtype"].type = 7
        node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(array, dtype=7, shape=array.shape))
        return str(node.name)

    def _collect(self, meta_graph: Any, name: str, assign: str, read: str) -> None:
        """tf.saved_model.load finds variables in this collection."""
        from tensorflow.core.framework import variable_pb2

        described = variable_pb2.VariableDef(
            variable_name=f"{name}:0",
            initializer_name=assign,
            snapshot_name=f"{read}:0",
            initial_value_name=f"{read}:0",
            is_resource=True,
            trainable=False,
        )
        meta_graph.collection_def["variables"].bytes_list.value.append(described.SerializeToString())

    def finish(self) -> Any:
        """The graph, with the functions that it needs."""
        library = {**self._library, **{f.signature.name: f for f in self._functions}}
        named = [name for node in self._made.node for name in mentioned(node, library)]
        for name in sorted(reachable(named, library)):
            self._made.library.function.add().CopyFrom(library[name])
        return self._made
