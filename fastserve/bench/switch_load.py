"""The load of a switch run: how each model's is started, and how much of it there shall be.

Used by switch_run, before the first switch and for the run. The generators are native threads, which check
every answer. Knows no versions and no windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastserve._native.load import Check, LoadResult
from fastserve.bench.switch_plan import BESIDE, Load, Timing
from fastserve.bench.switch_versions import ATOL, RTOL, Asked
from fastserve.bench.target import Target
from fastserve.bench.wire import PREDICT_PATH, grpc_body
from fastserve.errors import FastServeError

SIGNATURE = "serving_default"
_LONGEST_S = 24 * 3600.0

# How saturation is looked for: halvings of what is left, and the share of answers that must be in time.
_HALVINGS = 5
# Times what a closed loop reaches.
_FARTHEST = 16.0
_IN_TIME = 0.99
_NS_PER_MS = 1e6
# Failures that no load explains, as the generator names them.
_WRONG = frozenset({"bad reply", "misversioned"})

# Told what goes on.
Say = Callable[[str], None]
# fastserve._native.load.start, or what stands in for it in tests.
Start = Callable[..., Any]


class SwitchError(FastServeError):
    """A run could not be made, or not go on."""


class TargetLoad:
    """The load on one model: how it is started, and what its result becomes."""

    def __init__(self, target: Target, model: str, asked: Asked, load: Load, start: Start) -> None:
        self._target = target
        self._model = model
        self._load = load
        self._begin = start
        self._bodies = [grpc_body(model, SIGNATURE, request) for request in asked.requests]
        self._check = Check(asked.output, asked.expected, ATOL, RTOL)

    def closed(self, seconds: float, warmup_s: float) -> Any:
        return self._start(in_flight=self._load.in_flight, warmup_s=warmup_s, duration_s=seconds)

    def open(self, rate: float, warmup_s: float, most_s: float) -> Any:
        return self._start(
            rate=rate,
            seed=self._load.seed + (self._model == BESIDE),
            warmup_s=warmup_s,
            duration_s=_LONGEST_S,
            max_records=int(rate * most_s) + 1000,
        )

    def probe(self, rate: float, seconds: float, warmup_s: float) -> Any:
        """An open loop that ends by itself."""
        return self._start(rate=rate, seed=self._load.seed, warmup_s=warmup_s, duration_s=seconds)

    def _start(self, **options: Any) -> Any:
        return self._begin(
            self._target.address,
            self._bodies,
            path=PREDICT_PATH,
            authority=self._target.authority,
            connections=self._load.connections,
            timeout_s=self._load.timeout_s,
            interval_s=0.0,
            check=self._check,
            **options,
        )


def rates_of(
    load: Load, loads: Mapping[str, TargetLoad], timing: Timing, say: Say
) -> tuple[dict[str, float], dict[str, float]]:
    """By model, saturation, 0 where nobody asked for it, and the rate of the run. Raises SwitchError."""
    if load.rates is not None:
        return dict.fromkeys(loads, 0.0), dict(zip(loads, load.rates, strict=True))
    if load.saturation is not None:
        saturation = dict(zip(loads, load.saturation, strict=True))
    else:
        saturation = find_saturation(loads, timing, load.within_ms, say)
    return saturation, {name: load.share * rate for name, rate in saturation.items()}


def find_saturation(
    loads: Mapping[str, TargetLoad], timing: Timing, within_ms: float, say: Say
) -> dict[str, float]:
    """The highest rates in an open loop, both models asked at once, at which 99 % of either's answers are
    there within `within_ms`; to 3 % of what a closed loop reaches. Raises SwitchError.

    A closed loop alone says too much: there each answer makes room for the next request, so batches are as
    large as can be, and rates are reached that in an open loop let requests wait for ever. Or it says too
    little: where batches may wait for more requests, it leaves a server idle. Then the search goes on, twice
    as far and farther.
    """
    say("measuring saturation")
    most = _answered({name: load.closed(timing.saturation_s, 1.0) for name, load in loads.items()})

    def good(share: float) -> bool:
        say(f"measuring saturation: {share:.0%} of {sum(one.rate for one in most.values()):,.0f} requests/s")
        rates = {name: share * one.rate for name, one in most.items()}
        # What others do on the machine can spoil a probe, and nothing can mend one: twice is enough to tell.
        return any(_in_time(loads, rates, timing, within_ms) for _ in range(2))

    end = 1.0
    low, high = _halve(0.0, end, good)
    while high == end and end < _FARTHEST:
        end *= 2
        low, high = _halve(low, end, good)
    if not low:
        raise SwitchError(
            f"even {high:.0%} of what a closed loop reaches is not answered within {within_ms:g} ms; "
            "give a longer --within, or --rates"
        )
    return {name: low * result.rate for name, result in most.items()}


def _halve(low: float, high: float, good: Callable[[float], bool]) -> tuple[float, float]:
    """What is left of the shares from `low`, which is good, to `high`."""
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        low, high = (share, high) if good(share) else (low, share)
    return low, high


def _in_time(
    loads: Mapping[str, TargetLoad], rates: Mapping[str, float], timing: Timing, within_ms: float
) -> bool:
    """Whether both models keep up with these rates. A wrong answer is not a late one: SwitchError."""
    probes = {name: load.probe(rates[name], timing.probe_s, 0.5) for name, load in loads.items()}
    results: dict[str, LoadResult] = {name: one.wait() for name, one in probes.items()}
    for name, result in results.items():
        if not _WRONG.isdisjoint(result.failed):
            raise SwitchError(f"{name}: {result.failed} before any switch: {result.first_error}")
    return all(
        one.done and not one.failed and one.latency.value_at(_IN_TIME) <= within_ms * _NS_PER_MS
        for one in results.values()
    )


def _answered(running: Mapping[str, Any]) -> dict[str, LoadResult]:
    results: dict[str, LoadResult] = {name: one.wait() for name, one in running.items()}
    for name, result in results.items():
        if result.failed or not result.done:
            raise SwitchError(
                f"{name}: {result.failed or 'no answers'} before any switch: {result.first_error}"
            )
    return results
