"""Deep Interest Network: candidates are scored against the user's history by attention.

item, category: int64 [N], the candidate. history_items, history_categories: int64 [N, L], what the user
looked at, with L the same for all rows of a request and 0 for padding. user: int64 [N, 8], profile fields.
dense: float32 [N, 16]. score: float32 [N, 1]. An activation unit of 80-40 looks at each item of the history
beside the candidate; what it weights goes through 200-80.

A recorded request is one user and his candidates: rows come in runs of CANDIDATES with the same history,
repeated for each, as clients of TensorFlow Serving send it. A history has 50 to 200 items behind one 0. The
0 is there because servers that pad requests of unequal lengths (`pad_variable_length_inputs`) fill up with
the first element of the tensor: so they fill up with padding. Recorded histories are padded to the longest
with 0 behind them, which the harness cuts off again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from exporting import (
    SEED,
    Export,
    Fields,
    LogScale,
    Size,
    Weights,
    counts,
    layer,
    main,
    relu_layers,
    zipf,
    zipf_fields,
)

ITEMS = 300_000
CATEGORIES = 5_000
WIDTH = 16
USER = (1_000_000, 50_000, 1_000, 500, 100, 50, 12, 3)
USER_WIDTH = 8
USER_ROWS = 50_000
DENSE = 16
ATTENTION = (80, 40)
TOWER = (200, 80)
CANDIDATES = 50
HISTORY = (50, 200)


def rows(size: Size, items: int) -> dict[str, npt.NDArray[Any]]:
    """Recorded rows: whole requests of CANDIDATES rows each."""
    rng = np.random.default_rng([SEED, 2])
    users = max(4, size.rows // CANDIDATES)
    category_of = rng.integers(1, CATEGORIES, items)
    category_of[0] = 0
    # Lengths are log-normal within their bounds: most users have looked at little, some at much.
    lengths = np.clip(np.exp(rng.normal(4.5, 0.5, users)), *HISTORY).astype(np.int64)
    history = np.zeros((users, 1 + HISTORY[1]), np.int64)
    for user, length in enumerate(lengths):
        history[user, 1 : 1 + length] = 1 + zipf(rng, items - 1, (length,))
    item = 1 + zipf(rng, items - 1, (users * CANDIDATES,), 0.8)
    repeated = np.repeat(history, CANDIDATES, axis=0)
    return {
        "item": item,
        "category": category_of[item],
        "history_items": repeated,
        "history_categories": category_of[repeated],
        "user": np.repeat(zipf_fields(rng, USER, users), CANDIDATES, axis=0),
        "dense": counts(rng, users * CANDIDATES, DENSE),
    }


def make(size: Size) -> Export:
    import tensorflow as tf

    items, categories = min(ITEMS, size.table), min(CATEGORIES, size.table)
    fields = Fields(USER, min(USER_ROWS, size.table))
    recorded = rows(size, items)
    scaled = LogScale(recorded["dense"])

    class Din(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="din")
            weights = Weights()
            self.items = weights.embedding("items", items, WIDTH)
            self.categories = weights.embedding("categories", categories, WIDTH)
            self.users = weights.embedding("users", fields.table_rows, USER_WIDTH)
            width = 2 * WIDTH
            self.attention = weights.tower("attention", (4 * width, *ATTENTION))
            self.weight = weights.dense("weight", ATTENTION[-1], 1)
            inputs = 3 * width + len(USER) * USER_WIDTH + DENSE
            self.tower = weights.tower("tower", (inputs, *TOWER))
            self.head = weights.dense("head", TOWER[-1], 1)

        def embed(self, item, category):  # type: ignore[no-untyped-def]
            found = tf.gather(self.items, tf.math.floormod(item, items))
            kind = tf.gather(self.categories, tf.math.floormod(category, categories))
            return tf.concat([found, kind], axis=-1)

        def interest(self, target, history, mask):  # type: ignore[no-untyped-def]
            """[n, w] and [n, l, w] to [n, w]: the history, each item weighted by what it says of target."""
            beside = tf.expand_dims(target, 1) + tf.zeros_like(history)
            pairs = tf.concat([history, beside, history - beside, history * beside], axis=2)
            flat = tf.reshape(pairs, [-1, 8 * WIDTH])
            weight = layer(relu_layers(flat, self.attention), self.weight)
            weight = tf.reshape(weight, [-1, 1, tf.shape(history)[1]]) * tf.expand_dims(mask, 1)
            return tf.squeeze(tf.matmul(weight, history), 1) / (tf.reduce_sum(mask, 1, keepdims=True) + 1.0)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.int64, name="item"),
                tf.TensorSpec([None], tf.int64, name="category"),
                tf.TensorSpec([None, None], tf.int64, name="history_items"),
                tf.TensorSpec([None, None], tf.int64, name="history_categories"),
                tf.TensorSpec([None, len(USER)], tf.int64, name="user"),
                tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
            ]
        )
        def predict(self, item, category, history_items, history_categories, user, dense):  # type: ignore[no-untyped-def]
            target = self.embed(item, category)
            history = self.embed(history_items, history_categories)
            mask = tf.cast(tf.not_equal(history_items, 0), tf.float32)
            interest = self.interest(target, history, mask)
            profile = tf.reshape(tf.gather(self.users, fields.rows_of(user)), [-1, len(USER) * USER_WIDTH])
            features = scaled(dense)
            together = tf.concat([target, interest, target * interest, profile, features], axis=1)
            return {"score": tf.sigmoid(layer(relu_layers(together, self.tower), self.head))}

    module = Din()
    return Export(module, module.predict, recorded)


if __name__ == "__main__":
    main(make, __doc__)
