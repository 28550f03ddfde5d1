"""How sure a difference is: a bootstrap over rounds and, while those are few, over stretches within them.

What varies from round to round (the machine's mood, a process's memory layout) is the larger part of a
benchmark's noise, so rounds are what is resampled. Few rounds may agree by chance: where they differ less
than what moving blocks of intervals within them say they should, the rest is drawn from those. How little so
few values know of their own noise is made up for as usual, with Student's t and Welch's degrees of freedom.
Statistics are compared as logarithms: their means over rounds are geometric.

Pure functions of windows; all that is random comes from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fastserve.bench.result import Latencies, Window

Floats = npt.NDArray[np.float64]

REPLICATES = 2000
CONFIDENCE = 0.95
FEW = 5
_PAIRED_FROM = 4

# Of what a statistic is; "cpu" is the server's CPU time for each answer.
STATISTICS = ("rate", "p50", "p90", "p99", "p99.9", "max", "cpu")
HIGHER_IS_BETTER = ("rate",)
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
# The column of an interval that tells how a statistic varies within a window: the nearest there is.
_COLUMNS = {"rate": 2, "p50": 4, "p90": 5, "p99": 6, "p99.9": 7, "max": 7}
_DONE = 2


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; all nan when there is none."""

    value: float
    low: float
    high: float


def statistic(window: Window, name: str) -> float:
    """Of a window: answers per second, nanoseconds, CPU microseconds per answer; nan where there is none."""
    if name == "rate":
        return window.rate or math.nan
    if name == "cpu":
        return window.cpu_us or math.nan
    if window.done == 0:
        return math.nan
    if name == "max":
        return float(window.latency.max_ns)
    return float(_quantiles(window.latency)[name])


@lru_cache(4096)
def _quantiles(latency: Latencies) -> dict[str, int]:
    values = latency.histogram().values_at(list(QUANTILES.values()))
    return dict(zip(QUANTILES, values, strict=True))


def mean(windows: Sequence[Window], name: str) -> float:
    """The geometric mean of a statistic over rounds; nan when a round has none."""
    values = [statistic(window, name) for window in windows]
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def ratio(
    new: Sequence[Window],
    old: Sequence[Window],
    name: str,
    confidence: float = CONFIDENCE,
    paired: bool = False,
) -> Estimate:
    """The mean of a statistic in `new`, divided by that in `old`. paired: both are rounds of one run."""
    value = mean(new, name) / mean(old, name) if new and old else math.nan
    if not math.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan)
    return _ratio(_logarithms(new, name, seed=1), _logarithms(old, name, seed=2), confidence, paired)


def ratio_of_values(
    new: Sequence[float], old: Sequence[float], confidence: float = CONFIDENCE, paired: bool = False
) -> Estimate:
    """As ratio, of one positive value for each round, of which nothing more is known."""
    return _ratio(_plain(new), _plain(old), confidence, paired)


def _plain(values: Sequence[float]) -> _Rounds:
    return _Rounds(np.log(np.array(values, np.float64)), np.zeros((len(values), REPLICATES)))


def _ratio(left: _Rounds, right: _Rounds, confidence: float, paired: bool) -> Estimate:
    counts = len(left.values), len(right.values)
    rounds = min(counts)
    center = float(left.values.mean() - right.values.mean())
    if paired and counts[0] == counts[1] and rounds >= _PAIRED_FROM:
        both = _Rounds(left.values - right.values, left.within - right.within)
        differences, freedom = both.means(seed=3), float(rounds - 1)
    else:
        differences, freedom = left.means(seed=3) - right.means(seed=4), _freedom(left, right)
    low, high = _interval(differences, freedom, confidence)
    return Estimate(math.exp(center), math.exp(center + min(low, 0.0)), math.exp(center + max(high, 0.0)))


@dataclass(frozen=True)
class _Rounds:
    """Logarithms of a statistic. values: of each round; within: for each, REPLICATES deviations inside it."""

    values: Floats
    within: Floats

    @property
    def variance(self) -> float:
        """Of one round: as the rounds differ, or as they vary within, where few differ by less."""
        seen = float(self.values.var(ddof=1)) if len(self.values) > 1 else 0.0
        return max(seen, float(self.within.var()))

    def means(self, seed: int) -> Floats:
        """Replicates of how far the mean over rounds is off."""
        rounds = len(self.values)
        drawn = np.random.default_rng(seed).integers(0, rounds, (rounds, REPLICATES))
        # Values that are drawn from few differ less than those that they stand for.
        away = (self.values - self.values.mean()) * math.sqrt(rounds / max(rounds - 1, 1))
        total = self.variance
        missing = 1.0 - float(self.values.var(ddof=1)) / total if rounds > 1 and total else 1.0
        # A round that is drawn twice brings two deviations of its own.
        columns = (np.arange(REPLICATES)[None, :] + 37 * np.arange(rounds)[:, None]) % REPLICATES
        means: Floats = (away[drawn] + math.sqrt(max(missing, 0.0)) * self.within[drawn, columns]).mean(
            axis=0
        )
        return means


def _logarithms(windows: Sequence[Window], name: str, seed: int) -> _Rounds:
    rng = np.random.default_rng(seed)
    few = len(windows) < FEW
    within = [_within(window, name, rng) if few else np.zeros(REPLICATES) for window in windows]
    return _Rounds(np.array([math.log(statistic(window, name)) for window in windows]), np.array(within))


def _freedom(left: _Rounds, right: _Rounds) -> float:
    """Welch's, at least the 2 of twice two rounds; 0.0 when a side has one round."""
    counts = [len(left.values), len(right.values)]
    if min(counts) < 2:
        return 0.0
    parts = [side.variance / count for side, count in zip((left, right), counts, strict=True)]
    below = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return max(2.0, sum(parts) ** 2 / below) if below > 0 else float(sum(counts) - 2)


def _interval(replicates: Floats, freedom: float, confidence: float) -> tuple[float, float]:
    """Of replicates about 0, as wide as so few rounds make it."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    wider = student_quantile(1 - tail, freedom) / normal_quantile(1 - tail) if freedom > 0 else 1.0
    return float(low) * wider, float(high) * wider


def _within(window: Window, name: str, rng: np.random.Generator) -> Floats:
    """How the logarithm varies within a window, by moving blocks of its intervals; zeros where none tell."""
    rows = np.array([interval for interval in window.intervals if interval[_DONE]], np.float64)
    column = _COLUMNS.get(name)
    if len(rows) < 4 or column is None:
        return np.zeros(REPLICATES)
    values, weights = rows[:, column], rows[:, _DONE] if column != _DONE else np.ones(len(rows))
    average = (values * weights).sum() / weights.sum()
    if average <= 0:
        return np.zeros(REPLICATES)
    length = max(1, round(len(rows) ** (1 / 3)))
    starts = rng.integers(0, len(rows), (REPLICATES, -(-len(rows) // length), 1))
    chosen = ((starts + np.arange(length)) % len(rows)).reshape(REPLICATES, -1)[:, : len(rows)]
    drawn = (values * weights)[chosen].sum(axis=1) / weights[chosen].sum(axis=1)
    deviations: Floats = np.log(np.maximum(drawn / average, 1e-3))
    return deviations


@lru_cache(64)
def normal_quantile(share: float) -> float:
    """The value that a standard normal stays below with this probability."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2)) < share else (low, middle)
    return (low + high) / 2


@lru_cache(64)
def student_quantile(share: float, freedom: float) -> float:
    """As normal_quantile, for Student's t with so many degrees of freedom."""
    angles = np.linspace(0.0, math.pi / 2, 20001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(2 * share - 1, area / area[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)
