"""What the optimizer's tests share: small models as flat graphs, passes run on them, both run and compared,
and SavedModels taken apart and put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from fastserve.workshop.optimizing.graph import Graph
from fastserve.workshop.optimizing.package import Package
from fastserve.workshop.optimizing.source import read_source
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.fold import PASS as FOLD
from fastserve.workshop.passes.freeze import PASS as FREEZE
from fastserve.workshop.passes.prune import PASS as PRUNE
from fastserve.workshop.passes.registry import PASSES

# What the passes that rewrite patterns build on.
GROUND = (PRUNE, FREEZE, FOLD)

Arrays = Mapping[str, Any]


def saved(folder: Path, function: Callable[..., Any], *specs: tf.TensorSpec, **tracked: Any) -> Path:
    """A SavedModel whose only signature is `function` of inputs with these specs."""
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.predict = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.predict})
    return folder


def flat(folder: Path, function: Callable[..., Any], *specs: tf.TensorSpec, **tracked: Any) -> Graph:
    """As one flat graph."""
    path = saved(folder / "model", function, *specs, **tracked)
    return read_source(path, ("serve",), ()).graphs["serving_default"]


def run(graph: Graph, inputs: Arrays) -> dict[str, Any]:
    """The outputs. tf.errors of the run are raised."""
    handles = [node.name for node in graph.nodes.values() if node.op == "VarHandleOp"]
    values = {name: graph.variables.value(name) for name in handles}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph.graph_def(), name="")
        opened = tf.compat.v1.get_default_graph()
        for name, value in values.items():
            handle = opened.get_tensor_by_name(f"{name}:0")
            session.run(tf.raw_ops.AssignVariableOp(resource=handle, value=tf.constant(value)))
        feeds = {f"{graph.inputs[alias]}:0": value for alias, value in inputs.items()}
        fetches = {alias: t if ":" in t else f"{t}:0" for alias, t in graph.outputs.items()}
        effects = [opened.get_operation_by_name(name) for name in graph.effects]
        answers: dict[str, Any] = session.run((fetches, effects), feeds)[0]
        return answers


def after(graph: Graph, *passes: Pass, **options: Any) -> tuple[Graph, int]:
    """A copy on which the passes were run, and in how many places the last one changed it."""
    made, changes = graph.copy(), 0
    for each in passes:
        changes = each.run(made, Options(**options))
    return made, changes


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes.values())


def assert_same(one: Graph, other: Graph, inputs: Arrays, *, atol: float = 1e-6) -> dict[str, Any]:
    """Both answer alike. The answers."""
    right, made = run(one, inputs), run(other, inputs)
    assert right.keys() == made.keys()
    for alias, value in right.items():
        assert made[alias].dtype == value.dtype and made[alias].shape == value.shape
        if value.dtype.kind == "f":
            np.testing.assert_allclose(made[alias], value, rtol=1e-5, atol=atol)
        else:
            np.testing.assert_array_equal(made[alias], value)
    return right


# ---- SavedModels ------------------------------------------------------------------------------------


def repackaged(source: Path, target: Path, *, signatures: tuple[str, ...] = (), **options: Any) -> Path:
    """`source` after all passes but the approximate ones, whatever they gain."""
    read_in = read_source(source, ("serve",), signatures)
    for graph in read_in.graphs.values():
        for each in PASSES:
            if not each.approximate:
                each.run(graph, Options(**options))
    Package(read_in).write(read_in.graphs, target)
    return target


def in_turn(path: Path, *runs: tuple[str, Arrays]) -> list[dict[str, Any]]:
    """Runs of signatures, after each other, by TensorFlow 1's loader."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        answers = []
        for signature, inputs in runs:
            info = meta_graph.signature_def[signature]
            feeds = {info.inputs[alias].name: value for alias, value in inputs.items()}
            answers.append(session.run({k: t.name for k, t in info.outputs.items()}, feeds))
        return answers


def in_session(path: Path, inputs: Arrays, signature: str = "serving_default") -> dict[str, Any]:
    """By TensorFlow 1's loader."""
    return in_turn(path, (signature, inputs))[0]


def loaded(path: Path, inputs: Arrays, signature: str = "serving_default") -> dict[str, Any]:
    """By tf.saved_model.load."""
    model = tf.saved_model.load(str(path))
    answers = model.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})
    return {name: value.numpy() for name, value in answers.items()}


def export_v1(
    folder: Path, build: Callable[[], Any], *, resource: bool = True, at_start: str | None = None
) -> Path:
    """build(): inputs and outputs by name. `at_start`: a collection of what the initializer runs, too."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("", use_resource=resource):
            inputs, outputs = build()
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(tf.compat.v1.tables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        signature = tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)
        first = [tf.compat.v1.tables_initializer()]
        if at_start is not None:
            first += tf.compat.v1.get_collection(at_start)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            main_op=tf.group(*first),
        )
        builder.save()
    return folder
