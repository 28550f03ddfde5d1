"""Models run in processes of their own, and what is concluded from it: within the tolerance, faster, or
neither.

A process (measured.py) is ended with this one. How fast a model is differs from one time that it is opened to
the next, by where its memory lies, so two models are opened several times, each time in another process, now
one first and now the other. Ratios of pairs say how much one is faster, and bounds for their median come from
all pairs and from how much openings differ, whichever leaves more room: it is faster when the lower one says
so. Of a model and its copy, that is said in 5 % of the cases at most, however many timings there are.
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
from fastserve.workshop.optimizing.values import Comparison, Expected, Job, Pairs, Timing

_MODULE = "fastserve.workshop.optimizing.measured"
# Three: each costs a start and a load of both, and with fewer nobody knows how much they differ.
OPENINGS = 3
# How often "faster" may be wrong.
_WRONG = 0.05
# Below, a pass is slower.
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
        """Compares the second's answers with the original's, and times both. Failed."""
        found: list[Comparison] = []
        for number in range(OPENINGS):
            job = replace(
                self._job,
                paths=(old, new),
                expected=self._expected,
                seconds=self._job.seconds / OPENINGS,
                checked=number == 0,
                new_first=number % 2 == 1,
            )
            found.append(_run(job, self._environment))
        first = found[0]
        openings = {key: tuple(one.openings[key][0] for one in found) for key in first.openings}
        return Comparison(first.worst, openings)


def _run(job: Job, environment: Mapping[str, str]) -> Any:
    try:
        result = pickle.loads(ask(_MODULE, environment, pickle.dumps(job)))
    except ChildDied as died:
        raise Failed(f"the process that ran it {died}") from None
    if isinstance(result, str):
        raise Failed(result.splitlines()[0] if result else "it failed")
    return result


def timings_of(comparison: Comparison) -> tuple[Timing, ...]:
    found = sorted(comparison.openings.items())
    return tuple(timing_of(signature, rows, openings, len(found)) for (signature, rows), openings in found)


def timing_of(signature: str, rows: int, openings: Sequence[Pairs], together: int = 1) -> Timing:
    """`together`: of how many timings this is one. The more there are, the likelier one of them is wrong, so
    bounds are wider."""
    pairs = [pair for opening in openings for pair in opening]
    before, after = (statistics.median(took) for took in zip(*pairs, strict=True))
    ratios = sorted(old / new for old, new in pairs)
    medians = [statistics.median(old / new for old, new in opening) for opening in openings]
    wrong = _WRONG / together
    bounds = confidence(ratios, 1.0 - 2.0 * wrong), between(medians, wrong)
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
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


def between(medians: Sequence[float], wrong: float) -> tuple[float, float]:
    """Of OPENINGS medians: bounds for what many openings would have, each wrong this often. Student's t of
    the logarithms; with two degrees of freedom its quantiles are elementary. A lower bound above 1 means that
    every one of them is."""
    assert len(medians) == OPENINGS == 3
    quantile = (1.0 - 2.0 * wrong) / math.sqrt(2.0 * wrong * (1.0 - wrong))
    logs = [math.log(median) for median in medians]
    middle, off = statistics.fmean(logs), quantile * statistics.stdev(logs) / math.sqrt(OPENINGS)
    return math.exp(middle - off), math.exp(middle + off)


def faster(timings: Sequence[Timing]) -> bool:
    """Surely at one, and at none it seems slower."""
    return surely_faster(timings) and all(timing.speedup >= SLOWER for timing in timings)


def surely_faster(timings: Sequence[Timing]) -> bool:
    return any(timing.low > 1.0 for timing in timings)


def slower(timings: Sequence[Timing]) -> bool:
    """Surely, at one."""
    return any(timing.high < SLOWER for timing in timings)


def verdict(timings: Sequence[Timing], lays_ground: bool) -> tuple[bool, str]:
    """Whether the pass stays, and why."""
    if faster(timings):
        return True, "faster"
    if slower(timings):
        return False, "slower"
    if surely_faster(timings) and not lays_ground:
        return False, "faster at some sizes, slower at others"
    return (True, "no slower, and later passes build on it") if lays_ground else (False, "within noise")


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
