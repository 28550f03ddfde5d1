"""A small click-through model for the web service: hashed ids, a vocabulary and some counts to a score.

    python examples/web_ranking/model.py [DIRECTORY]

trains it for some seconds on clicks that it makes up, and exports it to DIRECTORY/ads/1 (default:
examples/web_ranking/models). Inputs: `ids`, int64 [n, 4] (user, ad, country, country x category), and
`counts`, float [n, 3]. Output: `score`, float [n]. The numbers of buckets and the countries are
features.py's.

Knows TensorFlow and features.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from features import BUCKETS, columns_of, pack

SEED = 5
STEPS = 300
BATCH_ROWS = 256
WIDTH = 8
CATEGORIES = ("books", "garden", "music", "shoes", "toys")
COUNTRIES = ("AT", "DE", "FR", "GB", "IT", "US")


def made_up(rng: np.random.Generator, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Raw requests of one ad each, and who clicked: each country has a category that it likes."""
    country, category = rng.integers(0, len(COUNTRIES), rows), rng.integers(0, len(CATEGORIES), rows)
    price = rng.lognormal(2.0, 1.0, rows)
    taste = np.where(category == country % len(CATEGORIES), 2.5, -1.0) - 0.3 * np.log1p(price)
    clicks = (rng.random(rows) < 1 / (1 + np.exp(-taste))).astype(np.float32)
    requests = [
        {
            "user": {
                "id": f"u{rng.integers(5000)}",
                "country": COUNTRIES[c],
                "age": int(rng.integers(16, 90)),
            },
            "ads": [{"id": f"a{rng.integers(900)}", "category": CATEGORIES[k], "price": p, "shown": 10}],
        }
        for c, k, p in zip(country, category, price, strict=True)
    ]
    parts = [columns_of(request) for request in requests]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, clicks


def export(directory: Path) -> float:
    """Trains and exports. The loss on clicks that it has not seen; 0.69 would be none the wiser."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    offsets = np.concatenate([[0], np.cumsum(BUCKETS)[:-1]])
    table = tf.Variable(tf.random.normal([sum(BUCKETS), WIDTH], stddev=0.05, seed=SEED))
    glorot = tf.keras.initializers.GlorotUniform(seed=SEED)
    hidden, bias = tf.Variable(glorot([len(BUCKETS) * WIDTH + 3, 32])), tf.Variable(tf.zeros([32]))
    top, top_bias = tf.Variable(glorot([32, 1])), tf.Variable(tf.zeros([1]))
    weights = [table, hidden, bias, top, top_bias]

    def logits(ids, counts):  # type: ignore[no-untyped-def]
        rows = tf.gather(table, ids + offsets)
        flat = tf.concat([tf.reshape(rows, [-1, len(BUCKETS) * WIDTH]), counts], axis=1)
        return (tf.nn.relu(flat @ hidden + bias) @ top + top_bias)[:, 0]

    optimizer = tf.keras.optimizers.Adam(1e-2)

    @tf.function
    def step(ids, counts, clicks):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(clicks, logits(ids, counts)))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    columns, clicks = made_up(rng, 20_000)
    inputs = pack(columns)
    for _ in range(STEPS):
        rows = rng.integers(0, len(clicks) - 1000, BATCH_ROWS)
        step(tf.constant(inputs["ids"][rows]), tf.constant(inputs["counts"][rows]), tf.constant(clicks[rows]))
    unseen = logits(inputs["ids"][-1000:], inputs["counts"][-1000:])
    loss = float(tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(clicks[-1000:], unseen)))

    class Ranker(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="ads")
            self.weights = weights

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, len(BUCKETS)], tf.int64, name="ids"),
                tf.TensorSpec([None, 3], tf.float32, name="counts"),
            ]
        )
        def rank(self, ids, counts):  # type: ignore[no-untyped-def]
            return {"score": tf.sigmoid(logits(ids, counts))}

    ranker = Ranker()
    tf.saved_model.save(ranker, str(directory / "ads" / "1"), signatures={"serving_default": ranker.rank})
    return loss


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "models"
    print(f"{target}/ads/1: loss {export(target):.3f}")
