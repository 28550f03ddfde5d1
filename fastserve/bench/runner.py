"""One run of a workload: targets are ready, points are measured, all in turn, so that a drift of the machine
hits all alike.

A round measures every target at every point of a phase; the order of the targets turns with each round. Only
one target is busy at a time, the others stay up idle. Ctrl-C keeps what is there. Knows no screen: what goes
on is told to an Observer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import convert

from fastserve.bench.measure import Bodies, Generator, Meter, Order
from fastserve.bench.points import all_points, offered, quantile_label
from fastserve.bench.ramp import Search, Try, search
from fastserve.bench.requests import Log
from fastserve.bench.result import Found, Point, Window, merged
from fastserve.bench.target import Target
from fastserve.bench.workload import QUANTILES, Load, Replay, Slo
from fastserve.errors import FastServeError

_OVERHEAD_S = 0.3
_SEARCH_WINDOWS = 16
# A search's window is no shorter than this many requests need, and its requests time out at so many bounds.
_SEARCH_REQUESTS = 20
_SEARCH_TIMEOUT_BOUNDS = 10
_LEAST_TIMEOUT_S = 1.0
# The generator is the limit when it is itself later than this share of the bound, and works all the time.
_LATE_SHARE = 0.5
_LATE_CPU = 0.7
# A window in which others used more of the machine than this does not count for much.
_DISTURBED = 0.1


class Observer(Protocol):
    """Whoever watches a run."""

    def begin(self, seconds: float) -> None:
        """Roughly how long all of it takes."""

    def window(self, what: str, seconds: float) -> None:
        """A window begins."""

    def tick(self, seconds: float) -> None:
        """It has taken so long."""

    def measured(self, window: Window) -> None:
        """It has ended."""


class Silent:
    """An Observer that says nothing."""

    def begin(self, seconds: float) -> None: ...
    def window(self, what: str, seconds: float) -> None: ...
    def tick(self, seconds: float) -> None: ...
    def measured(self, window: Window) -> None: ...


@dataclass(frozen=True)
class Measured:
    """What a run found. ended: why it did not end by itself, or ""."""

    points: list[Point]
    windows: list[Window]
    found: list[Found]
    ended: str = ""


@dataclass
class Runner:
    """targets: up and verified. check: raises when one has died. seed: of all arrivals."""

    targets: Sequence[Target]
    bodies: Bodies
    load: Load
    generate: Generator
    observer: Observer
    check: Callable[[], None]
    seed: int = 1
    replay: Replay | None = None
    log: Log | None = None
    log_bodies: Bodies | None = None
    _windows: list[Window] = field(default_factory=list)
    _found: list[Found] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> Measured:
        """Measures everything; with Ctrl-C, or when a target dies, what was measured until then."""
        points = all_points(self.load, self.replay)
        self.observer.begin(self._estimate(points))
        ended = ""
        try:
            self._measure(points)
        except KeyboardInterrupt:
            ended = "interrupted"
        except FastServeError as error:
            ended = str(error)
        return Measured(points, self._windows, self._found, ended)

    def _measure(self, points: Sequence[Point]) -> None:
        meter = Meter(self.generate, self.bodies, self._began, self.observer.tick)
        self._phase(meter, [point for point in points if point.kind == "closed"], lambda point, target: 0.0)
        highest = {target.name: self._highest(target) for target in self.targets}
        self._phase(
            meter,
            [point for point in points if point.kind == "open"],
            lambda point, target: offered(point, highest, target.name),
        )
        if self.load.slo is not None:
            point = next(point for point in points if point.kind == "slo")
            rates = {
                target.name: self._search(meter, target, point, self.load.slo, highest[target.name])
                for target in self.targets
            }
            self._phase(meter, [point], lambda point, target: rates[target.name])
        if self.log is not None and self.log_bodies is not None:
            meter = Meter(self.generate, self.log_bodies, self._began, self.observer.tick)
            replayed = [point for point in points if point.kind == "replay"]
            self._phase(meter, replayed, lambda point, target: 0.0)

    def _phase(
        self, meter: Meter, points: Sequence[Point], rate_of: Callable[[Point, Target], float]
    ) -> None:
        for number in range(self.load.rounds):
            for point in points:
                for target in turned(self.targets, number):
                    rate = rate_of(point, target)
                    if point.kind in ("open", "slo") and rate <= 0:
                        continue  # the search found none
                    self._window(meter, target, point, number, rate)

    def _window(self, meter: Meter, target: Target, point: Point, number: int, rate: float) -> None:
        load = self.load
        log = self.log if point.kind == "replay" else None
        window_s = load.window_s if log is None else log.at_us[-1] / 1e6
        self.observer.window(
            f"round {number + 1} of {load.rounds}: {target.name}, {point.label}",
            load.warmup_s + window_s + _OVERHEAD_S,
        )
        window = meter.window(
            Order(
                target,
                point,
                number,
                seed=self.seed * 1000 + number,
                window_s=load.window_s,
                warmup_s=load.warmup_s,
                timeout_s=load.timeout_s,
                rate=rate,
                log=log,
            )
        )
        self.check()
        self._windows.append(window)
        self.observer.measured(window)

    def _highest(self, target: Target) -> float:
        """The highest rate in closed loop, over the rounds' means; 0.0 when there was no closed loop."""
        rates: dict[str, list[float]] = {}
        for window in self._windows:
            if window.target == target.name:
                rates.setdefault(window.point, []).append(window.rate)
        return max((sum(found) / len(found) for found in rates.values()), default=0.0)

    def _search(self, meter: Meter, target: Target, point: Point, slo: Slo, highest: float) -> float:
        """The highest rate that keeps `slo`; noted with all its steps."""
        name, quantile, bound_ms = slo.objective
        load = self.load
        timeout_s = max(_LEAST_TIMEOUT_S, _SEARCH_TIMEOUT_BOUNDS * bound_ms / 1e3)
        tries = 0

        def attempt(rate: float) -> Try:
            nonlocal tries
            tries += 1
            least_s = _SEARCH_REQUESTS / (1 - quantile) / rate
            window_s = min(max(load.window_s, least_s), 4 * load.window_s)
            self.observer.window(
                f"{target.name}, {quantile_label(name)} <= {bound_ms:g} ms: {rate:,.0f}/s",
                load.warmup_s + window_s + _OVERHEAD_S,
            )
            seed = self.seed * 1000 + 500 + tries
            order = Order(target, point, -1, seed, window_s, load.warmup_s, timeout_s, rate=rate)
            window = meter.window(order)
            self.check()
            self.observer.measured(window)
            return judged(window, quantile, bound_ms)

        start = 0.5 * (highest or self._probe(meter, target, slo.connections))
        answer = search(attempt, start, Search(quantile))
        self._found.append(
            Found(
                target=target.name,
                point=point.label,
                objective=quantile_label(name),
                bound_ms=bound_ms,
                rate=answer.rate,
                refused=answer.refused,
                steps=answer.steps,
                limit=answer.limit,
            )
        )
        return answer.rate

    def _probe(self, meter: Meter, target: Target, connections: int) -> float:
        """About the highest rate, where no closed loop has told."""
        point = Point(label="probe", kind="closed", connections=connections, in_flight=4)
        load = self.load
        self.observer.window(f"{target.name}: a first look", load.warmup_s + load.window_s + _OVERHEAD_S)
        window = meter.window(
            Order(target, point, -1, self.seed, load.window_s, load.warmup_s, load.timeout_s)
        )
        self.check()
        return max(window.rate, 2.0)

    def _estimate(self, points: Sequence[Point]) -> float:
        load = self.load
        plain = sum(point.kind in ("closed", "open") for point in points) * load.rounds * len(self.targets)
        searched = sum(point.kind == "slo" for point in points) * (_SEARCH_WINDOWS + load.rounds)
        windows = plain + searched * len(self.targets)
        seconds = windows * (load.warmup_s + load.window_s + _OVERHEAD_S)
        if self.log is not None:
            once = load.warmup_s + float(self.log.at_us[-1]) / 1e6 + _OVERHEAD_S
            seconds += once * load.rounds * len(self.targets)
        return seconds


