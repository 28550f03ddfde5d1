"""Exports what the conformance suite serves: `python tests/conformance/export_models.py DIR`.

Run by exported_models.py in a process of its own, because importing TensorFlow takes seconds. Each model's
versions lie in DIR/NAME/N. DIR/NAME/expected.npz has examples of calls with TensorFlow's own answers to them:
"SIGNATURE/in/ALIAS" and "SIGNATURE/out/ALIAS".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

Arrays = Mapping[str, Any]


def _keep(path: Path, calls: Mapping[str, tuple[Arrays, Arrays]]) -> None:
    """Writes expected.npz: for each signature what goes in and what TensorFlow said."""
    arrays = {}
    for signature, (inputs, outputs) in calls.items():
        arrays |= {f"{signature}/in/{alias}": np.asarray(value) for alias, value in inputs.items()}
        arrays |= {f"{signature}/out/{alias}": np.asarray(value) for alias, value in outputs.items()}
    np.savez(path / "expected.npz", **arrays)


def example(**features: Any) -> bytes:
    """A serialized tf.Example."""
    made = tf.train.Example()
    for name, value in features.items():
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(value)]
        getattr(made.features.feature[name], kind).value.append(value)
    serialized: bytes = made.SerializeToString()
    return serialized


# ---- as TensorFlow 1 exports -------------------------------------------------------------------


class Graph:
    """A graph of TensorFlow 1 whose signatures are said one by one."""

    def __init__(self) -> None:
        self._signatures: dict[str, Any] = {}
        self._calls: dict[str, tuple[Arrays, Arrays]] = {}
        self._session = v1.get_default_session()

    def signature(self, name: str, method: str, inputs: Arrays, outputs: Arrays, /, **example: Any) -> None:
        """`example`: inputs of a call whose answer is kept."""
        build = v1.saved_model.build_tensor_info
        self._signatures[name] = v1.saved_model.build_signature_def(
            {alias: build(tensor) for alias, tensor in inputs.items()},
            {alias: build(tensor) for alias, tensor in outputs.items()},
            method,
        )
        if example:
            self._calls[name] = example, dict(outputs)

    def save(self, path: Path, version: int) -> None:
        self._session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(path / str(version)))
        builder.add_meta_graph_and_variables(
            self._session,
            ["serve"],
            signature_def_map=self._signatures,
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
        answers = {}
        for name, (inputs, outputs) in self._calls.items():
            feeds = {
                self._session.graph.get_tensor_by_name(self._signatures[name].inputs[alias].name): value
                for alias, value in inputs.items()
            }
            answers[name] = inputs, self._session.run(outputs, feeds)
        _keep(path, answers)


def _graph(build: Callable[[Graph], None], path: Path, version: int) -> None:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph):
        made = Graph()
        build(made)
        made.save(path, version)


def half_plus_two(graph: Graph) -> None:
    """The classic: y = 0.5 * x + 2 by Predict, Classify and Regress, x from a tf.Example for the latter."""
    examples = v1.placeholder(tf.string, name="tf_example")
    parsed = v1.io.parse_example(examples, {"x": v1.io.FixedLenFeature([1], tf.float32)})
    x = tf.ensure_shape(parsed["x"], [None, 1], name="x")
    half = v1.get_variable("a", initializer=0.5)
    y = tf.add(half * x, 2.0, name="y")
    y2 = tf.add(half * x, 3.0, name="y2")
    some = np.array([example(x=2.0), example(x=-7.0)], object)
    graph.signature("serving_default", PREDICT, {"x": x}, {"y": y}, x=np.float32([[1], [5]]))
    graph.signature("regress_x_to_y", REGRESS, {"inputs": examples}, {"outputs": y}, inputs=some)
    graph.signature("regress_x_to_y2", REGRESS, {"inputs": examples}, {"outputs": y2}, inputs=some)
    graph.signature("classify_x_to_y", CLASSIFY, {"inputs": examples}, {"scores": y}, inputs=some)


def classes(graph: Graph) -> None:
    """Classify and Regress with every kind of output, and with outputs that neither of them can take."""
    examples = v1.placeholder(tf.string, [None], name="examples")
    features = {
        "x": v1.io.FixedLenFeature([], tf.float32, 1.0),
        "name": v1.io.FixedLenFeature([], tf.string, b"nobody"),
    }
    parsed = v1.io.parse_example(examples, features)
    x, rows = parsed["x"], tf.shape(examples)[0]
    scores = tf.stack([x, 2.0 * x, -x], 1)
    words = tf.stack([parsed["name"], tf.strings.join([parsed["name"], "?"]), tf.fill([rows], "z")], 1)
    some = np.array([example(x=3.0, name=b"ada"), example(x=0.5), example()], object)

    def classify(name: str, **outputs: Any) -> None:
        graph.signature(name, CLASSIFY, {"inputs": examples}, outputs, inputs=some)

    def regress(name: str, **outputs: Any) -> None:
        graph.signature(name, REGRESS, {"inputs": examples}, outputs, inputs=some)

    graph.signature(
        "predict", PREDICT, {"examples": examples}, {"x": x, "name": parsed["name"]}, examples=some
    )
    classify("both", scores=scores, classes=words)
    classify("only_scores", scores=scores)
    classify("only_classes", classes=words)
    regress("column", outputs=tf.expand_dims(x, 1))
    regress("vector", outputs=x)
    graph.signature("anonymous", "", {"inputs": examples}, {"outputs": x, "scores": scores})

    other = v1.placeholder(tf.float32, [None], name="other")
    wrong: list[tuple[str, str, Arrays, Arrays]] = [
        ("two_inputs", CLASSIFY, {"inputs": examples, "more": other}, {"scores": scores}),
        ("three_outputs", CLASSIFY, {"inputs": examples}, {"scores": scores, "classes": words, "more": x}),
        ("wrong_input", CLASSIFY, {"examples": examples}, {"scores": scores}),
        ("wrong_output", CLASSIFY, {"inputs": examples}, {"probabilities": scores}),
        ("flat_scores", CLASSIFY, {"inputs": examples}, {"scores": x}),
        ("flat_classes", CLASSIFY, {"inputs": examples}, {"classes": parsed["name"]}),
        ("double_scores", CLASSIFY, {"inputs": examples}, {"scores": tf.cast(scores, tf.float64)}),
        ("float_classes", CLASSIFY, {"inputs": examples}, {"classes": scores}),
        ("few_scores", CLASSIFY, {"inputs": examples}, {"scores": scores[:1]}),
        ("few_classes", CLASSIFY, {"inputs": examples}, {"classes": words[:1]}),
        ("unequal", CLASSIFY, {"inputs": examples}, {"scores": scores[:, :2], "classes": words}),
        ("regress_two_inputs", REGRESS, {"inputs": examples, "more": other}, {"outputs": x}),
        ("regress_two_outputs", REGRESS, {"inputs": examples}, {"outputs": x, "more": x}),
        ("regress_wrong_input", REGRESS, {"examples": examples}, {"outputs": x}),
        ("regress_wrong_output", REGRESS, {"inputs": examples}, {"y": x}),
        ("regress_matrix", REGRESS, {"inputs": examples}, {"outputs": scores}),
        ("regress_double", REGRESS, {"inputs": examples}, {"outputs": tf.cast(x, tf.float64)}),
        ("regress_few", REGRESS, {"inputs": examples}, {"outputs": x[:1]}),
        ("regress_elsewhere", REGRESS, {"inputs": tf.identity(examples)}, {"outputs": x}),
    ]  # fmt: skip
    for name, method, inputs, outputs in wrong:
        graph.signature(name, method, inputs, outputs)


def vocabulary(graph: Graph) -> None:
    """A hash table filled from an asset."""
    words = v1.placeholder(tf.string, [None], name="words")
    path = str(Path(sys.argv[1]) / "vocabulary" / "words.txt")
    v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, tf.constant(path))
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            path, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        default_value=-1,
    )
    some = np.array([b"two", b"four", b"", b"one"], object)
    graph.signature("serving_default", PREDICT, {"words": words}, {"id": table.lookup(words)}, words=some)


# ---- as TensorFlow 2 exports -------------------------------------------------------------------


def _signature(**inputs: tf.TensorSpec) -> Any:
    """A method that becomes a signature."""

    def wrap(function: Any) -> Any:
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()]
        return tf.function(function, input_signature=specs)

    return wrap


def _rows(dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec([None], dtype)


class Affine(tf.Module):
    """y = a * x + 2."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = tf.Variable(a)

    @_signature(x=_rows())
    def serving_default(self, x: Any) -> Any:
        return {"y": self.a * x + 2.0}


