"""A ranker of two towers, as those that look at many candidates before a larger one looks at a few.

user: float32 [N, 600], vectors of profile and history: in a request for one user, N equal rows. cand: float32
[N, 40]. score: float32 [N, 1]. Towers of 64-32 each; both, and their product, through a layer of 32.
"""

from __future__ import annotations

import numpy as np
from exporting import SEED, Export, Size, Weights, layer, main, relu_layers

USER, CAND = 600, 40
TOWER, TOP = (64, 32), 32
ROWS = 2048  # recorded: a row has 2.6 kB


def make(size: Size) -> Export:
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    rows = min(size.rows, ROWS)
    user, cand = (rng.standard_normal((rows, width), np.float32) for width in (USER, CAND))

    class TwoTowers(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="two_towers")
            weights = Weights()
            self.user = weights.tower("user", (USER, *TOWER))
            self.cand = weights.tower("cand", (CAND, *TOWER))
            self.top = weights.tower("top", (3 * TOWER[-1], TOP))
            self.head = weights.dense("head", TOP, 1)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, USER], tf.float32, name="user"),
                tf.TensorSpec([None, CAND], tf.float32, name="cand"),
            ]
        )
        def predict(self, user, cand):  # type: ignore[no-untyped-def]
            u = relu_layers(user, self.user)
            c = relu_layers(cand, self.cand)
            hidden = relu_layers(tf.concat([u, c, u * c], axis=1), self.top)
            return {"score": tf.sigmoid(layer(hidden, self.head))}

    module = TwoTowers()
    return Export(module, module.predict, {"user": user, "cand": cand})


if __name__ == "__main__":
    main(make, __doc__)
