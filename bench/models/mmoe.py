"""MMoE: four tasks share eight experts, each task with a gate of its own over them.

dense: float32 [N, 40], counts. sparse: int64 [N, 24], hashes of 32 bits. click, cart, order: float32 [N, 1],
probabilities. spend: float32 [N, 1], an amount. Experts of 256-128 on the embeddings (width 16) and the dense
features; towers of 64.
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

DENSE = 40
CARDINALITIES = (200_000, 150_000, 50_000) + (10_000,) * 5 + (1_000,) * 8 + (50,) * 8
WIDTH = 16
EXPERTS = 8
EXPERT = (256, 128)
TOWER = 64
TASKS = ("click", "cart", "order", "spend")


def make(size: Size) -> Export:
    import tensorflow as tf

    fields = Fields(CARDINALITIES, size.table)
    n_fields = len(CARDINALITIES)
    width = DENSE + n_fields * WIDTH
    rng = np.random.default_rng(SEED)
    dense = counts(rng, size.rows, DENSE)
    scaled = LogScale(dense)

    class Mmoe(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="mmoe")
            weights = Weights()
            self.embedding = weights.embedding("embedding", fields.table_rows, WIDTH)
            self.experts = [weights.tower(f"expert_{n}", (width, *EXPERT)) for n in range(EXPERTS)]
            self.gates = [weights.dense(f"gate_{task}", width, EXPERTS) for task in TASKS]
            self.towers = [weights.tower(f"tower_{task}", (EXPERT[-1], TOWER)) for task in TASKS]
            self.heads = [weights.dense(f"head_{task}", TOWER, 1) for task in TASKS]

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, DENSE], tf.float32, name="dense"),
                tf.TensorSpec([None, n_fields], tf.int64, name="sparse"),
            ]
        )
        def predict(self, dense, sparse):  # type: ignore[no-untyped-def]
            features = scaled(dense)
            embedded = tf.gather(self.embedding, fields.rows_of(sparse))
            shared = tf.concat([features, tf.reshape(embedded, [-1, n_fields * WIDTH])], axis=1)
            experts = tf.stack([relu_layers(shared, expert) for expert in self.experts], axis=1)
            answers = {}
            for task, gate, tower, head in zip(TASKS, self.gates, self.towers, self.heads, strict=True):
                shares = tf.expand_dims(tf.nn.softmax(layer(shared, gate)), 2)
                mixed = tf.reduce_sum(experts * shares, axis=1)
                value = layer(relu_layers(mixed, tower), head)
                answers[task] = tf.nn.softplus(value) if task == "spend" else tf.sigmoid(value)
            return answers

    module = Mmoe()
    return Export(
        module, module.predict, {"dense": dense, "sparse": zipf_fields(rng, CARDINALITIES, len(dense))}
    )


if __name__ == "__main__":
    main(make, __doc__)
