"""Sources for `fastserve export`, each a function that returns one: PATH.py:FUNCTION."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

ANY, ONE = tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([1, 3], tf.float32, "x")


def words() -> tf.Module:
    """Two signatures, a table, and inputs below a dict."""

    class Words(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            keys, values = tf.constant(["a", "b"]), tf.constant([10, 20], tf.int64)
            self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), -1)
            self.scale = tf.Variable([2.0, 3.0, 4.0])

        @tf.function(
            input_signature=[{"word": tf.TensorSpec([None], tf.string), "x": tf.TensorSpec([None, 3])}]
        )
        def serving_default(self, features: Any) -> Any:
            return {"id": self.table.lookup(features["word"]), "scaled": features["x"] * self.scale}

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "numbers")])
        def total(self, numbers: Any) -> Any:
            return tf.reduce_sum(numbers * self.scale, 1)

    return Words()


def closed_over() -> dict[str, Any]:
    """A table that only the function knows."""
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [5, 6]), 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "key")])
    def look(key: Any) -> Any:
        return {"value": table.lookup(key)}

    return {"serving_default": look}


def hidden_table() -> dict[str, Any]:
    hidden = SimpleNamespace(
        table=tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [5, 6]), 0)
    )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "key")])
    def look(key: Any) -> Any:
        return {"value": hidden.table.lookup(key)}

    return {"serving_default": look}


class FilledOnce(tf.lookup.StaticHashTable):
    """Full here, and empty wherever it is loaded."""

    filled = False

    def _initialize(self) -> Any:
        if self.filled:
            return tf.no_op()
        self.filled = True
        return super()._initialize()


def empty_table() -> dict[str, Any]:
    table = FilledOnce(tf.lookup.KeyValueTensorInitializer([1, 2], [5, 6]), 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "key")])
    def look(key: Any) -> Any:
        return {"value": table.lookup(key)}

    return {"serving_default": look}


def python_function() -> dict[str, Any]:
    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        return {"y": tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32, name="of_numpy"), [None, 3])}

    return {"serving_default": serve}


def python_branch() -> dict[str, Any]:
    """The call into Python is in a branch that is seldom taken."""

    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        return tf.cond(
            tf.reduce_any(x > 1e9), lambda: tf.py_function(lambda v: v, [x], tf.float32), lambda: x
        )

    return {"serving_default": serve}


def numpy_layer() -> Any:
    class Sorted(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.constant(np.sort(x.numpy()))

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    inputs = keras.Input((3,))
    return keras.Model(inputs, Sorted()(inputs))


def takes_one() -> dict[str, Any]:
    """Insists on one row, for no reason."""

    @tf.function(input_signature=[ONE])
    def serve(x: Any) -> Any:
        return {"y": tf.reshape(x * 2.0, tf.shape(x)), "last": x[:, -1]}

    return {"serving_default": serve}


def is_made_for_one() -> dict[str, Any]:
    """One row is built into it."""

    @tf.function(input_signature=[ONE])
    def serve(x: Any) -> Any:
        return {"y": tf.reshape(x, [1, 3]) * 2.0}

    return {"serving_default": serve}


def first_row_for_all() -> dict[str, Any]:
    """Says that it takes any number of rows when it is traced with one that is unknown."""

    @tf.function(input_signature=[ONE])
    def serve(x: Any) -> Any:
        return {"y": tf.zeros_like(x) + x[:1] * 2.0}

    return {"serving_default": serve}


def averages() -> dict[str, Any]:
    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        return {"y": x, "mean": tf.reduce_mean(x)}

    return {"serving_default": serve}


def draws() -> dict[str, Any]:
    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        return {"y": x + tf.random.uniform(tf.shape(x))}

    return {"serving_default": serve}


def picky() -> dict[str, Any]:
    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_greater(x, 100.0, "too small")]):
            return {"y": x + 1.0}

    return {"serving_default": serve}


def ragged() -> dict[str, Any]:
    @tf.function(input_signature=[ANY])
    def serve(x: Any) -> Any:
        return {"y": tf.RaggedTensor.from_tensor(x)}

    return {"serving_default": serve}


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = keras.layers.Embedding(5, 2)
        self.dense = keras.layers.Dense(1)

    def call(self, ids: Any, training: bool = False) -> Any:
        hidden = tf.reduce_sum(self.embedding(ids), 1)
        return {"score": self.dense(hidden), "drawn": keras.ops.cast(hidden > 0, "int32")}


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((2, 4), np.int64))
    return model


class Forgetful(keras.Model):
    """Of two arguments, Keras remembers the first one's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return [self.dense(left), self.dense(right)]


class Mindful(Forgetful):
    def build(self, left_shape: Any, right_shape: Any) -> None:
        self.dense.build(left_shape)


def two_arguments(kind: type[Forgetful] = Mindful) -> Any:
    model = kind()
    model(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    return model


def forgetful() -> Any:
    return two_arguments(Forgetful)


def never_called() -> Any:
    return Subclassed()


def stateful() -> Any:
    inputs = keras.Input(batch_shape=(1, 2, 3))
    return keras.Model(inputs, keras.layers.LSTM(2, stateful=True)(inputs))


def sparse() -> Any:
    inputs = keras.Input((3,), sparse=True, name="counts")
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


def with_temperature() -> dict[str, Any]:
    """One input has rows, the other one a single number in a vector."""

    @tf.function(input_signature=[ANY, tf.TensorSpec([1], tf.float32, "temperature")])
    def serve(x: Any, temperature: Any) -> Any:
        return {"y": x / (1.0 + temperature[0] ** 2)}

    return {"serving_default": serve}


def fixed_keras() -> Any:
    """A batch size that Keras was told and that nothing needs."""
    inputs = keras.Input(batch_shape=(4, 3), name="x")
    return keras.Model(inputs, keras.layers.Dense(2, name="y")(inputs))


def nothing() -> int:
    return 3


def fails() -> None:
    raise OSError("weights.h5: no such file")