class Many(tf.Module):
    """One signature for each way in which tensors come and go."""

    @_signature(a=tf.TensorSpec([None, 2], tf.float32), b=tf.TensorSpec([None, 3], tf.float32))
    def serving_default(self, a: Any, b: Any) -> Any:
        return {"p": tf.reduce_sum(a, 1) + tf.reduce_sum(b, 1), "q": a}

    @_signature(word=_rows(tf.string))
    def strings(self, word: Any) -> Any:
        return {"upper": tf.strings.upper(word), "length": tf.strings.length(word)}

    @_signature(x=tf.TensorSpec([], tf.float32))
    def scalar(self, x: Any) -> Any:
        return {"y": 3.0 * x}

    @_signature(x=tf.TensorSpec(None, tf.float32))
    def any_rank(self, x: Any) -> Any:
        return {"y": x + 1.0, "shape": tf.shape(x)}

    @_signature(x=_rows())
    def softmax(self, x: Any) -> Any:
        return {"p": tf.nn.softmax(x)}

    @_signature(x=_rows())
    def total(self, x: Any) -> Any:
        return {"y": tf.reduce_sum(x)}

    @_signature(x=tf.TensorSpec([None, None], tf.float32))
    def row_sum(self, x: Any) -> Any:
        return {"y": tf.reduce_sum(x, 1)}

    @_signature(x=tf.TensorSpec([None, None], tf.float32))
    def wide(self, x: Any) -> Any:
        return {"y": 2.0 * x}

    @_signature(x=_rows())
    def positive(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 0), ["not positive"])]):
            return {"y": tf.identity(x)}

    @_signature(x=_rows())
    def slow(self, x: Any) -> Any:
        """Takes as many milliseconds as the largest x."""
        end = tf.timestamp() + tf.cast(tf.reduce_max(tf.concat([x, [0.0]], 0)), tf.float64) / 1e3
        rounds = tf.while_loop(lambda _: tf.timestamp() < end, lambda i: (i + 1,), (0,))[0]
        return {"y": x + 0.0 * tf.cast(rounds, tf.float32)}


