"""What the workloads' models share: their command line, weights, skewed inputs, and what they write.

    python bench/models/NAME.py OUT_DIR [--small]

writes OUT_DIR/1/, a SavedModel whose only signature is serving_default, and OUT_DIR/requests.npz, one array
for each input with a few thousand recorded rows. Weights are random, not trained, and large enough for the
answers to differ; all comes from one seed. --small makes small tables and few rows, for tests.

Knows numpy, and TensorFlow only when something is saved.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # an export needs no GPU and must not take its memory

import numpy as np
import numpy.typing as npt

SEED = 2026
RECORDED_ROWS = 4096
SMALL_ROWS = 256
SMALL_TABLE = 1000

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Export:
    """A model and the rows to send it. module: a tf.Module; predict: its tf.function with a signature."""

    module: Any
    predict: Any
    rows: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Size:
    """How large to make it: recorded rows, and the most rows that an embedding table of one field has."""

    rows: int = RECORDED_ROWS
    table: int = 1 << 62


SMALL = Size(SMALL_ROWS, SMALL_TABLE)


class Weights:
    """Random weights from one seed, scaled so that activations keep their size from layer to layer."""

    def __init__(self, seed: int = SEED) -> None:
        self._rng = np.random.default_rng([seed, 1])

    def dense(self, name: str, inputs: int, outputs: int) -> tuple[Any, Any]:
        """A kernel [inputs, outputs] and a bias [outputs], for layers with a ReLU behind them."""
        kernel = self._rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs))
        bias = self._rng.normal(0.0, 0.05, outputs)
        return _variable(kernel, f"{name}/kernel"), _variable(bias, f"{name}/bias")

    def tower(self, name: str, widths: tuple[int, ...]) -> list[tuple[Any, Any]]:
        """Dense layers from each width to the next."""
        pairs = enumerate(itertools.pairwise(widths))
        return [self.dense(f"{name}/{layer}", *pair) for layer, pair in pairs]

    def embedding(self, name: str, rows: int, width: int, scale: float = 0.5) -> Any:
        """A table [rows, width]."""
        return _variable(self._rng.standard_normal((rows, width), np.float32) * scale, name)


def _variable(values: npt.NDArray[Any], name: str) -> Any:
    import tensorflow as tf

    return tf.Variable(values.astype(np.float32), name=name)


def layer(inputs: Any, weights: tuple[Any, Any]) -> Any:
    import tensorflow as tf

    return tf.nn.bias_add(tf.matmul(inputs, weights[0]), weights[1])


def relu_layers(inputs: Any, layers: list[tuple[Any, Any]]) -> Any:
    import tensorflow as tf

    for weights in layers:
        inputs = tf.nn.relu(layer(inputs, weights))
    return inputs


class LogScale:
    """Counts to logarithms of mean 0 and deviation 1 over the recorded rows, inside the graph."""

    def __init__(self, dense: Floats) -> None:
        logged = np.log1p(dense)
        self._mean = logged.mean(axis=0)
        self._scale = 1.0 / (logged.std(axis=0) + 1e-3)

    def __call__(self, dense: Any) -> Any:
        import tensorflow as tf

        return (tf.math.log1p(tf.maximum(dense, 0.0)) - self._mean) * self._scale


class Fields:
    """Categorical fields that share one table: each field has a range of rows of its own, so that one gather
    looks all of them up. Ids are taken modulo the field's rows inside the graph, so any int64 is valid."""

    def __init__(self, cardinalities: tuple[int, ...], most_rows: int) -> None:
        self.rows = np.minimum(cardinalities, most_rows).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.rows)[:-1]]).astype(np.int64)

    @property
    def table_rows(self) -> int:
        return int(self.rows.sum())

    def rows_of(self, ids: Any) -> Any:
        """[n, fields] ids to rows of the shared table."""
        import tensorflow as tf

        return tf.math.floormod(ids, tf.constant(self.rows)) + tf.constant(self.offsets)


def zipf(rng: np.random.Generator, n: int, shape: tuple[int, ...], exponent: float = 1.05) -> Ids:
    """Ranks 0 .. n - 1, where rank r is about as frequent as 1 / (r + 1) ** exponent."""
    power = 1.0 - exponent
    uniform = rng.random(shape)
    ranks = ((float(n + 1) ** power - 1.0) * uniform + 1.0) ** (1.0 / power)
    return np.clip(ranks.astype(np.int64) - 1, 0, n - 1)


def hashed(ranks: Ids, field: int) -> Ids:
    """Ids as a feature pipeline hands them over: 1 .. 2**32 - 1, spread, different for each field."""
    mixed = (ranks.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15 + 2 * field)
    return ((mixed >> np.uint64(32)) | np.uint64(1)).astype(np.int64)


def zipf_fields(rng: np.random.Generator, cardinalities: tuple[int, ...], rows: int) -> Ids:
    """[rows, fields]: hashed ids, a few of each field popular and most of them rare."""
    columns = [hashed(zipf(rng, n, (rows,)), field) for field, n in enumerate(cardinalities)]
    return np.stack(columns, axis=1)


def counts(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """[rows, columns]: log-normal counts with heavy tails, each column with a scale of its own."""
    mean = rng.uniform(0.0, 4.0, columns)
    spread = rng.uniform(0.5, 1.5, columns)
    values = np.exp(mean + spread * rng.standard_normal((rows, columns)))
    return np.floor(values).astype(np.float32)


def save(export: Export, folder: Path) -> None:
    """Writes folder/1 and folder/requests.npz."""
    import tensorflow as tf

    lengths = {len(values) for values in export.rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"the inputs have {sorted(lengths)} recorded rows: they must have equally many")
    folder.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(export.module, str(folder / "1"), signatures={"serving_default": export.predict})
    np.savez(folder / "requests.npz", **export.rows)


def main(make: Callable[[Size], Export], about: str | None) -> None:
    """The command line of a model's file."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--small", action="store_true", help="small tables and few rows, for tests")
    arguments = parser.parse_args()
    save(make(SMALL if arguments.small else Size()), arguments.folder)
