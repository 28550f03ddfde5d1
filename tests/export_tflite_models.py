"""Writes TFLite models for tests, with TensorFlow's own answers: python export_tflite_models.py DIR.

DIR/NAME/1/model.tflite is a version, DIR/NAME/expected.npz has SIGNATURE/in/ALIAS and SIGNATURE/out/ALIAS as
the function gave it in TensorFlow, before it was converted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Answers = dict[str, Any]

ROWS = 5


def write(path: Path, converted: bytes, answers: Answers) -> None:
    version = path / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.tflite").write_bytes(converted)
    np.savez(path / "expected.npz", **answers)


def asked(name: str, function: Callable[..., Mapping[str, Any]], feed: Mapping[str, Any]) -> Answers:
    got = function(**{alias: tf.constant(value) for alias, value in feed.items()})
    return {
        **{f"{name}/in/{alias}": value for alias, value in feed.items()},
        **{f"{name}/out/{alias}": value.numpy() for alias, value in got.items()},
    }


def saved(module: tf.Module, path: Path, **functions: Any) -> str:
    """A SavedModel to convert: its directory."""
    where = str(path / "saved")
    tf.saved_model.save(module, where, signatures=functions)
    return where


def convert(module: tf.Module, path: Path, feeds: Mapping[str, Mapping[str, Any]], **functions: Any) -> None:
    """One signature for each of `functions`, asked with what `feeds` has for it."""
    converter = tf.lite.TFLiteConverter.from_saved_model(
        saved(module, path, **functions), signature_keys=sorted(functions)
    )
    answers: Answers = {}
    for name, function in functions.items():
        answers |= asked(name, function, feeds[name])
    write(path, converter.convert(), answers)


def half_plus_two(path: Path, offset: float = 2.0) -> None:
    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 0.5 * x + offset}

    module = Half()
    feed = {"x": np.array([0, 1, -4, 100, 0.5], np.float32)}
    convert(module, path, {"serving_default": feed}, serving_default=module.serve)


def both(path: Path) -> None:
    """A version with a SavedModel that gives x / 2 + 2, and a TFLite model that gives x / 2 + 3."""
    half_plus_two(path, offset=3.0)

    class Half(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 0.5 * x + 2.0}

    module = Half()
    tf.saved_model.save(module, str(path / "1"), signatures={"serving_default": module.serve})


def ranker(path: Path) -> None:
    """Two inputs, an embedding, a few layers, two outputs and a second signature."""
    rng = np.random.default_rng(5)

    class Ranker(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.constant(rng.normal(size=(100, 8)), tf.float32)
            self.first = tf.constant(rng.normal(size=(13 + 4 * 8, 64)) / 8, tf.float32)
            self.second = tf.constant(rng.normal(size=(64, 1)) / 8, tf.float32)

        def layers(self, dense: tf.Tensor, sparse: tf.Tensor) -> tf.Tensor:
            embedded = tf.reshape(tf.gather(self.table, sparse), [-1, 32])
            return tf.nn.relu(tf.matmul(tf.concat([dense, embedded], 1), self.first))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 13], tf.float32, name="dense"),
                tf.TensorSpec([None, 4], tf.int64, name="sparse"),
            ]
        )
        def score(self, dense: tf.Tensor, sparse: tf.Tensor) -> dict[str, tf.Tensor]:
            hidden = self.layers(dense, sparse)
            return {"score": tf.nn.sigmoid(tf.matmul(hidden, self.second)), "hidden": hidden}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.int64, name="sparse")])
        def embed(self, sparse: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"embedded": tf.gather(self.table, sparse)}

    module = Ranker()
    sparse = rng.integers(0, 100, (ROWS, 4))
    feeds = {
        "serving_default": {"dense": rng.normal(size=(ROWS, 13)).astype(np.float32), "sparse": sparse},
        "embed": {"sparse": sparse},
    }
    convert(module, path, feeds, serving_default=module.score, embed=module.embed)


DTYPES = {
    "float32": [0.5, -1.5, 3e38], "float64": [0.5, -1e300, 2.0], "float16": [0.5, -2.0, 65504.0],
    "int8": [-128, 0, 127], "uint8": [0, 7, 255], "int16": [-32768, 0, 32767], "uint16": [0, 7, 65535],
    "int32": [-(1 << 31), 0, (1 << 31) - 1], "uint32": [0, 7, (1 << 32) - 1],
    "int64": [-(1 << 63), 0, (1 << 63) - 1], "uint64": [0, 7, (1 << 64) - 1],
    "bool": [True, False, True], "complex64": [1 + 2j, -1j, 0.0],
}  # fmt: skip


def dtype(path: Path, name: str) -> None:
    """An extra dimension: any type goes through."""

    class Expand(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], getattr(tf, name), name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.expand_dims(x, 1)}

    module = Expand()
    feed = {"x": np.array([DTYPES[name], DTYPES[name][::-1]], name)}
    convert(module, path, {"serving_default": feed}, serving_default=module.serve)


def picture(path: Path) -> None:
    """A small convolutional net with a batch of exactly one, as converters make it of a fixed shape; and no
    signature."""
    rng = np.random.default_rng(6)
    kernel = tf.constant(rng.normal(size=(3, 3, 3, 8)) / 5, tf.float32)
    last = tf.constant(rng.normal(size=(8, 4)), tf.float32)

    def net(x: tf.Tensor) -> tf.Tensor:
        y = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))
        return tf.nn.softmax(tf.matmul(tf.reduce_mean(y, [1, 2]), last))

    concrete = tf.function(net).get_concrete_function(tf.TensorSpec([1, 16, 16, 3], tf.float32, name="image"))
    converted = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    images = rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32)
    write(
        path, without_signatures(converted), {"images": images, "classes": net(tf.constant(images)).numpy()}
    )


def without_signatures(model: bytes) -> bytes:
    from tensorflow.lite.tools import flatbuffer_utils

    unpacked = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    unpacked.signatureDefs = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(unpacked))


def one_function(
    path: Path, function: Callable[[tf.Tensor], tf.Tensor], spec: tf.TensorSpec, feed: Any
) -> None:
    class Module(tf.Module):
        @tf.function(input_signature=[spec])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": function(x)}

    module = Module()
    convert(module, path, {"serving_default": {"x": feed}}, serving_default=module.serve)


def main(target: Path) -> None:
    half_plus_two(target / "half_plus_two")
    both(target / "both")
    ranker(target / "ranker")
    picture(target / "picture")
    for name in DTYPES:
        dtype(target / f"dtype_{name}", name)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    floats = tf.TensorSpec([None, 3], tf.float32, name="x")
    one_function(target / "centred", lambda x: x - tf.reduce_mean(x, 0), floats, rows)
    one_function(target / "positive", lambda x: tf.boolean_mask(x, x > 3.0), floats, rows)
    # A shape that depends on values at the end, and in the middle.
    one_function(target / "shaped", lambda x: tf.reshape(x, [tf.shape(x)[0], 3, 1]), floats, rows)
    one_function(
        target / "passing", lambda x: 2.0 * tf.reshape(x, [tf.shape(x)[0], 3, 1]) + 1.0, floats, rows
    )
    text = tf.TensorSpec([None], tf.string, name="x")
    one_function(target / "strings", lambda x: tf.gather(x, [0]), text, np.array(["a", "b"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
