"""Exports the SavedModels whose versions come and go in tests: `python tests/export_lifecycle_models.py DIR`.

Run by exported_models.py in a process of its own, because importing TensorFlow takes seconds. DIR/NAME is a
version: tests copy it to where they want one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf

_X = [tf.TensorSpec([None], tf.float32, "x")]


class Half(tf.Module):
    """x / 2 + 2, or with another summand."""

    def __init__(self, summand: float = 2.0) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(0.5), tf.Variable(summand)

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        return {"y": self.a * x + self.b}


class Picky(Half):
    """Half, which does not take 13."""

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_none_equal(x, 13.0, message="13 is bad luck")]):
            return {"y": self.a * x + self.b}


class Hanging(Half):
    """Never comes to an end."""

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        endless = tf.while_loop(lambda i: i < 2.0, lambda i: (tf.math.sin(i),), (tf.reduce_sum(x) * 0.0,))[0]
        return {"y": self.a * x + self.b + endless}


class Crashing(Half):
    """Ends its process."""

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="on purpose")]):
            return {"y": self.a * x + self.b}


class Slow(Half):
    """Half, after as many products of matrices as the largest input says."""

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        n = tf.cast(tf.reduce_max(x), tf.int32)
        m = tf.while_loop(
            lambda i, m: i < n, lambda i, m: (i + 1, tf.math.sin(tf.linalg.matmul(m, m))), (0, tf.eye(200))
        )[1]
        return {"y": self.a * x + self.b + 0.0 * m[0, 0]}


class Wordy(Half):
    """Half, with a lot of code in a few ops."""

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        much = tf.math.digamma(x) + tf.math.igamma(x, x + 1.0)
        return {"y": self.a * x + self.b + tf.where(much == -12345.0, 1.0, 0.0)}


class Large(Half):
    """Half, with a variable of 64 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_uniform([16 << 20], [1, 2]))

    @tf.function(input_signature=_X)
    def serve(self, x: Any) -> Any:
        return {"y": self.a * x + self.b + 0.0 * self.weights[0]}


MODELS = {
    "half": Half,
    "other": lambda: Half(7.0),
    "picky": Picky,
    "hanging": Hanging,
    "crashing": Crashing,
    "slow": Slow,
    "wordy": Wordy,
    "large": Large,
}


def main() -> None:
    root = Path(sys.argv[1])
    for name, make in MODELS.items():
        module = make()
        tf.saved_model.save(module, str(root / name), signatures={"serving_default": module.serve})


if __name__ == "__main__":
    main()
