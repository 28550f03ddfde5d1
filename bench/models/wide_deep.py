"""Wide and deep, as large ad rankers have it: many dense features, a linear part with crosses, 3 x 256.

dense: float32 [N, 600], heavy-tailed counts and rates. sparse: int64 [N, 40], hashes of 32 bits.
score: float32 [N, 1]. Wide: a weight for each dense feature, each id and each of 12 crosses of two ids.
Deep: embeddings of width 8 and the dense features through three layers of 256.
"""

from __future__ import annotations

import numpy as np
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
    zipf_fields,
)

DENSE = 600
CARDINALITIES = (
    (300_000, 200_000, 100_000, 60_000) + (20_000,) * 6 + (5_000,) * 8 + (500,) * 10 + (50,) * 8 + (7,) * 4
)
WIDTH = 8
DEEP = (256, 256, 256)
CROSSES = 12
CROSS_ROWS = 50_000
ROWS = 2048  # recorded: a row has 2.7 kB


def make(size: Size) -> Export:
    import tensorflow as tf

    fields = Fields(CARDINALITIES, size.table)
    n_fields = len(CARDINALITIES)
    rng = np.random.default_rng(SEED)
    dense = counts(rng, min(size.rows, ROWS), DENSE)
    dense[:, ::2] = rng.random(dense[:, ::2].shape) ** 3  # rates: every other feature is between 0 and 1
    scaled = LogScale(dense)
    left, right = rng.choice(n_fields, CROSSES), rng.choice(n_fields, CROSSES)

    class WideDeep(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="wide_deep")
            weights = Weights()
            self.linear = weights.dense("linear", DENSE, 1)
            self.id_weights = weights.embedding("id_weights", fields.table_rows, 1, 0.1)
            self.cross_weights = weights.embedding("cross_weights", CROSSES * CROSS_ROWS, 1, 0.1)
            self.embedding = weights.embedding("embedding", fields.table_rows, WIDTH)
            self.deep = weights.tower("deep", (DENSE + n_fields * WIDTH, *DEEP))
            self.head = weights.dense("head", DEEP[-1], 1)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
                tf.TensorSpec([None, n_fields], tf.int64, name="sparse"),
            ]
        )
        def predict(self, dense, sparse):  # type: ignore[no-untyped-def]
            features = scaled(dense)
            rows = fields.rows_of(sparse)
            pairs = tf.gather(sparse, left, axis=1) * 1_000_003 + tf.gather(sparse, right, axis=1)
            crossed = tf.math.floormod(pairs, CROSS_ROWS) + tf.range(CROSSES, dtype=tf.int64) * CROSS_ROWS
            wide = layer(features, self.linear)
            wide += tf.reduce_sum(tf.gather(self.id_weights, rows), axis=1)
            wide += tf.reduce_sum(tf.gather(self.cross_weights, crossed), axis=1)
            embedded = tf.reshape(tf.gather(self.embedding, rows), [-1, n_fields * WIDTH])
            hidden = relu_layers(tf.concat([features, embedded], axis=1), self.deep)
            return {"score": tf.sigmoid(wide + layer(hidden, self.head))}

    module = WideDeep()
    return Export(
        module, module.predict, {"dense": dense, "sparse": zipf_fields(rng, CARDINALITIES, len(dense))}
    )


if __name__ == "__main__":
    main(make, __doc__)
