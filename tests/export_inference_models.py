"""Exports SavedModels for Classify, Regress and others: `python tests/export_inference_models.py DIR`.

Run by exported_models.py in a process of its own, because importing TensorFlow takes seconds. Each model's
version lies in DIR/NAME/1. Beside it, expected.npz has serialized tf.Examples ("examples", "context") and
TensorFlow's own answers to them: "SIGNATURE/OUTPUT", and with the context before each example
"SIGNATURE/OUTPUT/context".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

LABELS = [b"low", b"middle", b"h\xc3\xb6chst"]
ROWS = 40


def _examples() -> tuple[list[bytes], bytes]:
    """Examples with a float, words and any number of ids; and one that the others may have in common."""
    rng = np.random.default_rng(5)
    rows = []
    for row in range(ROWS):
        example = tf.train.Example()
        feature = example.features.feature
        feature["x"].float_list.value.extend(rng.standard_normal(2))
        if row % 4:  # an entry without values would hide the context's
            feature["ids"].int64_list.value.extend(rng.integers(0, 50, row % 4))
        if row % 3:
            feature["word"].bytes_list.value.append([b"a", b"bc", b"def"][row % 3])
        rows.append(example.SerializeToString())
    context = tf.train.Example()
    context.features.feature["word"].bytes_list.value.append(b"context")
    context.features.feature["ids"].int64_list.value.extend([7, 8])
    return rows, context.SerializeToString()


def _scores(parsed: dict[str, Any], table: Any) -> Any:
    """[rows, 3]: something of every feature."""
    ids = tf.sparse.to_dense(parsed["ids"])
    kept = tf.cast(tf.range(tf.shape(ids)[1])[None, :] < _lengths(parsed["ids"])[:, None], tf.float32)
    of_ids = tf.reduce_sum(tf.gather(table, ids) * kept[:, :, None], 1)
    of_word = tf.cast(tf.strings.length(parsed["word"]), tf.float32)[:, None]
    return tf.nn.softmax(
        of_ids + of_word * 0.1 + tf.reduce_sum(parsed["x"], 1, keepdims=True) * [1.0, 0.0, -1.0]
    )


def _lengths(sparse: Any) -> Any:
    ones = tf.ones_like(sparse.values, tf.int32)
    return tf.math.unsorted_segment_sum(ones, sparse.indices[:, 0], tf.cast(sparse.dense_shape[0], tf.int32))


FEATURES = {
    "x": tf.io.FixedLenFeature([2], tf.float32),
    "word": tf.io.FixedLenFeature([], tf.string, b"none"),
    "ids": tf.io.VarLenFeature(tf.int64),
}


def _save_expected(path: Path, run: Callable[[list[bytes]], dict[str, Any]]) -> None:
    examples, context = _examples()
    arrays: dict[str, Any] = {"examples": np.array(examples, object), "context": np.array([context], object)}
    arrays |= run(examples)
    arrays |= {
        f"{name}/context": value for name, value in run([context + example for example in examples]).items()
    }
    np.savez(path / "expected.npz", **arrays)


def tensorflow1(path: Path) -> None:
    """As TensorFlow 1 exported them, with the methods in the signatures."""
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        serialized = v1.placeholder(tf.string, [None], "tf_example")
        anything = v1.placeholder(tf.string, name="tf_example_of_any_shape")
        table = v1.get_variable("table", initializer=np.linspace(-1, 1, 150, dtype=np.float32).reshape(50, 3))
        scores = _scores(v1.parse_example(serialized, FEATURES), table)
        labels = tf.tile(tf.constant(LABELS)[None, :], [tf.shape(scores)[0], 1])
        flat = scores[:, 0]
        unlike = tf.reshape(v1.parse_example(anything, FEATURES)["x"][:, :1] * 0.5 + 2.0, [-1, 1])
        session.run(v1.global_variables_initializer())

        define = v1.saved_model
        x = v1.placeholder(tf.float32, [None], "x")
        signatures = {
            "serving_default": define.predict_signature_def({"x": x}, {"y": x * 0.5 + 2.0}),
            "classify": define.classification_signature_def(serialized, labels, scores),
            "labels": define.classification_signature_def(serialized, labels, None),
            "scores": define.classification_signature_def(serialized, None, scores),
            "regress": define.regression_signature_def(serialized, flat),
            "column": define.regression_signature_def(serialized, scores[:, 1:2]),
            "unlike": define.regression_signature_def(anything, unlike),
            "wide": _signature(serialized, {"outputs": scores}, "tensorflow/serving/regress"),
            "flat": _signature(serialized, {"scores": flat}, "tensorflow/serving/classify"),
            "total": _signature(serialized, {"outputs": tf.reduce_sum(scores, 0)[:, None]}, "odd"),
            "whole": _signature(
                serialized, {"scores": tf.cast(scores, tf.float64)}, "tensorflow/serving/classify"
            ),
        }
        builder = v1.saved_model.Builder(str(path / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()

        def run(rows: list[bytes]) -> dict[str, Any]:
            answers = session.run(
                {
                    "classify/scores": scores,
                    "classify/classes": labels,
                    "regress/outputs": flat,
                    "column/outputs": scores[:, 1],
                    "unlike/outputs": unlike[:, 0],
                },
                {serialized: rows, anything: rows},
            )
            return dict(answers)

        _save_expected(path, run)


def _signature(serialized: Any, outputs: dict[str, Any], method: str) -> Any:
    """One that TensorFlow's helpers would not make."""
    utils = v1.saved_model.utils
    return v1.saved_model.signature_def_utils.build_signature_def(
        {"inputs": utils.build_tensor_info(serialized)},
        {alias: utils.build_tensor_info(tensor) for alias, tensor in outputs.items()},
        method,
    )


class Ranker(tf.Module):
    """As TensorFlow 2 exports them: every signature is of the method predict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.linspace(1, -1, 150, dtype=np.float32).reshape(50, 3))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs: Any) -> Any:
        scores = _scores(tf.io.parse_example(inputs, FEATURES), self.table)
        return {"scores": scores, "classes": tf.tile(tf.constant(LABELS)[None, :], [tf.shape(scores)[0], 1])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs: Any) -> Any:
        return {"outputs": _scores(tf.io.parse_example(inputs, FEATURES), self.table)[:, 2]}


def tensorflow2(path: Path) -> None:
    module = Ranker()
    signatures = {"serving_default": module.classify, "regress": module.regress}
    tf.saved_model.save(module, str(path / "1"), signatures=signatures)

    def run(rows: list[bytes]) -> dict[str, Any]:
        classes, values = module.classify(tf.constant(rows)), module.regress(tf.constant(rows))
        return {
            "serving_default/scores": classes["scores"].numpy(),
            "serving_default/classes": classes["classes"].numpy(),
            "regress/outputs": values["outputs"].numpy(),
        }

    _save_expected(path, run)


class Choices(tf.Module):
    """Inputs that a request may leave out."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, "x"),
            tf.TensorSpec([], tf.float32, "factor"),
            tf.TensorSpec([1], tf.float32, "shift"),
        ]
    )
    def scaled(self, x: Any, factor: Any = tf.constant(3.0), shift: Any = tf.constant([0.25])) -> Any:  # noqa: B008
        return {"y": x * factor + shift}


def defaults(path: Path) -> None:
    module = Choices()
    tf.saved_model.save(module, str(path / "1"), signatures={"serving_default": module.scaled})


def main(target: Path) -> None:
    for model in (tensorflow1, tensorflow2, defaults):
        (target / model.__name__).mkdir(parents=True)
        model(target / model.__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
