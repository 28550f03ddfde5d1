"""parsed: a ranker that takes serialized tf.Examples, as Classify and Regress send them.

5 numbers and 8 words in each example, as in the census data that TensorFlow's estimators were shown with; the
words hashed to embeddings of 16, two dense layers. Signatures "classify" (classes and scores of two classes)
and "regress" (one value), both with the input "inputs".

    python bench/models/parsed.py OUT_DIR

writes OUT_DIR/1/, a SavedModel, and OUT_DIR/examples.npz: "examples", some thousand of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from exporting import RECORDED_ROWS, SEED, counts

NUMBERS = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
WORDS = (
    "workclass", "education", "marital_status", "occupation", "relationship", "race", "sex", "country",
)  # fmt: skip
DIFFERENT = 40  # words of each kind
BUCKETS = 1000
WIDTH = 16


def examples(rows: int) -> list[bytes]:
    """As fastserve.client packs them."""
    from fastserve.client.examples import serialize

    rng = np.random.default_rng(SEED)
    columns: dict[str, Any] = {}
    for name, values in zip(NUMBERS, counts(rng, rows, len(NUMBERS)).T, strict=True):
        columns[name] = np.ascontiguousarray(values)
    for name in WORDS:
        columns[name] = [f"{name}-{word}".encode() for word in rng.integers(0, DIFFERENT, rows)]
    return list(serialize(columns))


def save(path: Path) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(SEED)

    class Ranker(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="parsed")
            draw = rng.standard_normal
            self.tables = [tf.Variable(draw((BUCKETS, WIDTH)).astype(np.float32)) for _ in WORDS]
            inputs = len(WORDS) * WIDTH + len(NUMBERS)
            self.first = tf.Variable(draw((inputs, 64)).astype(np.float32) * 0.05)
            self.second = tf.Variable(draw((64, 1)).astype(np.float32) * 0.1)

        def score(self, inputs):  # type: ignore[no-untyped-def]
            features = {name: tf.io.FixedLenFeature([], tf.string) for name in WORDS}
            features |= {name: tf.io.FixedLenFeature([1], tf.float32) for name in NUMBERS}
            parsed = tf.io.parse_example(inputs, features)
            rows = [tf.math.log1p(parsed[name]) for name in NUMBERS]
            for name, table in zip(WORDS, self.tables, strict=True):
                rows.append(tf.gather(table, tf.strings.to_hash_bucket_fast(parsed[name], BUCKETS)))
            return tf.sigmoid(tf.nn.relu(tf.concat(rows, 1) @ self.first) @ self.second)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs):  # type: ignore[no-untyped-def]
            yes = self.score(inputs)
            labels = tf.tile([["no", "yes"]], [tf.shape(yes)[0], 1])
            return {"scores": tf.concat([1.0 - yes, yes], 1), "classes": labels}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs):  # type: ignore[no-untyped-def]
            return {"outputs": self.score(inputs)[:, 0]}

    module = Ranker()
    tf.saved_model.save(
        module, str(path), signatures={"classify": module.classify, "regress": module.regress}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "examples.npz", examples=np.array(examples(RECORDED_ROWS), object))
    save(folder / "1")


if __name__ == "__main__":
    main()
