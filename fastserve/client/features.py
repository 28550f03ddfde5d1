"""Raw features to what a model takes: hashing, crosses, buckets, vocabularies, dense matrices.

    from fastserve.client.features import Dense, Hash, Lookup, Packer, Vocabulary

    pack = Packer(
        {
            # int64 [n, 2] and float32 [n, 2]
            "sparse": [Hash("user", 100_000), Lookup("city", Vocabulary.from_file("city.txt"))],
            "dense": Dense(["price", "clicks"], log1p=True),
        }
    )
    client.predict("ranker", pack({"user": users, "city": cities, "price": prices, "clicks": clicks}))

Every id equals what TensorFlow's op or Keras's layer of the same meaning gives, so a model that was trained
on theirs can be served with these. The work is done in C over the columns' own memory, without the GIL and,
when there is enough of it, on several threads: `threads` says on how many, by default as many as the process
may use; with 1 it stays in the calling thread. All functions may be called by several threads at once.

A column is an array [n] or [n, k] of numbers or strings (S, U, objects), or a list; str means its UTF-8.
`out` takes the result instead of a new array; it may be any view with the right shape, such as one column of
a matrix, and must not overlap an input. ColumnError (a ValueError) names the column that cannot be used and
says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastserve._native.columns import Column, ColumnError
from fastserve._native.features import Step
from fastserve.client.features_packer import Bucketize, Cross, Dense, Hash, Lookup, Packer
from fastserve.client.features_shared import check_hashable, result_for, result_of, run_steps
from fastserve.client.features_steps import (
    CROSS_KEY,
    bucketize_step,
    cross_step,
    dense_step,
    hash_step,
    numbers,
)
from fastserve.client.features_vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

    from fastserve.client.features_shared import Key

__all__ = [
    "Bucketize",
    "ColumnError",
    "Cross",
    "Dense",
    "Hash",
    "Lookup",
    "Packer",
    "Vocabulary",
    "bucketize",
    "cross",
    "fingerprint64",
    "hash_buckets",
    "pack",
]


def fingerprint64(column: Any, *, out: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
    """FarmHash's Fingerprint64 of each string, or of an integer's decimal text: uint64, of the column's
    shape. As tf.fingerprint of strings."""
    taken = check_hashable(Column(column, "column"))
    array = result_for(taken, out, "uint64")
    run_steps([Step.fingerprint(taken, array)], threads)
    return array


def hash_buckets(
    column: Any,
    n: int,
    *,
    kind: str = "fast",
    key: Key | None = None,
    mask_value: str | bytes | int | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """The hash bucket of each value, 0 to n - 1: int64, of the column's shape (int32 with such an `out`).

    "fast" is tf.strings.to_hash_bucket_fast, "strong" tf.strings.to_hash_bucket_strong with `key`, two
    integers (one stands for both). Integers and bools are hashed as text, as tf.keras.layers.Hashing does.
    With `mask_value`, that value gets bucket 0 and all others 1 to n - 1, as there; its `salt` is our `key`.
    """
    taken = Column(column, "column")
    array = result_for(taken, out, "int64")
    run_steps([hash_step(taken, array, n, kind, key, mask_value)], threads)
    return array


def cross(
    columns: Sequence[Any],
    n: int,
    *,
    key: int = CROSS_KEY,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """The bucket of each row's combination of values, 0 to n - 1: int64 [n]. As
    tf.keras.layers.HashedCrossing and tf.sparse.cross_hashed of dense columns with `key` as its hash_key.
    At least two columns, strings or integers, each [n] or [n, 1]."""
    taken = [Column(column, f"column {i}") for i, column in enumerate(columns)]
    array = result_of(out, (len(taken[0]) if taken else 0,), "int64")
    run_steps([cross_step(taken, array, n, key)], threads)
    return array


def bucketize(
    column: Any,
    boundaries: Iterable[float],
    *,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """How many of the ascending `boundaries` are not above each value: int64, of the column's shape.

    As tf.raw_ops.Bucketize and tf.keras.layers.Discretization: a value on a boundary is above it, NaN is
    above all. As there, boundaries are float32, and integers are compared as such.
    """
    taken = Column(column, "column")
    array = result_for(taken, out, "int64")
    run_steps([bucketize_step(taken, array, boundaries)], threads)
    return array


def pack(
    columns: Sequence[Any],
    *,
    dtype: str = "float32",
    fill: float | Sequence[float] = 0.0,
    log1p: bool | Sequence[bool] = False,
    mean: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Numeric columns [n] and [n, k] side by side: [n, sum of widths], of `dtype`.

    For "float32" and "float64" each value x becomes (log1p(x) - mean) * scale, computed in double precision
    (log1p to twelve digits for float32) and rounded once, where x is `fill` if it was missing (NaN, None, or
    masked), log1p is left out unless asked for, mean is 0 and scale 1 unless given. Each of the four is one
    value for all, or one for each column, or one for each item of the result's rows. For "int32" and "int64"
    columns are integers or bools, not changed.
    """
    taken = [Column(numbers(column), f"column {i}") for i, column in enumerate(columns)]
    if not taken:
        raise ValueError("no columns to pack")
    array = result_of(out, (len(taken[0]), sum(column.width for column in taken)), dtype)
    run_steps([dense_step(taken, array, fill, log1p, mean, scale)], threads)
    return array
