"""`fastserve tune`: search, held-out rerun, and the file changed only if that proves something.

The search sees noise, and whoever is best of many was lucky too. So in the end the configuration as it was
and the best are measured again: in turn, with requests that the search did not see, over several rounds. Only
if the whole interval of the ratio is above 1 is the file written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from fastserve.bench.bootstrap import Estimate, ratio_of_values
from fastserve.bench.tune_search import Best, Score, Tried, coordinate_search
from fastserve.bench.tune_space import Candidate, Knob, differences

# Of the budget, for the rerun; and what a round of it takes, in windows, at most.
HELD_OUT_SHARE = 0.4
MOST_ROUNDS, LEAST_ROUNDS = 8, 3


class Machine(Protocol):
    """What scores candidates: daemons, or what stands in for them."""

    def score(self, values: Mapping[str, Any], bar: float) -> Score:
        """Of a daemon with `values` changed; 0.0 as soon as it is below `bar`."""

    def held_out(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        starts: tuple[float, float],
        more: Callable[[int], bool],
    ) -> tuple[list[float], list[float]]:
        """Scores of both, round by round, in turn, on requests of their own, while more(rounds so far).

        starts: about what the search found for each; only where to begin.
        """


@dataclass(frozen=True)
class Outcome:
    """changes: the keys of the best that differ; empty when nothing was better even in the search.

    before, after: scores of the rerun's rounds. proved: whether the rerun shows the best to be better.
    """

    best: Best
    changes: dict[str, Any]
    before: list[float]
    after: list[float]
    ratio: Estimate | None
    proved: bool
    seconds: float


class Watcher(Protocol):
    def tried(self, tried: Tried, better: bool, used_s: float) -> None:
        """A candidate was scored; whether it is the best now."""

    def rerun(self, rounds: int, used_s: float) -> None:
        """A round of the rerun begins."""


def tune(
    machine: Machine,
    present: Candidate,
    space: list[Knob],
    budget_s: float,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
    confidence: float = 0.95,
) -> Outcome:
    """Searches and proves, in about `budget_s` seconds."""
    began = clock()
    search_s = budget_s * (1 - HELD_OUT_SHARE)

    def used() -> float:
        return clock() - began

    best = coordinate_search(
        present,
        space,
        lambda candidate, bar: machine.score(differences(candidate, present), bar),
        lambda: used() < search_s,
        lambda tried, better: watcher.tried(tried, better, used()),
    )
    changes = differences(best.candidate, present)
    if not changes or best.score <= 0:
        return Outcome(best, {}, [], [], None, False, used())
    marks: list[float] = []

    def more(rounds: int) -> bool:
        marks.append(used())
        longest = max((b - a for a, b in pairwise(marks)), default=0.0)
        goes_on = rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and used() + longest <= budget_s)
        if goes_on:
            watcher.rerun(rounds + 1, used())
        return goes_on

    starts = (best.tried[0].score.value or best.score, best.score)
    before, after = machine.held_out({}, changes, starts, more)
    if min([*before, *after], default=0.0) <= 0:
        # Without a score in every round there is no ratio: what fails in between is no better, and what never
        # works is beaten by what always does.
        proved = bool(after) and min(after) > 0 and max(before, default=0.0) <= 0
        return Outcome(best, changes, before, after, None, proved, used())
    ratio = ratio_of_values(after, before, confidence, paired=True)
    return Outcome(best, changes, before, after, ratio, ratio.low > 1.0, used())
