"""What the source answers against what the export answers, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.offline.tensors import BFLOAT16, STRING, Tensor
from fastserve.savedmodel.signature import dtype_name

_FLOAT_BITS = {1: 23, 2: 52, 8: 23, BFLOAT16: 7, 18: 52, 19: 10}
_COMPLEX = (8, 18)
# So many roundings of the dtype are never a difference: two orders of summing the same numbers.
_ROUNDINGS = 8


@dataclass(frozen=True)
class Difference:
    """The largest one: absolute, and relative to the largest number of the output."""

    absolute: float
    relative: float


def compare(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], tolerance: float
) -> tuple[Difference, str | None]:
    """How far they lie apart, and in which way an output differs by more than `tolerance` allows, if one
    does.

    Floating numbers may differ by `tolerance` times their own size plus that of the output's largest, and by
    a few roundings of their dtype in any case. Everything else has to be equal.
    """
    largest = Difference(0.0, 0.0)
    for alias in sorted(expected):
        found, wrong = _compare(expected[alias], actual[alias], tolerance)
        largest = Difference(max(largest.absolute, found.absolute), max(largest.relative, found.relative))
        if wrong is not None:
            return largest, f"output {alias!r} differs in {wrong}"
    return largest, None


def _compare(expected: Tensor, actual: Tensor, tolerance: float) -> tuple[Difference, str | None]:
    nothing = Difference(0.0, 0.0)
    if expected.dtype != actual.dtype:
        return nothing, f"dtype: {dtype_name(expected.dtype)} and {dtype_name(actual.dtype)}"
    if expected.array.shape != actual.array.shape:
        return nothing, f"shape: {list(expected.array.shape)} and {list(actual.array.shape)}"
    if expected.dtype == STRING or expected.dtype not in _FLOAT_BITS:
        different = int(np.count_nonzero(expected.array != actual.array))
        return nothing, f"{different} of {expected.array.size} values" if different else None
    wide = np.complex128 if expected.dtype in _COMPLEX else np.float64
    a, b = expected.array.astype(wide), actual.array.astype(wide)
    finite = np.isfinite(a) & np.isfinite(b)
    odd = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if odd.any():
        return nothing, f"{np.count_nonzero(odd)} of {a.size} values, infinite or NaN in one of them"
    a, b = a[finite], b[finite]
    gap: Any = np.abs(a - b)
    scale = float(np.abs(a).max(initial=0.0))
    allowed = max(tolerance, _ROUNDINGS * 2.0 ** -_FLOAT_BITS[expected.dtype])
    far = gap > allowed * (np.abs(a) + scale)
    worst = float(gap.max(initial=0.0))
    found = Difference(worst, worst / scale if scale else 0.0)
    if not far.any():
        return found, None
    at = int(np.argmax(gap))
    return found, (
        f"{np.count_nonzero(far)} of {gap.size} values, by up to {worst:.3g}: {a[at]:.6g} became {b[at]:.6g}"
    )