MANY = {
    "serving_default": {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([[1, 2, 3], [0, 0, -1]])},
    "strings": {"word": np.array([b"ab", b"", b"x\x00y", "\u00fc".encode()], object)},
    "scalar": {"x": np.float32(14)},
    "any_rank": {"x": np.float32([[[1.5], [-1]]])},
    "softmax": {"x": np.float32([1, 2, -3])},
    "total": {"x": np.float32([1, 2, -3])},
    "row_sum": {"x": np.float32([[1, 2], [3, 4]])},
    "wide": {"x": np.float32([[1, 2], [3, 4]])},
    "positive": {"x": np.float32([1, 2])},
    "slow": {"x": np.float32([0])},
}


class Scaled(tf.Module):
    """An input with a default."""

    @_signature(x=_rows(), factor=tf.TensorSpec([], tf.float32))
    def serving_default(self, x: Any, factor: Any = tf.constant(3.0)) -> Any:  # noqa: B008 - the point of it
        return {"y": x * factor}


def _save(module: tf.Module, path: Path, version: int, calls: Mapping[str, Arrays]) -> None:
    signatures = {name: getattr(module, name) for name in calls}
    tf.saved_model.save(module, str(path / str(version)), signatures=signatures)
    answers = {}
    for name, inputs in calls.items():
        outputs = signatures[name](**{alias: tf.constant(value) for alias, value in inputs.items()})
        answers[name] = inputs, {alias: tensor.numpy() for alias, tensor in outputs.items()}
    _keep(path, answers)


def keras(path: Path) -> None:
    """A Sequential, exported as Keras does."""
    tf.keras.utils.set_random_seed(3)
    layers = [
        tf.keras.layers.Dense(16, activation="relu"),
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.Dense(3, activation="softmax"),
    ]
    model = tf.keras.Sequential([tf.keras.Input([4], name="features"), *layers])
    model.export(str(path / "1"), verbose=False)
    signature = tf.saved_model.load(str(path / "1")).signatures["serving_default"]
    (alias,) = signature.structured_input_signature[1]
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(6, 4)
    outputs = signature(**{alias: tf.constant(x)})
    _keep(path, {"serving_default": ({alias: x}, {name: t.numpy() for name, t in outputs.items()})})


def main(target: Path) -> None:
    _graph(half_plus_two, target / "half_plus_two", 123)
    _graph(classes, target / "classes", 1)
    (target / "vocabulary").mkdir(parents=True)
    (target / "vocabulary" / "words.txt").write_text("one\ntwo\nthree\n")
    _graph(vocabulary, target / "vocabulary", 1)
    (target / "vocabulary" / "words.txt").unlink()  # the export has a copy of its own
    half = {"serving_default": {"x": np.float32([1, 2, 5])}}
    _save(Affine(0.5), target / "versions", 1, half)
    _save(Affine(-1.0), target / "versions", 2, half)
    _save(Many(), target / "many", 1, MANY)
    scaled = {"serving_default": {"x": np.float32([1, 2]), "factor": np.float32(5)}}
    _save(Scaled(), target / "defaults", 1, scaled)
    keras(target / "keras")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
