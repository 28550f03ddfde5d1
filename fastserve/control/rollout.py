"""Whether a new version has proved itself: a pure function of what the core has counted.

Two things are told apart: what is certain enough to roll back at once, and what is good enough to promote
once the time is up. For shares (of failures, refusals, rows that differ) certain means that the lower end of
a confidence interval is above what is allowed: Wilson's interval for one share, Newcombe's for the difference
of two, three standard deviations wide on either side, because it is looked at every second. So 1 failure in
3 requests says nothing, 3 in 3 does. Good enough means that the share itself is not above what is allowed.

Knows no core and no clock; rollout_watch asks it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastserve.config import Rollout

_DEVIATIONS = 3.0
# A p99 says something from so many requests on, and a difference below this is noise of the machine's.
_P99_REQUESTS = 1000
_P99_NOISE_US = 1000
# Rows of one request differ together, so that a few requests say nothing however many rows they have.
_DRIFT_REQUESTS = 30


class Decision(enum.Enum):
    WAIT = "wait"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Verdict:
    """`reason` is for people: what was seen, and what is allowed."""

    decision: Decision
    reason: str


@dataclass(frozen=True)
class VersionFigures:
    """One version's requests since the route was set. `failed`: by the server's or the model's fault;
    `refused`: they do not fit the version's signature, or it did not like their values."""

    requests: int = 0
    failed: int = 0
    refused: int = 0
    p50_us: int = 0
    p90_us: int = 0
    p99_us: int = 0


@dataclass(frozen=True)
class ShadowFigures:
    """Copies of requests that the stable version answered, run by the new one."""

    compared: int = 0
    rows: int = 0
    different_rows: int = 0
    largest_difference: float = 0.0
    missing_outputs: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Figures:
    stable: VersionFigures = VersionFigures()
    new: VersionFigures = VersionFigures()
    shadow: ShadowFigures = ShadowFigures()


def read_figures(answer: Mapping[str, Any], stable: int, new: int) -> Figures:
    """From the core's answer to rollout_stats."""

    def version(number: int) -> VersionFigures:
        row = answer["versions"][str(number)]
        latency = row["latency_us"]
        return VersionFigures(
            requests=row["requests"],
            failed=row["failed"],
            refused=row["refused"],
            p50_us=latency["p50"],
            p90_us=latency["p90"],
            p99_us=latency["p99"],
        )

    shadow = answer["shadow"]
    fields = ShadowFigures.__dataclass_fields__
    return Figures(version(stable), version(new), ShadowFigures(**{name: shadow[name] for name in fields}))


def tried(settings: Rollout, figures: Figures) -> int:
    """Requests that the new version has been judged by so far."""
    if settings.mode == "shadow":
        return figures.shadow.compared + figures.shadow.failed
    return figures.new.requests


def decide(settings: Rollout, seconds: float, figures: Figures) -> Verdict:
    """What to do, `seconds` after the new version got its first share."""
    checks = _shadow_checks if settings.mode == "shadow" else _canary_checks
    doubts = []
    for check in checks(settings, figures):
        if check.certain:
            return Verdict(Decision.ROLLBACK, check.text)
        if check.doubtful:
            doubts.append(check.text)
    requests = tried(settings, figures)
    if seconds < settings.duration_s or requests < settings.min_requests:
        return Verdict(
            Decision.WAIT,
            f"{min(seconds, settings.duration_s):.0f} s of {settings.duration_s:g} s, "
            f"{min(requests, settings.min_requests)} of {settings.min_requests} requests",
        )
    if doubts:
        return Verdict(Decision.WAIT, "; ".join(doubts) + ", which is not certain yet")
    return Verdict(Decision.PROMOTE, f"nothing is wrong after {seconds:.0f} s and {requests} requests")


@dataclass(frozen=True)
class _Check:
    """certain: worse than is allowed, beyond doubt; doubtful: it looks worse."""

    certain: bool
    doubtful: bool
    text: str


def _canary_checks(settings: Rollout, figures: Figures) -> list[_Check]:
    stable, new = figures.stable, figures.new
    allowed = settings.max_error_increase
    return [
        _increase("fail", new.failed, new.requests, stable.failed, stable.requests, allowed),
        # What callers do wrong they do to both; a version of another signature refuses what the old one took.
        _increase("are refused", new.refused, new.requests, stable.refused, stable.requests, allowed),
        _latency(settings, stable, new),
    ]


def _shadow_checks(settings: Rollout, figures: Figures) -> list[_Check]:
    """Latency is not among them: shadows give way to others, so theirs says nothing."""
    shadow = figures.shadow
    requests = shadow.compared + shadow.failed
    return [
        _increase("fail in the shadow", shadow.failed, requests, 0, requests, settings.max_error_increase),
        _drift(settings, shadow),
    ]


def _increase(verb: str, bad: int, of: int, bad_before: int, of_before: int, allowed: float) -> _Check:
    rate, before = _rate(bad, of), _rate(bad_before, of_before)
    low, _ = wilson(bad, of)
    _, high_before = wilson(bad_before, of_before)
    least = rate - before - math.hypot(rate - low, high_before - before)  # Newcombe's method 10
    return _Check(
        least > allowed,
        rate - before > allowed,
        f"{_percent(rate)} of {of} requests {verb}, {_percent(before)} of {of_before} with the old version "
        f"(max_error_increase = {allowed:g})",
    )


def _drift(settings: Rollout, shadow: ShadowFigures) -> _Check:
    low, _ = wilson(shadow.different_rows, shadow.rows)
    rate = _rate(shadow.different_rows, shadow.rows)
    why = (
        f"outputs are missing, {shadow.missing_outputs} in all"
        if shadow.missing_outputs > 0
        else f"the largest difference is {shadow.largest_difference:.3g}"
    )
    return _Check(
        shadow.compared >= _DRIFT_REQUESTS and low > settings.max_drift,
        rate > settings.max_drift,
        f"{_percent(rate)} of {shadow.rows} rows differ by more than {settings.max_difference:g} ({why}; "
        f"max_drift = {settings.max_drift:g})",
    )


def _latency(settings: Rollout, stable: VersionFigures, new: VersionFigures) -> _Check:
    enough = min(stable.requests, new.requests) >= _P99_REQUESTS
    worse = (
        new.p99_us > stable.p99_us * settings.max_latency_ratio and new.p99_us - stable.p99_us > _P99_NOISE_US
    )
    return _Check(
        enough and worse,
        False,
        f"p99 latency is {new.p99_us / 1e3:.1f} ms and the old version's {stable.p99_us / 1e3:.1f} ms "
        f"(max_latency_ratio = {settings.max_latency_ratio:g})",
    )


def wilson(bad: int, of: int) -> tuple[float, float]:
    """The ends of the confidence interval for a share of which `bad` of `of` were seen."""
    if of == 0:
        return 0.0, 1.0
    rate, z2 = bad / of, _DEVIATIONS**2
    middle = (rate + z2 / (2 * of)) / (1 + z2 / of)
    reach = _DEVIATIONS / (1 + z2 / of) * math.sqrt(rate * (1 - rate) / of + z2 / (4 * of * of))
    low = 0.0 if bad == 0 else max(0.0, middle - reach)
    return low, 1.0 if bad == of else min(1.0, middle + reach)


def _rate(bad: int, of: int) -> float:
    return bad / of if of > 0 else 0.0


def _percent(rate: float) -> str:
    return f"{rate * 100:.3g} %"
