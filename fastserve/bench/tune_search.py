"""Coordinate search over configurations: one key at a time, the best so far against each of its values.

A challenger that does not reach the best's score at once is dropped after a window or two, so most of the
budget goes to those that may win. Knows no daemon: it gets a function that scores a candidate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.bench.tune_space import Candidate, Knob, changed

# How much better a challenger must look to take the place of the best.
GAIN = 1.03


@dataclass(frozen=True)
class Score:
    """value: the higher, the better; 0.0 when it did not reach the bar. note: why there is none."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Tried:
    candidate: dict[str, Any]
    score: Score
    bar: float


@dataclass(frozen=True)
class Best:
    candidate: dict[str, Any]
    score: float
    tried: list[Tried]
    # Whether every neighbour of the best was tried, rather than the budget spent.
    finished: bool


def coordinate_search(
    start: Candidate,
    space: Sequence[Knob],
    score: Callable[[Candidate, float], Score],
    left: Callable[[], bool],
    told: Callable[[Tried, bool], None] = lambda tried, better: None,
) -> Best:
    """The best candidate that was found while `left`. score(candidate, bar): 0.0 below the bar.

    told: after each candidate, with whether it is the best now.
    """
    first = Tried(dict(start), score(start, 0.0), 0.0)
    told(first, True)
    best, tried = first, [first]
    seen = {_key(start)}
    improved = True
    while improved:
        improved = False
        for knob in space:
            for value in knob.values(best.candidate):
                candidate = changed(best.candidate, knob.key, value)
                if _key(candidate) in seen:
                    continue
                if not left():
                    return Best(best.candidate, best.score.value, tried, False)
                seen.add(_key(candidate))
                bar = best.score.value * GAIN
                challenger = Tried(candidate, score(candidate, bar), bar)
                tried.append(challenger)
                better = challenger.score.value > 0 and challenger.score.value >= bar
                told(challenger, better)
                if better:
                    best, improved = challenger, True
    return Best(best.candidate, best.score.value, tried, True)


def _key(candidate: Candidate) -> str:
    return json.dumps(candidate, sort_keys=True)
