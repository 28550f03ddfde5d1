"""Versions of the ranker for `fastserve bench switch`: one graph, weights of its own for each version.

    python bench/models/switch_small.py OUT_DIR [--small]
    python bench/models/switch_large.py OUT_DIR [--small]

write OUT_DIR/1, 2 and 3, OUT_DIR/requests.npz with recorded rows, and OUT_DIR/answers.npz: for each output,
what TensorFlow answers to these rows, [versions, rows, ...]. As a retrained model does, the versions share
everything but the values of their variables, so that what was compiled for one is good for the next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from exporting import RECORDED_ROWS, SEED, SMALL_ROWS, SMALL_TABLE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "ranking"))

import click_log
import model as ranking
from dcn import TABLE_SCALE

VERSIONS = 3


def save_versions(folder: Path, rows: int, most_field_rows: int) -> None:
    """most_field_rows: of an embedding table's part for one field."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    log = click_log.Generator(SEED).day(0, rows)
    module = ranking.build(tf, log, most_field_rows)
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for version in range(1, VERSIONS + 1):
        rng = np.random.default_rng([SEED, version])
        module.embedding.assign(rng.standard_normal(module.embedding.shape, np.float32) * TABLE_SCALE)
        scores.append(module.predict(tf.constant(log.dense), tf.constant(log.sparse))["score"].numpy())
        tf.saved_model.save(
            module, str(folder / str(version)), signatures={"serving_default": module.predict}
        )
    np.savez(folder / "requests.npz", dense=log.dense, sparse=log.sparse)
    np.savez(folder / "answers.npz", score=np.stack(scores))


def main(about: str | None, most_field_rows: int) -> None:
    """The command line of a file of versions."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--small", action="store_true", help="small tables and few rows, for tests")
    arguments = parser.parse_args()
    if arguments.small:
        save_versions(arguments.folder, SMALL_ROWS, SMALL_TABLE)
    else:
        save_versions(arguments.folder, RECORDED_ROWS, most_field_rows)
