"""What the source answers against what the export answers, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastserve.offline.tensors import BFLOAT16, Tensor, apart

# Of each floating dtype, how many binary digits a number of it has after the first.
_DIGITS = {1: 23, 2: 52, 8: 23, BFLOAT16: 7, 18: 52, 19: 10}
# So many units of the last digit are never a difference: each side rounds once.
_ROUNDINGS = 2


@dataclass(frozen=True)
class Difference:
    """The largest one: absolute, and relative to the largest number of the output."""

    absolute: float = 0.0
    relative: float = 0.0

    def or_larger(self, other: Difference) -> Difference:
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


def compare(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], tolerance: float
) -> tuple[Difference, str | None]:
    """How far they lie apart, and in which way an output differs by more than `tolerance` allows, if one
    does.

    Floating numbers may differ by `tolerance` times their own size plus that of the output's largest, where
    two roundings of their dtype are more by those instead of `tolerance`. Everything else has to be equal.
    """
    largest = Difference()
    for alias in sorted(expected):
        one, other = expected[alias], actual[alias]
        rounding = _ROUNDINGS * 2.0 ** -_DIGITS[one.dtype] if one.dtype in _DIGITS else 0.0
        allowed = max(tolerance, rounding)
        found = apart(one, other, allowed, allowed)
        largest = largest.or_larger(Difference(found.absolute, found.relative))
        if found.wrong is not None:
            return largest, f"output {alias!r} differs in {found.wrong}"
    return largest, None
