"""Exports the SavedModels that the end-to-end tests serve: `python tests/export_served_models.py DIR`.

Run by exported_models.py in a process of its own, because importing TensorFlow takes seconds. Each model's
versions lie in DIR/NAME/N. Those of all dtypes are export_saved_models.py's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf


def _signature(**inputs: tf.TensorSpec) -> Any:
    """A method that becomes a signature."""

    def wrap(function: Any) -> Any:
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()]
        return tf.function(function, input_signature=specs)

    return wrap


def _rows(dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec([None], dtype)


class Affine(tf.Module):
    """a * x + b."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(a), tf.Variable(b)

    @_signature(x=_rows())
    def serving_default(self, x: Any) -> Any:
        return {"y": self.a * x + self.b}


class Shapes(tf.Module):
    """Two inputs, words, scalars, any rank, and rows of any length."""

    @_signature(a=tf.TensorSpec([None, 3], tf.float32), b=tf.TensorSpec([None, 3], tf.float32))
    def serving_default(self, a: Any, b: Any) -> Any:
        return {"sum": a + b, "product": a * b}

    @_signature(word=_rows(tf.string))
    def words(self, word: Any) -> Any:
        return {"upper": tf.strings.upper(word), "length": tf.strings.length(word)}

    @_signature(x=tf.TensorSpec([], tf.float32))
    def scalar(self, x: Any) -> Any:
        return {"y": x * 2.0}

    @_signature(x=tf.TensorSpec(None, tf.float32))
    def any_rank(self, x: Any) -> Any:
        return {"y": x + 1.0, "shape": tf.shape(x)}

    @_signature(x=tf.TensorSpec([None, None], tf.float32))
    def wide(self, x: Any) -> Any:
        return {"y": x + 1.0}

    @_signature(x=tf.TensorSpec([None, None], tf.float32))
    def row_sum(self, x: Any) -> Any:
        return {"y": tf.reduce_sum(x, 1)}

    @_signature(x=_rows())
    def softmax(self, x: Any) -> Any:
        return {"p": tf.nn.softmax(x)}


class Slow(tf.Module):
    """Takes as many milliseconds as its largest input says, on the clock and not on the processor's pace."""

    @_signature(x=_rows())
    def serving_default(self, x: Any) -> Any:
        end = tf.timestamp() + tf.cast(tf.reduce_max(tf.concat([x, [0.0]], 0)), tf.float64) / 1e3
        rounds = tf.while_loop(lambda _: tf.timestamp() < end, lambda i: (i + 1,), (0,))[0]
        return {"y": x + 0.0 * tf.cast(rounds, tf.float32)}


class Brittle(tf.Module):
    """Rows that it refuses fail the whole run."""

    @_signature(x=_rows())
    def serving_default(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x >= 0), ["negative row"])]):
            return {"y": tf.sqrt(x)}

    @_signature(examples=_rows(tf.string))
    def parse(self, examples: Any) -> Any:
        features = {"x": tf.io.FixedLenFeature([], tf.float32)}
        return {"y": tf.io.parse_example(examples, features)["x"] * 2.0}

    @_signature(x=_rows())
    def never(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 1e9), ["it never works"])]):
            return {"y": x * 1.0}


class Ranking(tf.Module):
    """Candidates and their user: a score, and each row as it came. `centred` is of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(7)
        self.table = tf.Variable(rng.standard_normal((50, 8)).astype(np.float32))
        self.hidden = tf.Variable(rng.standard_normal((6 + 8 + 4, 32)).astype(np.float32))
        self.head = tf.Variable(rng.standard_normal((32, 1)).astype(np.float32))

    def score(self, user: Any, ids: Any, cand: Any) -> Any:
        found = tf.reduce_sum(tf.gather(self.table, tf.math.floormod(ids, 50)), 1)
        hidden = tf.nn.relu(tf.concat([user, found, cand], 1) @ self.hidden)
        return hidden @ self.head

    @_signature(
        user=tf.TensorSpec([None, 6], tf.float32),
        ids=tf.TensorSpec([None, 3], tf.int64),
        cand=tf.TensorSpec([None, 4], tf.float32),
    )
    def serving_default(self, user: Any, ids: Any, cand: Any) -> Any:
        return {"score": self.score(user, ids, cand), "row": tf.concat([user, cand], 1)}

    @_signature(
        user=tf.TensorSpec([None, 6], tf.float32),
        word=_rows(tf.string),
        cand=tf.TensorSpec([None, 4], tf.float32),
    )
    def words(self, user: Any, word: Any, cand: Any) -> Any:
        length = tf.cast(tf.strings.length(word), tf.int64)[:, None] + tf.constant([[0, 1, 2]], tf.int64)
        return {"score": self.score(user, length, cand), "word": tf.strings.upper(word)}

    @_signature(user=tf.TensorSpec([None, None], tf.float32), cand=_rows())
    def lengths(self, user: Any, cand: Any) -> Any:
        return {"y": tf.reduce_max(user, 1) + cand}

    @_signature(user=tf.TensorSpec([None, 6], tf.float32), cand=tf.TensorSpec([None, 4], tf.float32))
    def centred(self, user: Any, cand: Any) -> Any:
        rows = tf.concat([user, cand], 1)
        return {"y": rows - tf.reduce_mean(rows, 0)}


def _save(module: tf.Module, path: Path, *names: str) -> None:
    signatures = {name: getattr(module, name) for name in (names or ("serving_default",))}
    tf.saved_model.save(module, str(path), signatures=signatures)


def main(target: Path) -> None:
    _save(Affine(9.0, 9.0), target / "half" / "1")
    _save(Affine(0.5, 2.0), target / "half" / "2")
    shapes = ("serving_default", "words", "scalar", "any_rank", "wide", "row_sum", "softmax")
    _save(Shapes(), target / "shapes" / "1", *shapes)
    _save(Slow(), target / "slow" / "7")
    _save(Ranking(), target / "ranking" / "1", "serving_default", "words", "lengths", "centred")
    _save(Brittle(), target / "brittle" / "1", "serving_default", "parse", "never")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
