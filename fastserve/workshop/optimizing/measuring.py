"""Models run in a process of their own, and what is concluded from it: within the tolerance, faster, or
neither.

The process (measured.py) is ended with this one. Medians of pairs, and an interval in which the median of
their ratios lies with 95 % confidence whatever their distribution: a pass is faster when all of the interval
says so.
"""

from __future__ import annotations

import math
import pickle
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastserve.environment import child_environment
from fastserve.workshop.child import ChildDied, ask
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing.values import Comparison, Expected, Job, Timing

_MODULE = "fastserve.workshop.optimizing.measured"
# How much slower a pass may be that later ones build on, and that gains nothing itself.
SLOWER = 0.98


class Failed(Exception):
    """A version could not be run; the text says why."""


class Measuring:
    """Runs versions of one model. `job`: without paths."""

    def __init__(self, job: Job, folder: Path, environment: Mapping[str, str]) -> None:
        """`folder`: for the original's answers. `environment`: what the process inherits."""
        self._job = job
        self._environment = child_environment(job.settings, environment)
        self._expected = folder / "expected"

    def original(self) -> Expected:
        """Runs the original. WorkshopError when it fails."""
        try:
            found: Expected = _run(self._job, self._environment)
        except Failed as error:
            raise WorkshopError(
                f"{self._job.path} fails on {self._job.pools.origin or 'made-up inputs'}: {error}; "
                "give it rows that it takes with --rows"
            ) from None
        self._expected.write_bytes(pickle.dumps(found))
        return found

    def compare(self, old: Path, new: Path) -> Comparison:
        """Times two, and compares the second's answers with the original's. Failed."""
        found: Comparison = _run(
            replace(self._job, paths=(old, new), expected=self._expected), self._environment
        )
        return found


def _run(job: Job, environment: Mapping[str, str]) -> Any:
    try:
        result = pickle.loads(ask(_MODULE, environment, pickle.dumps(job)))
    except ChildDied as died:
        raise Failed(f"the process that ran it {died}") from None
    if isinstance(result, str):
        raise Failed(result.splitlines()[0] if result else "it failed")
    return result


def timings_of(comparison: Comparison) -> tuple[Timing, ...]:
    return tuple(
        timing_of(signature, rows, pairs) for (signature, rows), pairs in sorted(comparison.pairs.items())
    )


def timing_of(signature: str, rows: int, pairs: Sequence[tuple[float, float]]) -> Timing:
    before, after = (statistics.median(took) for took in zip(*pairs, strict=True))
    ratios = sorted(old / new for old, new in pairs)
    low, high = confidence(ratios)
    return Timing(signature, rows, before, after, statistics.median(ratios), low, high)


def confidence(ordered: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Between which two of the values their population's median lies: how many of n lie below it is
    binomial."""
    n = len(ordered)
    below, rank = 0.0, 0
    while rank < n // 2:
        below += math.comb(n, rank) * 0.5**n
        if below > (1.0 - level) / 2.0:
            break
        rank += 1
    first = max(rank - 1, 0)
    return ordered[first], ordered[n - 1 - first]


def faster(timings: Sequence[Timing]) -> bool:
    """Surely faster at one, and surely slower at none."""
    return any(timing.low > 1.0 for timing in timings) and not slower(timings)


def slower(timings: Sequence[Timing]) -> bool:
    return any(timing.high < SLOWER for timing in timings)


def within(comparison: Comparison, tolerance: float) -> str | None:
    """What is not within the tolerance; None when all is."""
    for signature, (relative, absolute, output) in comparison.worst.items():
        if not math.isfinite(relative):
            return f"output {output} of {signature} is another"
        if relative > tolerance:
            return f"output {output} of {signature} is off by {absolute:.2g}"
    return None


def largest(comparison: Comparison) -> float:
    return max((absolute for _, absolute, _ in comparison.worst.values()), default=0.0)
