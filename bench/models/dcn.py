"""DCN-v2 in Criteo's shape: the model of examples/ranking, not trained, and a day of its generated log.

dense: float32 [N, 13], counts, -1 where the log has none. sparse: int64 [N, 26], hashes of 32 bits.
score: float32 [N, 1]. Embeddings of 33 MB, three cross layers of rank 64, a tower of 256-128-64.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from exporting import SEED, Export, Size, main

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "ranking"))

import click_log
import model as ranking

TABLE_SCALE = 0.3  # training leaves weights of about this size; the 0.02 that it starts from hides the ids


def make(size: Size) -> Export:
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    log = click_log.Generator(SEED).day(0, size.rows)
    module = ranking.build(tf, log, min(ranking.MAX_FIELD_ROWS, size.table))
    rng = np.random.default_rng(SEED)
    module.embedding.assign(rng.standard_normal(module.embedding.shape, np.float32) * TABLE_SCALE)
    return Export(module, module.predict, {"dense": log.dense, "sparse": log.sparse})


if __name__ == "__main__":
    main(make, __doc__)
