"""The search for the highest rate, on servers that are a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench_windows import window
from msgspec.structs import replace

from fastserve.bench.ramp import Search, Try, search
from fastserve.bench.runner import judged, objective

P99 = Search(0.99)


class Server:
    """A queue with a knee: waits grow as 1 / (capacity - rate). Misses are drawn, so that windows differ."""

    def __init__(self, capacity: float, bound_ms: float = 10.0, requests: int = 4000, seed: int = 1) -> None:
        self.capacity, self.bound_ms, self.requests = capacity, bound_ms, requests
        self._rng = np.random.default_rng(seed)
        self.tries = 0

    def share(self, rate: float) -> float:
        """Of requests within the bound: exponential waits, as in a queue with one server."""
        if rate >= self.capacity:
            return 0.0
        return 1 - math.exp(-(self.capacity - rate) * self.bound_ms / 1e3)

    def limit(self, quantile: float) -> float:
        return self.capacity + math.log(1 - quantile) * 1e3 / self.bound_ms

    def attempt(self, rate: float) -> Try:
        self.tries += 1
        kept = self._rng.binomial(self.requests, self.share(rate)) / self.requests
        return Try(value_ms=1.0, share=kept)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("start", [10.0, 2000.0, 40_000.0])
def test_the_knee_is_found_from_anywhere_despite_noise(start: float, seed: int) -> None:
    server = Server(5000.0, seed=seed)
    answer = search(server.attempt, start, P99)
    assert 0.9 * server.limit(0.99) < answer.rate < 1.01 * server.limit(0.99)
    assert answer.refused > answer.rate
    assert answer.limit == ""
    assert len(answer.steps) == server.tries <= 40


def test_the_answer_itself_was_kept_in_windows_of_its_own() -> None:
    answer = search(Server(800.0).attempt, 100.0, P99)
    of_answer = [step.kept for step in answer.steps if step.rate == answer.rate]
    assert sum(of_answer) >= 3


def test_one_lucky_window_is_not_believed() -> None:
    """The first window at each rate is good whatever the rate: confirmation finds out."""
    seen: dict[float, int] = {}

    def attempt(rate: float) -> Try:
        seen[rate] = seen.get(rate, 0) + 1
        good = rate <= 100 or (rate <= 400 and seen[rate] == 1)
        return Try(1.0, 1.0 if good else 0.5)

    answer = search(attempt, 50.0, P99)
    assert answer.rate <= 110


def test_a_disturbed_refusal_is_tried_again() -> None:
    seen: dict[float, int] = {}

    def attempt(rate: float) -> Try:
        seen[rate] = seen.get(rate, 0) + 1
        if rate > 1000:
            return Try(100.0, 0.0)
        return Try(100.0, 0.1, disturbed=True) if seen[rate] == 1 else Try(1.0, 1.0)

    assert search(attempt, 100.0, P99).rate > 900


def test_no_rate_keeps_the_objective() -> None:
    answer = search(lambda rate: Try(100.0, 0.0), 64.0, P99)
    assert answer.rate == 0.0 and answer.refused == 1.0


def test_the_generator_is_the_limit() -> None:
    answer = search(lambda rate: Try(1.0, 1.0 if rate < 300 else 0.2, rate >= 300), 100.0, P99)
    assert answer.rate < 300 and answer.limit == "the load generator could not send faster"


def test_the_search_gives_up_in_the_end() -> None:
    """A server that is never refused: doubling ends with the tries."""
    answer = search(lambda rate: Try(1.0, 1.0), 1.0, Search(0.99, most_tries=6))
    assert len(answer.steps) == 6 and answer.limit == "6 windows were not enough to be sure"
    now = iter(range(1000))
    answer = search(lambda rate: Try(1.0, 1.0), 1.0, Search(0.99, most_s=4.0), clock=lambda: float(next(now)))
    assert 0 < len(answer.steps) <= 5 and answer.limit.endswith("windows were not enough to be sure")


def test_a_window_is_judged_by_all_that_was_sent() -> None:
    good = window(mean_ms=2.0)
    assert judged(good, 0.99, 100.0).share == 1.0
    assert judged(good, 0.5, 2.0).share == pytest.approx(0.63, abs=0.05)
    lost = replace(good, sent=good.done * 2, failed={"timeout": good.done})
    assert judged(lost, 0.5, 100.0).share == pytest.approx(0.5)
    assert judged(lost, 0.99, 100.0).value_ms == 1000.0
    assert judged(replace(good, done=0, sent=0), 0.99, 1.0).share == 0.0
    late = replace(good, behind_p99_ns=60_000_000, generator_cpu_s=0.9)
    assert judged(late, 0.99, 100.0).generator_late
    assert not judged(replace(late, generator_cpu_s=0.1), 0.99, 100.0).generator_late
    assert judged(replace(good, failed={"generator full": 1}), 0.99, 100.0).generator_late
    assert judged(replace(good, others=0.3), 0.99, 100.0).disturbed


def test_objectives_are_read() -> None:
    assert objective("p99=10ms").objective == ("p99", 0.99, 10.0)
    assert objective("p99.9 = 2.5").objective == ("p999", 0.999, 2.5)
    for text in ("p98=1ms", "p99", "p99=fast", "p99=0"):
        with pytest.raises(ValueError, match=r"expected QUANTILE|no number of milliseconds"):
            objective(text)
