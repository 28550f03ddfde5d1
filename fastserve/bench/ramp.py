"""The highest rate at which a server keeps an objective such as "p99 within 10 ms".

Doubling until it is not kept, then bisection, then confirmation. One window near the limit proves little: it
is repeated, and the majority counts. Knows no server: it gets a function that tries a rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastserve.bench.result import Step


@dataclass(frozen=True)
class Try:
    """What a window at one rate showed. share: of the requests sent, those answered well within the bound.

    generator_late: the load generator was what kept the rate from being higher. disturbed: others kept the
    machine busy meanwhile.
    """

    value_ms: float
    share: float
    generator_late: bool = False
    disturbed: bool = False


@dataclass(frozen=True)
class Search:
    """quantile: 0 to 1, of the objective. resolution: the search ends when the lowest refused rate is within
    this factor of the highest kept one. confirmations: windows that the answer must pass besides. growth: of
    the first steps, up or down, until there is a rate that is kept beside one that is not."""

    quantile: float
    resolution: float = 1.04
    growth: float = 2.0
    confirmations: int = 2
    least_rate: float = 1.0
    most_tries: int = 40
    most_s: float = math.inf


@dataclass(frozen=True)
class Answer:
    """rate: 0.0 when no rate keeps the objective. refused: 0.0 when every rate was kept."""

    rate: float
    refused: float
    steps: list[Step]
    limit: str


def search(
    attempt: Callable[[float], Try],
    start: float,
    how: Search,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """The highest rate that keeps the objective, as far as `attempt`, which measures one window, shows."""
    return _Ramp(attempt, how, clock).run(start)


class _Ramp:
    def __init__(self, attempt: Callable[[float], Try], how: Search, clock: Callable[[], float]) -> None:
        self._attempt = attempt
        self._clock = clock
        self._began = clock()
        self._how = how
        self._steps: list[Step] = []
        self._late = self._disturbed = False

    def run(self, start: float) -> Answer:
        kept, refused = self._bracket(max(start, self._how.least_rate))
        kept, refused = self._bisect(kept, refused)
        step = self._how.resolution
        while kept and not self._out_of_tries() and not self._confirmed(kept):
            # What looked good was luck: the limit is below, the further the more often that happens.
            refused, kept = kept, kept / step
            step **= 1.5
            if kept < self._how.least_rate:
                kept = 0.0
        return Answer(kept, refused, self._steps, self._limit(refused))

    def _limit(self, refused: float) -> str:
        if self._late:
            return "the load generator could not send faster"
        if self._out_of_tries():
            return f"{len(self._steps)} windows were not enough to be sure"
        return "" if refused else "no rate was refused"

    def _out_of_tries(self) -> bool:
        return len(self._steps) >= self._how.most_tries or self._clock() - self._began > self._how.most_s

    def _bracket(self, rate: float) -> tuple[float, float]:
        """A rate that is kept (0.0: none is) and a higher one that is not (0.0: none was found)."""
        kept = refused = 0.0
        while not self._out_of_tries():
            if self._keeps(rate):
                kept = rate
                if refused or self._late:
                    break
                rate *= self._how.growth
            else:
                refused = rate
                if kept or rate <= self._how.least_rate:
                    break
                rate = max(rate / self._how.growth, self._how.least_rate)
        return kept, refused

    def _bisect(self, kept: float, refused: float) -> tuple[float, float]:
        while kept and refused and refused / kept > self._how.resolution and not self._out_of_tries():
            middle = (kept * refused) ** 0.5
            if self._keeps(middle):
                kept = middle
            else:
                refused = middle
        return kept, refused

    def _confirmed(self, rate: float) -> bool:
        return all(self._keeps(rate) for _ in range(self._how.confirmations))

    def _keeps(self, rate: float) -> bool:
        """One window, or the majority of three where the first is a near thing.

        Being refused while others keep the machine busy is a near thing; being kept nevertheless is not.
        """
        tries = [self._try(rate)]
        if self._near(tries[0]) or (self._disturbed and not tries[0].kept):
            tries.append(self._try(rate))
            if tries[0].kept != tries[1].kept:
                tries.append(self._try(rate))
        return _majority(tries)

    def _near(self, step: Step) -> bool:
        """Whether misses are between half and three times what the objective allows: chance may decide."""
        allowed = 1.0 - self._how.quantile
        return allowed / 2 < 1.0 - step.share < allowed * 3

    def _try(self, rate: float) -> Step:
        got = self._attempt(rate)
        kept = got.share >= self._how.quantile
        if not kept and got.generator_late:
            self._late = True
        self._disturbed = got.disturbed
        step = Step(rate=rate, value_ms=got.value_ms, share=got.share, kept=kept)
        self._steps.append(step)
        return step


def _majority(tries: Sequence[Step]) -> bool:
    return 2 * sum(step.kept for step in tries) > len(tries)
