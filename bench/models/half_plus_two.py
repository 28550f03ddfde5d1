"""half_plus_two: y = x / 2 + 2. It costs nothing, so that a run of it shows what serving costs.

x: float32 [N]. y: float32 [N].
"""

from __future__ import annotations

import numpy as np
from exporting import SEED, Export, Size, main


def make(size: Size) -> Export:
    import tensorflow as tf

    class HalfPlusTwo(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="half_plus_two")
            self.a = tf.Variable(0.5)
            self.b = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def predict(self, x):  # type: ignore[no-untyped-def]
            return {"y": x * self.a + self.b}

    x = np.random.default_rng(SEED).uniform(-100.0, 100.0, size.rows).astype(np.float32)
    module = HalfPlusTwo()
    return Export(module, module.predict, {"x": x})


if __name__ == "__main__":
    main(make, __doc__)