def turned(targets: Sequence[Target], number: int) -> Iterator[Target]:
    """The order of the targets in a round: A B C, B C A, C A B."""
    for i in range(len(targets)):
        yield targets[(i + number) % len(targets)]


def judged(window: Window, quantile: float, bound_ms: float) -> Try:
    """What a window says about an objective. Requests that failed count as late."""
    histogram = merged([window])
    within = share_within(histogram.cdf(), bound_ms * 1e6) * window.done
    late = window.behind_p99_ns > _LATE_SHARE * bound_ms * 1e6
    late = late and window.generator_cpu_s > _LATE_CPU * window.seconds
    value = histogram.value_at(min(1.0, quantile * window.sent / window.done)) if window.done else math.inf
    if window.done < quantile * window.sent:
        value = math.inf
    return Try(
        value_ms=value / 1e6 if math.isfinite(value) else bound_ms * _SEARCH_TIMEOUT_BOUNDS,
        share=within / window.sent if window.sent else 0.0,
        generator_late=late or "generator full" in window.failed,
        disturbed=(window.others or 0.0) > _DISTURBED,
    )


def share_within(cdf: Sequence[tuple[int, float]], bound: float) -> float:
    """The share of all values that are at most `bound`."""
    share = 0.0
    for value, so_far in cdf:
        if value > bound:
            break
        share = so_far
    return share


def objective(text: str, connections: int = 8) -> Slo:
    """ "p99=10ms" as an Slo. ValueError, in words for the user."""
    name, equals, bound = text.partition("=")
    name = name.strip().replace(".", "")
    number = bound.strip().removesuffix("ms").strip()
    known = ", ".join(map(quantile_label, QUANTILES))
    if not equals or name not in QUANTILES:
        raise ValueError(f'expected QUANTILE=MILLISECONDS, such as "p99=10ms"; quantiles are {known}')
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError(f'"{bound.strip()}" is no number of milliseconds above 0, such as "10ms"')
    return convert({f"{name}_ms": value, "connections": connections}, Slo)
