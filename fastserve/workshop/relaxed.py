"""A SavedModel whose functions were traced with a fixed number of rows, loaded so that they take any.

The shapes that its functions remember are taken out of a copy of saved_model.pb, and TensorFlow works out
what it can when that is loaded. What the fixed number has become part of, a constant in a Reshape, say,
stays: whoever uses this compares the answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

# Attributes that say which shapes a function's arguments had when it was traced.
_FUNCTION_SHAPES = ("_input_shapes", "_output_shapes")
_LINKED = ("variables", "assets")


class Relaxed:
    """The model, open; its files are kept for as long as this is."""

    def __init__(self, path: Path, tags: tuple[str, ...]) -> None:
        """Whatever TensorFlow raises for what it cannot load without the shapes."""
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        self._folder = tempfile.TemporaryDirectory(prefix="fastserve-workshop-")
        saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        for meta_graph in saved_model.meta_graphs:
            _forget_shapes(meta_graph)
        target = Path(self._folder.name)
        (target / "saved_model.pb").write_bytes(saved_model.SerializeToString())
        for name in _LINKED:
            if (path / name).exists():
                (target / name).symlink_to((path / name).resolve())
        self.model = tf.saved_model.load(str(target), tags=list(tags))

    def call(self, signature: str, tensors: Any, shapes: Any) -> Any:
        """The signature's outputs while a graph is traced, with any number of rows where `shapes`, by output,
        say that they had a fixed one."""
        answers = self.model.signatures[signature](**tensors)
        for alias, shape in shapes.items():
            if shape.rank:
                answers[alias].set_shape([None, *shape[1:]])
        return answers


def _forget_shapes(meta_graph: Any) -> None:
    for function in meta_graph.graph_def.library.function:
        for name in _FUNCTION_SHAPES:
            function.attr.pop(name, None)
        for argument in function.arg_attr.values():
            argument.attr.pop("_output_shapes", None)
        for node in function.node_def:
            node.attr.pop("_output_shapes", None)
            if "output_shapes" in node.attr:  # of branches and loops, which have to have it
                node.attr["output_shapes"].list.Clear()
                node.attr["output_shapes"].list.SetInParent()
    for function in meta_graph.object_graph_def.concrete_functions.values():
        _forget_rows(function.canonicalized_input_signature)
        _forget_rows(function.output_signature)


def _forget_rows(value: Any) -> None:
    """First dimensions in a StructuredValue."""
    kind = value.WhichOneof("kind")
    if kind == "tensor_spec_value":
        shape = value.tensor_spec_value.shape
        if not shape.unknown_rank and shape.dim:
            shape.dim[0].size = -1
    elif kind in ("tuple_value", "list_value"):
        for part in getattr(value, kind).values:
            _forget_rows(part)
    elif kind == "dict_value":
        for part in value.dict_value.fields.values():
            _forget_rows(part)
