"""Endpoints as a SavedModel: traced with an unknown number of rows, looked over, and saved with what they
use.

What is saved is the functions and what they reach: variables and tables. Optimizers, metrics and seeds that
the forward pass does not read stay behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.savedmodel.read import find_meta_graph, load
from fastserve.workshop.endpoint import Endpoint, Named, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_module import cannot_be_traced
from fastserve.workshop.python_ops import python_ops
from fastserve.workshop.renames import Renames

_UNTRACKED = "untracked"


@dataclass(frozen=True)
class Traced:
    """A signature as it will be saved. `inputs` and `outputs`: the source's names by the new ones. `chunk`:
    the rows that the source takes at a time where it insists on a number and this does not."""

    name: str
    endpoint: Endpoint
    function: Any
    inputs: dict[str, str]
    outputs: dict[str, str]
    chunk: int | None

    def predict(self, tensors: Named) -> Named:
        """What the source itself answers, under the new names."""
        answers = self.endpoint.predict({old: tensors[new] for new, old in self.inputs.items()})
        return {new: answers[old] for new, old in self.outputs.items()}


def trace(
    where: str, name: str, endpoint: Endpoint, inputs: Renames, outputs: Renames, *, allow_fixed: bool
) -> Traced:
    """`endpoint` as a graph, under `name`. WorkshopError: it is none, or not one that a server can run."""
    fixed = endpoint.fixed_rows
    insists = f"{where}: signature {name!r} has a fixed batch of {fixed}"
    remedy = (
        "build the model without a batch size (an Input without batch_size, a TensorSpec whose first "
        "dimension is None), or give --allow-fixed-batch to have it as it is, one request of that size at "
        "a time"
    )
    try:
        lifted = fixed is not None and not allow_fixed
        traced = _trace(name, endpoint, inputs, outputs, unknown=lifted)
    except WorkshopError:
        raise
    except Exception as error:
        if fixed is not None and not allow_fixed:
            raise WorkshopError(
                f"{insists}, and cannot be traced with any other: {first_line(error)}; {remedy}"
            ) from error
        raise WorkshopError(f"{where}: signature {name!r} {cannot_be_traced(error)}") from error
    wrong = [] if allow_fixed else list(_without_rows(traced))
    if wrong:
        start = insists if fixed is not None else f"{where}: signature {name!r} takes any number of rows"
        raise WorkshopError(f"{start}, but {'; '.join(wrong)}; {remedy}")
    calls = [f"{op} (node {node})" for op, node in python_ops(traced.function.graph.as_graph_def())]
    if calls:
        raise WorkshopError(
            f"{where}: signature {name!r} calls back into Python, which no server has: {', '.join(calls)}; "
            "write tf.py_function, tf.numpy_function and the like with TensorFlow's ops, or compute that "
            "before the request and take it as an input"
        )
    return traced


def save(where: str, traced: Sequence[Traced], path: Path) -> None:
    """Writes a SavedModel with these signatures into the directory `path`. WorkshopError."""
    import tensorflow as tf

    root = tf.Module()
    root.held_variables = _variables(traced)
    root.held_resources = _resources(traced)
    try:
        tf.saved_model.save(
            root,
            str(path),
            signatures={one.name: one.function for one in traced},
            # Nobody differentiates what is served, and gradients may be Python.
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
    except AssertionError as error:
        if _UNTRACKED not in str(error):
            raise
        raise WorkshopError(
            f"{where}: a signature uses a table or another resource that hangs on nothing: make it an "
            f"attribute of the model, or of the tf.Module that is returned ({first_line(error)})"
        ) from error
    except (OSError, tf.errors.OpError) as error:
        raise WorkshopError(
            f"{path.parent}: cannot write the SavedModel there: {first_line(error)}"
        ) from error
    _keep_what_save_drops(traced, path)


def _trace(name: str, endpoint: Endpoint, inputs: Renames, outputs: Renames, *, unknown: bool) -> Traced:
    import tensorflow as tf

    new_names = inputs.of(name, endpoint.inputs)
    specs = {
        new: tf.TensorSpec(
            _any_rows(endpoint.inputs[old].shape) if unknown else endpoint.inputs[old].shape,
            endpoint.inputs[old].dtype,
            name=new,
        )
        for old, new in new_names.items()
    }
    answered: dict[str, str] = {}

    def serve(**tensors: Any) -> Named:
        answers = endpoint.call({old: tensors[new] for old, new in new_names.items()})
        answered.clear()
        answered.update(outputs.of(name, answers))
        return {new: _dense(name, new, answers[old]) for old, new in answered.items()}

    function = tf.function(serve, autograph=False).get_concrete_function(**specs)
    return Traced(
        name=name,
        endpoint=endpoint,
        function=function,
        inputs={new: old for old, new in new_names.items()},
        outputs={new: old for old, new in answered.items()},
        chunk=endpoint.fixed_rows if unknown else None,
    )


def _any_rows(shape: Any) -> Any:
    return [None, *shape[1:]] if shape.rank else shape


def _dense(name: str, alias: str, value: Any) -> Any:
    import tensorflow as tf

    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)):
        raise WorkshopError(
            f"signature {name!r}: output {alias!r} is a {type(value).__name__}, and answers carry dense "
            "tensors only; return .to_tensor(), or its parts as outputs of their own"
        )
    # An output that is an input as it stands would have no node of its own.
    return tf.identity(tf.convert_to_tensor(value))


def _without_rows(traced: Traced) -> Iterator[str]:
    """Outputs of a signature with rows that have none, or always the same number of them."""
    shapes = [spec.shape for spec in traced.function.structured_input_signature[1].values()]
    if not any(shape.rank is None or (shape.rank and shape[0] is None) for shape in shapes):
        return
    for alias, tensor in sorted(traced.function.structured_outputs.items()):
        if tensor.shape.rank == 0:
            yield f"output {alias!r} is a single value, whatever the rows"
        elif tensor.shape.rank and tensor.shape[0] is not None:
            yield f"output {alias!r} always has the shape {tensor.shape.as_list()}"


def _variables(traced: Sequence[Traced]) -> list[Any]:
    found: dict[int, Any] = {}
    for one in traced:
        found.update((id(variable), variable) for variable in one.function.graph.variables)
    return list(found.values())


def _resources(traced: Sequence[Traced]) -> list[Any]:
    """Tables and the like that functions capture, found where the source keeps them."""
    import tensorflow as tf

    captured = {id(tensor) for one in traced for tensor in one.function.captured_inputs}
    found: dict[int, Any] = {}
    for owner in {id(owner): owner for one in traced for owner in one.endpoint.owners}.values():
        for held in tf.train.TrackableView(owner).descendants():
            if isinstance(held, tf.saved_model.experimental.TrackableResource) and (
                id(held.resource_handle) in captured
            ):
                found[id(held)] = held
    return list(found.values())


def _keep_what_save_drops(traced: Sequence[Traced], path: Path) -> None:
    """Method names and inputs' defaults of a SavedModel that is exported again."""
    if not any(one.endpoint.method_name or one.endpoint.defaults for one in traced):
        return
    saved_model = load(path)
    signatures = find_meta_graph(saved_model, path, ("serve",)).signature_def
    for one in traced:
        if one.endpoint.method_name:
            signatures[one.name].method_name = one.endpoint.method_name
        for new, old in one.inputs.items():
            if old in one.endpoint.defaults:
                signatures[one.name].defaults[new] = one.endpoint.defaults[old]
    (path / "saved_model.pb").write_bytes(saved_model.SerializeToString(deterministic=True))
