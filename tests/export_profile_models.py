"""Exports the SavedModels that the tests of `fastserve profile` open: `python tests/export_profile_models.py
DIR`.

Run by exported_models.py. planted/1 has a slow op, a node that breaks an XLA cluster, and a one-hot vector
that goes into a product, each in a name scope of its own, and the same slow op in a function that is not put
into the graph; layers/1 is a Keras model. apart/1 has strings in a function that is not put into the graph,
between what XLA compiles, a signature that takes words of digits only, and one that takes four rows only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf

DENSE, WIDE, CITIES = 64, 896, 500


def _weights(*shape: int) -> tf.Variable:
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) / np.sqrt(shape[0])
    return tf.Variable(values, dtype=tf.float32)


class Planted(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _weights(DENSE, DENSE), _weights(DENSE, DENSE)
        self.wide, self.slow = _weights(DENSE, WIDE), _weights(WIDE, WIDE)
        self.cities = _weights(CITIES, DENSE)
        self.last = _weights(DENSE, 1)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="city"),
            tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
        ]
    )
    def score(self, city: Any, dense: Any) -> Any:
        with tf.name_scope("tower"):
            hidden = tf.nn.relu(tf.tanh(dense @ self.first) @ self.second)
        with tf.name_scope("rounding"):
            # Strings: XLA compiles neither.
            few = tf.strings.to_number(tf.strings.as_string(hidden[:, :4], precision=3))
            rounded = tf.concat([few, hidden[:, 4:]], axis=1)
        with tf.name_scope("city_one_hot"):
            place = tf.one_hot(city, CITIES) @ self.cities
        with tf.name_scope("slow_layer"):
            slow = tf.reduce_sum((rounded @ self.wide) @ self.slow, axis=1, keepdims=True)
        with tf.name_scope("head"):
            return {"score": tf.sigmoid(tf.tanh(rounded + place) @ self.last + slow * 1e-3)}

    @tf.function(
        input_signature=[tf.TensorSpec([None, DENSE], tf.float32, name="dense")],
        experimental_attributes={"_noinline": True},
    )
    def apart(self, dense: Any) -> Any:
        return (dense @ self.wide) @ self.slow

    @tf.function(input_signature=[tf.TensorSpec([None, DENSE], tf.float32, name="dense")])
    def calls(self, dense: Any) -> Any:
        return {"sum": tf.reduce_sum(self.apart(dense), axis=1)}


class Apart(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _weights(DENSE, DENSE), _weights(DENSE, 1)

    @tf.function(experimental_attributes={"_noinline": True})
    def rounded(self, values: Any) -> Any:
        with tf.name_scope("inner"):
            return tf.strings.to_number(tf.strings.as_string(values, precision=3))

    @tf.function(input_signature=[tf.TensorSpec([None, DENSE], tf.float32, name="dense")])
    def score(self, dense: Any) -> Any:
        hidden = self.rounded(tf.nn.relu(tf.tanh(dense @ self.first) + 1.0))
        return {"score": tf.sigmoid(tf.tanh(hidden * 2.0) @ self.second)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def numbers(self, word: Any) -> Any:
        return {"number": tf.tanh(tf.strings.to_number(word))}

    @tf.function(input_signature=[tf.TensorSpec([4, 3], tf.float32, name="x")])
    def fixed(self, x: Any) -> Any:
        return {"sums": self.first[:2, :4] @ x}


def main(target: Path) -> None:
    planted = Planted()
    tf.saved_model.save(
        planted,
        str(target / "planted" / "1"),
        signatures={"serving_default": planted.score, "calls": planted.calls},
    )
    apart = Apart()
    tf.saved_model.save(
        apart,
        str(target / "apart" / "1"),
        signatures={"serving_default": apart.score, "numbers": apart.numbers, "fixed": apart.fixed},
    )
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.Input((16,), name="features")
    hidden = tf.keras.layers.Dense(256, activation="relu", name="hidden_units")(inputs)
    layers = tf.keras.Model(inputs, tf.keras.layers.Dense(1, name="click")(hidden))
    layers.export(str(target / "layers" / "1"), verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
