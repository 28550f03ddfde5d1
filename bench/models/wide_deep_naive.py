"""A food delivery ranker as it grows over the years: wide and deep from feature columns, and a factorization
machine.

One input [N] for each categorical feature, int64: ids and hashes for the large ones, small numbers for the
others, -1 where the log has none; user_dense, poi_dense: float32 [N, 32] and [N, 64]. score: float32 [N, 1].
Wide: a weight for each value and for eight crosses (tf.feature_column's linear_model). Deep: embedding and
indicator columns, what the factorization machine looks up, one-hots times their matrices, and the numbers,
through 256-128-64.

Written for clarity and for training, as most rankers are, and exported as it is: nobody has made it fast. A
recorded request is one user and his candidates: rows come in runs of CANDIDATES with the same user in each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from exporting import SEED, Export, LogScale, Size, Weights, counts, hashed, layer, main, relu_layers, zipf

# By feature: how many values there are, how many buckets they are hashed to, the embedding's width.
HASHED = {
    "user_id": (1_000_000, 200_000, 16),
    "user_city": (400, 1_000, 8),
    "user_device": (500, 1_000, 8),
    "user_last_poi": (300_000, 100_000, 16),
    "user_last_category": (300, 500, 8),
    "poi_id": (300_000, 100_000, 16),
    "brand_id": (20_000, 10_000, 16),
    "category_id": (300, 500, 8),
    "area_id": (5_000, 5_000, 8),
    "promotion_id": (2_000, 2_000, 8),
}
# By feature: its values, from 0.
SMALL = {
    "user_age": 8,
    "user_gender": 3,
    "user_level": 10,
    "user_hour": 24,
    "user_weekday": 7,
    "price_level": 10,
    "distance": 50,
    "rating": 20,
    "delivery_minutes": 60,
}
CROSSES = (
    ("user_city", "category_id"),
    ("user_hour", "category_id"),
    ("user_weekday", "user_hour"),
    ("user_age", "category_id"),
    ("user_gender", "brand_id"),
    ("user_device", "price_level"),
    ("user_last_category", "category_id"),
    ("area_id", "user_hour"),
)
CROSS_BUCKETS = 20_000
USER_DENSE, POI_DENSE = 32, 64
FACTORS = 8
# Features whose bias is a one-hot times a matrix, and its width.
BIASED = ("price_level", "distance", "delivery_minutes")
BIAS_WIDTH = 16
TOWER = (256, 128, 64)
CANDIDATES = 100
MISSING = 0.02

FEATURES = (*HASHED, *SMALL)


def rows(size: Size) -> dict[str, npt.NDArray[Any]]:
    """Recorded rows: whole requests of CANDIDATES rows each."""
    rng = np.random.default_rng([SEED, 3])
    users = max(2, size.rows // CANDIDATES)
    columns: dict[str, npt.NDArray[Any]] = {}
    for place, name in enumerate(FEATURES):
        of_user = name.startswith("user_")
        n = users if of_user else users * CANDIDATES
        if name in HASHED:
            values = hashed(zipf(rng, HASHED[name][0], (n,)), place)
        else:
            values = rng.integers(0, SMALL[name], n)
        values[rng.random(n) < MISSING] = -1
        columns[name] = np.repeat(values, CANDIDATES) if of_user else values
    columns["user_dense"] = np.repeat(counts(rng, users, USER_DENSE), CANDIDATES, axis=0)
    columns["poi_dense"] = counts(rng, users * CANDIDATES, POI_DENSE)
    return columns


def columns_of(tf: Any, largest: int) -> tuple[list[Any], list[Any]]:
    """The wide columns, and the deep ones."""
    fc = tf.feature_column
    categorical = {
        name: fc.categorical_column_with_hash_bucket(name, min(buckets, largest), dtype=tf.int64)
        for name, (_, buckets, _) in HASHED.items()
    }
    small = {
        name: fc.categorical_column_with_identity(name, values, default_value=0)
        for name, values in SMALL.items()
    }
    crosses = [fc.crossed_column(list(pair), min(CROSS_BUCKETS, largest)) for pair in CROSSES]
    wide = [*categorical.values(), *small.values(), *crosses]
    deep = [fc.embedding_column(categorical[name], width) for name, (_, _, width) in HASHED.items()]
    deep += [fc.indicator_column(column) for column in small.values()]
    return wide, deep


def make(size: Size) -> Export:
    import tensorflow as tf

    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)  # feature columns are deprecated
    recorded = rows(size)
    scaled_user, scaled_poi = LogScale(recorded["user_dense"]), LogScale(recorded["poi_dense"])
    wide_columns, deep_columns = columns_of(tf, size.table)
    weights = Weights()

    def from_columns(**features: Any) -> Any:
        with tf.compat.v1.variable_scope("columns", use_resource=True):
            wide = tf.compat.v1.feature_column.linear_model(features, wide_columns)
            deep = tf.compat.v1.feature_column.input_layer(features, deep_columns)
        return wide, deep

    class WideDeepNaive(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="wide_deep_naive")
            specs = {name: tf.TensorSpec([None], tf.int64, name=name) for name in FEATURES}
            wrapped = tf.compat.v1.wrap_function(
                lambda *values: from_columns(**dict(zip(specs, values, strict=True))), list(specs.values())
            )
            self.from_columns = wrapped
            self.column_weights = list(wrapped.variables)
            rng = np.random.default_rng([SEED, 4])
            for variable in self.column_weights:
                variable.assign(rng.standard_normal(variable.shape, np.float32) * 0.2)
            self.factors = {
                name: weights.embedding(f"factors/{name}", self.values(name), FACTORS, 0.2)
                for name in FEATURES
            }
            self.biases = {
                name: weights.embedding(f"biases/{name}", SMALL[name], BIAS_WIDTH) for name in BIASED
            }
            width = sum(width for _, _, width in HASHED.values()) + sum(SMALL.values())
            width += len(FEATURES) * FACTORS + len(BIASED) * BIAS_WIDTH + USER_DENSE + POI_DENSE
            self.deep = weights.tower("deep", (width, *TOWER))
            self.head = weights.dense("head", TOWER[-1], 1)

        @staticmethod
        def values(name: str) -> int:
            return min(HASHED[name][1], size.table) if name in HASHED else SMALL[name]

        @tf.function(
            input_signature=[
                *(tf.TensorSpec([None], tf.int64, name=name) for name in FEATURES),
                tf.TensorSpec([None, USER_DENSE], tf.float32, name="user_dense"),
                tf.TensorSpec([None, POI_DENSE], tf.float32, name="poi_dense"),
            ]
        )
        def predict(self, *inputs):  # type: ignore[no-untyped-def]
            features = dict(zip((*FEATURES, "user_dense", "poi_dense"), inputs, strict=True))
            wide, deep = self.from_columns(*(features[name] for name in FEATURES))
            found = [
                tf.gather(self.factors[name], tf.math.floormod(features[name], self.values(name)))
                for name in FEATURES
            ]
            factors = tf.stack(found, axis=1)
            squares = tf.square(tf.reduce_sum(factors, 1)) - tf.reduce_sum(tf.square(factors), 1)
            pairs = 0.5 * tf.reduce_sum(squares, 1, keepdims=True)
            biases = [
                tf.matmul(tf.one_hot(features[name], SMALL[name]), self.biases[name]) for name in BIASED
            ]
            numbers = [scaled_user(features["user_dense"]), scaled_poi(features["poi_dense"])]
            together = tf.concat([deep, *found, *biases, *numbers], axis=1)
            return {"score": tf.sigmoid(wide + pairs + layer(relu_layers(together, self.deep), self.head))}

    module = WideDeepNaive()
    return Export(module, module.predict, recorded)


if __name__ == "__main__":
    main(make, __doc__)
