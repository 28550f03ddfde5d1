"""A candidate configuration as a running daemon, and what its score is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastserve.bench.ask import ask
from fastserve.bench.child import Child
from fastserve.bench.measure import Bodies, Generator, Meter, Order
from fastserve.bench.points import slo_point
from fastserve.bench.ramp import Search, Try, search
from fastserve.bench.requests import Array, Request
from fastserve.bench.result import Point, Window
from fastserve.bench.runner import judged
from fastserve.bench.start import READY_TIMEOUT_S, ready_addresses
from fastserve.bench.target import Target, TargetError, at_address
from fastserve.bench.tune_config import for_trial
from fastserve.bench.tune_search import Score
from fastserve.bench.verify import compare_answers
from fastserve.bench.workload import Slo
from fastserve.config_read import parse_config
from fastserve.errors import ConfigError, FastServeError

# Compiled and plain runs round differently; what is more than that is another answer.
_RTOL, _ATOL = 1e-2, 1e-3
_VERIFIED = 2
_NEAR = 1.15


@dataclass(frozen=True)
class Goal:
    """slo: find the highest rate that keeps it. Without: the lowest p99 at `rate`."""

    slo: Slo | None
    rate: float = 0.0
    connections: int = 8

    @property
    def point(self) -> Point:
        if self.slo is not None:
            return slo_point(self.slo)
        return Point(
            label=f"p99 at {self.rate:,.10g}/s", kind="open", connections=self.connections, rate=self.rate
        )

    def text(self, score: float) -> str:
        """A score for people."""
        if score <= 0:
            return "none"
        return f"{score:,.0f}/s" if self.slo is not None else f"p99 {1e3 / score:.3g} ms"


@dataclass(frozen=True)
class Sizes:
    """How long things are measured."""

    window_s: float = 1.0
    warmup_s: float = 0.3
    timeout_s: float = 5.0
    # At most, for a search that starts from nothing, and for one of the rerun.
    search_s: float = 120.0
    rerun_s: float = 30.0


@dataclass
class Bench:
    """Starts candidates and measures them. folder: for the daemons' state, prepared models too."""

    file: Path
    text: str
    model: str
    signature: str
    folder: Path
    goal: Goal
    generate: Generator
    requests: Sequence[Request]
    bodies: Bodies
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 1
    _expected: list[dict[str, Array]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _windows: int = 0

    @contextmanager
    def daemon(self, values: Mapping[str, Any], state: str = "state") -> Iterator[tuple[Target, Child]]:
        """FastServe with `values` set, once it is ready. Raises FastServeError."""
        text = for_trial(self.text, self.file, self.model, values, self.folder / state)
        try:
            parse_config(text, "candidate")
        except ConfigError as error:
            raise TargetError(str(error).replace("\n", "; ")) from None
        with Child("candidate") as child:
            config, ready = child.folder / "config.toml", child.folder / "ready.json"
            config.write_text(text)
            command = [sys.executable, "-m", "fastserve", "serve", str(config), "--strict"]
            child.start([*command, "--ready-file", str(ready)])
            address = child.wait_until(lambda: ready_addresses(ready), READY_TIMEOUT_S)[0]
            child.remember_family()
            at = at_address("candidate", address)
            yield Target("candidate", "fastserve", at.protocol, at.address, at.authority, child.pid), child

    def score(self, values: Mapping[str, Any], bar: float) -> Score:
        """Of a candidate: its highest rate, or 1 / its p99 in seconds; 0.0 as soon as it is below `bar`."""
        try:
            with self.daemon(values) as (target, child):
                self.verify(target)
                return Score(self.measure(target, child, bar))
        except FastServeError as error:
            return Score(0.0, str(error).splitlines()[0])

    def verify(self, target: Target) -> None:
        """The first daemon's answers are what the others' are compared with. Raises FastServeError."""
        for number, request in enumerate(self.requests[:_VERIFIED]):
            answer = ask(target, self.model, self.signature, request)
            if number < len(self._expected):
                answers = [("the configuration as it is", self._expected[number]), ("this one", answer)]
                compare_answers(answers, _RTOL, _ATOL, number)
            else:
                self._expected.append(answer)

    def measure(self, target: Target, child: Child, bar: float, start: float = 0.0) -> float:
        """As score, of a daemon that is up. start: a rate to start the search from."""
        if self.goal.slo is None:
            return self._latency(target, child, bar)
        _, quantile, bound_ms = self.goal.slo.objective
        timeout_s = max(1.0, 10 * bound_ms / 1e3)

        def attempt(rate: float) -> Try:
            least_s = 20 / (1 - quantile) / rate
            window_s = min(max(self.sizes.window_s, least_s), 4 * self.sizes.window_s)
            return judged(self._window(target, child, rate, window_s, timeout_s), quantile, bound_ms)

        if bar:
            how = Search(
                quantile, 1.04, confirmations=1, least_rate=bar, most_tries=20, most_s=self.sizes.search_s
            )
            return search(attempt, bar, how).rate
        if start:  # the rerun knows about where to look
            how = Search(quantile, 1.04, 1.25, confirmations=1, most_tries=20, most_s=self.sizes.rerun_s)
        else:
            start = 0.5 * self._first_look(target, child)
            how = Search(quantile, 1.04, confirmations=1, most_tries=24, most_s=self.sizes.search_s)
        return search(attempt, start, how).rate

    def _latency(self, target: Target, child: Child, bar: float) -> float:
        """1 / p99 in seconds at the goal's rate: the median of three windows, or of fewer when those tell."""
        values = []
        for _ in range(3):
            window = self._window(target, child, self.goal.rate, self.sizes.window_s, self.sizes.timeout_s)
            p99 = judged(window, 0.99, 1e3 * self.sizes.timeout_s).value_ms / 1e3
            values.append(p99)
            if bar and p99 * bar > _NEAR:
                return 0.0
        score = 1.0 / sorted(values)[1]
        return score if score >= bar else 0.0

    def _first_look(self, target: Target, child: Child) -> float:
        connections = self.goal.point.connections
        point = Point(label="first look", kind="closed", connections=connections, in_flight=4)
        return max(
            self._window(target, child, 0.0, self.sizes.window_s, self.sizes.timeout_s, point).rate, 2.0
        )

    def _window(
        self,
        target: Target,
        child: Child,
        rate: float,
        window_s: float,
        timeout_s: float,
        point: Point | None = None,
    ) -> Window:
        self._windows += 1
        order = Order(
            target,
            point or self.goal.point,
            0,
            seed=self.seed * 1000 + self._windows,
            window_s=window_s,
            warmup_s=self.sizes.warmup_s,
            timeout_s=timeout_s,
            rate=rate,
        )
        window = Meter(self.generate, self.bodies, self._began).window(order)
        child.check()
        return window
