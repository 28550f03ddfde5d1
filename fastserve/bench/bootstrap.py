"""How sure a difference is: a bootstrap over rounds and, while those are few, over stretches within them.

What varies from round to round (the machine's mood, a process's memory layout) is the larger part of a
benchmark's noise, so rounds are what is resampled. Fewer than FEW of them know little of their own noise:
then moving blocks of intervals are drawn inside each of them as well. A bootstrap of few values is too sure
of itself, so its percentiles are spread as Student's t asks for (Hesterberg's expanded percentile interval).
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
Indices = npt.NDArray[np.int64]

REPLICATES = 2000
CONFIDENCE = 0.99
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
    left, right = _replicates(new, name, seed=1), _replicates(old, name, seed=2)
    rounds = min(len(new), len(old))
    if paired and len(new) == len(old) and rounds >= _PAIRED_FROM:
        drawn = _draws(rounds, seed=3)
        differences, freedom = _means(left, drawn) - _means(right, drawn), rounds - 1
    else:
        differences = _means(left, _draws(len(new), seed=3)) - _means(right, _draws(len(old), seed=4))
        freedom = len(new) + len(old) - 2
    low, high = _expanded(differences, math.log(value), rounds, freedom, confidence)
    return Estimate(value, math.exp(low), math.exp(high))


def _replicates(windows: Sequence[Window], name: str, seed: int) -> Floats:
    """Logarithms of the statistic: a row for each round, which varies as it does within that round."""
    rng = np.random.default_rng(seed)
    rows = []
    for window in windows:
        within = _within(window, name, rng) if len(windows) < FEW else np.zeros(REPLICATES)
        rows.append(math.log(statistic(window, name)) + within)
    return np.array(rows)


def _draws(rounds: int, seed: int) -> Indices:
    """Which rounds each replicate of the mean is made of."""
    return np.random.default_rng(seed).integers(0, rounds, (rounds, REPLICATES))


def _means(replicates: Floats, drawn: Indices) -> Floats:
    # A round that is drawn twice brings two replicates of its own.
    columns = (np.arange(REPLICATES)[None, :] + 37 * np.arange(len(drawn))[:, None]) % REPLICATES
    means: Floats = replicates[drawn, columns].mean(axis=0)
    return means


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


def _expanded(
    replicates: Floats, center: float, rounds: int, freedom: int, confidence: float
) -> tuple[float, float]:
    """The interval of the replicates, as wide as so few rounds make it."""
    tail = (1 - confidence) / 2
    spread = normal_quantile(1 - tail)
    if freedom > 0:
        spread = math.sqrt(rounds / max(rounds - 1, 1)) * student_quantile(1 - tail, freedom)
    # What lies beyond the quantiles that so many replicates can tell is stretched about the center.
    sure = normal_quantile(1 - 4 / REPLICATES)
    reach = 0.5 * math.erfc(min(spread, sure) / math.sqrt(2))
    low, high = np.quantile(replicates, [reach, 1 - reach])
    stretch = max(1.0, spread / sure)
    return center + min(0.0, low - center) * stretch, center + max(0.0, high - center) * stretch


@lru_cache(64)
def normal_quantile(share: float) -> float:
    """The value that a standard normal stays below with this probability."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * math.erfc(-middle / math.sqrt(2)) < share else (low, middle)
    return (low + high) / 2


@lru_cache(64)
def student_quantile(share: float, freedom: int) -> float:
    """As normal_quantile, for Student's t with so many degrees of freedom."""
    angles = np.linspace(0.0, math.pi / 2, 20001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(2 * share - 1, area / area[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)
