"""Ops over columns that have been taken already, as Steps to be run with others.

ColumnError and ValueError where the columns, or an op's arguments, are not right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fastserve._native.columns import Column
from fastserve._native.features import Step
from fastserve.client.features_shared import (
    check_buckets,
    check_crossable,
    check_hashable,
    check_integers,
    check_numeric,
    hash_key,
    token_of,
)

if TYPE_CHECKING:
    import numpy as np

    from fastserve.client.features_shared import Key

# What tf.sparse.cross_hashed begins with.
CROSS_KEY = 0xDECAFCAFFE


def hash_step(
    column: Column, out: np.ndarray, n: int, kind: str, key: Key | None, mask_value: str | bytes | int | None
) -> Step:
    check_hashable(column)
    buckets = check_buckets(column.name, n, out)
    words = hash_key(kind, key)
    mask = None if mask_value is None else token_of(column, mask_value)
    if mask is not None and buckets == 1:
        mask = None  # Keras has no bucket to spare then
    return Step.hash(column, out, buckets - (mask is not None), words, mask)


def cross_step(columns: list[Column], out: np.ndarray, n: int, key: int) -> Step:
    if len(columns) < 2:
        raise ValueError("a cross is of two columns at least")
    check_buckets(columns[0].name, n, out)
    for column in columns:
        check_crossable(column)
    return Step.cross(columns, out, n, key & (1 << 64) - 1)


def bucketize_step(column: Column, out: np.ndarray, boundaries: Iterable[float]) -> Step:
    check_numeric(column)
    listed = [float(boundary) for boundary in boundaries]
    if any(not a <= b for a, b in pairwise(listed)) or any(b != b for b in listed):
        raise ValueError(f"boundaries do not ascend: {listed!r:.80}")
    return Step.bucketize(column, out, listed)


def dense_step(
    columns: list[Column],
    out: np.ndarray,
    fill: float | Sequence[float],
    log1p: bool | Sequence[bool],
    mean: float | Sequence[float] | None,
    scale: float | Sequence[float] | None,
) -> Step:
    for column in columns:
        check_numeric(column)
    widths = [column.width for column in columns]
    refined = any(given(value) for value in (fill, log1p, mean, scale))
    if out.dtype.kind in "iu":
        if refined:
            raise ValueError("integers are packed as they are; fill, log1p, mean and scale are for floats")
        for column in columns:
            check_integers(column, out.dtype)
        return Step.dense(columns, out, None)
    if not refined:
        return Step.dense(columns, out, None)
    parts = (
        [float(value) for value in each("fill", fill, widths)],
        [float(value) for value in each("mean", 0.0 if mean is None else mean, widths)],
        [float(value) for value in each("scale", 1.0 if scale is None else scale, widths)],
        [bool(value) for value in each("log1p", log1p, widths)],
    )
    return Step.dense(columns, out, list(zip(*parts, strict=True)))


def given(value: Any) -> bool:
    """Whether it says anything: not None, False or 0 for all."""
    return value is not None and (not isinstance(value, (bool, int, float)) or value != 0)


def each(name: str, value: Any, widths: list[int]) -> list[Any]:
    """One value for each item of a row."""
    total = sum(widths)
    if not hasattr(value, "__len__"):
        return [value] * total
    listed = list(value)
    if len(listed) == total:
        return listed
    if len(listed) == len(widths):
        return [value for value, width in zip(listed, widths, strict=True) for _ in range(width)]
    raise ValueError(f"{name}: {len(listed)} values for {len(widths)} columns of {total} items in all")


def numbers(values: Any) -> Any:
    """With what is missing as NaN, where it is anything else."""
    import numpy as np

    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.float64), np.nan) if np.ma.is_masked(values) else values.data
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values
    if isinstance(values, (list, tuple)) or getattr(getattr(values, "dtype", None), "kind", "") == "O":
        array = np.asarray(values)
        if array.dtype.kind == "O" and not any(isinstance(value, (str, bytes)) for value in array.flat):
            try:
                return array.astype(np.float64)
            except (TypeError, ValueError):
                return values
        return array
    return values
