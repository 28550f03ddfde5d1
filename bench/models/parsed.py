"""parsed: a ranker that takes serialized tf.Examples, as Classify and Regress send them.

13 counts and 26 ids in each example; embeddings of 16, two dense layers. Signatures "classify" (classes and
scores of two classes) and "regress" (one value), both with the input "inputs".

    python bench/models/parsed.py OUT_DIR

writes OUT_DIR/1/, a SavedModel, and OUT_DIR/examples.npz: "examples", some thousand of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from exporting import RECORDED_ROWS, SEED, counts

FIELDS = 26
COUNTS = 13
IDS = 10_000
WIDTH = 16


def examples(rows: int) -> list[bytes]:
    """As fastserve.client packs them."""
    from fastserve.client.examples import serialize

    rng = np.random.default_rng(SEED)
    columns: dict[str, Any] = {"counts": counts(rng, rows, COUNTS)}
    ids = rng.integers(0, IDS, (rows, FIELDS))
    columns |= {f"id_{field}": ids[:, field] for field in range(FIELDS)}
    return list(serialize(columns))


def save(path: Path) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(SEED)

    class Ranker(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="parsed")
            draw = rng.standard_normal
            self.tables = [tf.Variable(draw((IDS, WIDTH)).astype(np.float32)) for _ in range(FIELDS)]
            self.first = tf.Variable(draw((FIELDS * WIDTH + COUNTS, 128)).astype(np.float32) * 0.05)
            self.second = tf.Variable(draw((128, 1)).astype(np.float32) * 0.1)

        def score(self, inputs):  # type: ignore[no-untyped-def]
            features = {f"id_{field}": tf.io.FixedLenFeature([], tf.int64) for field in range(FIELDS)}
            features["counts"] = tf.io.FixedLenFeature([COUNTS], tf.float32)
            parsed = tf.io.parse_example(inputs, features)
            rows = [tf.gather(table, parsed[f"id_{field}"]) for field, table in enumerate(self.tables)]
            hidden = tf.nn.relu(tf.concat([tf.math.log1p(parsed["counts"]), *rows], 1) @ self.first)
            return tf.sigmoid(hidden @ self.second)

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
