"""When a new version is promoted and when it is rolled back, and how the core is asked meanwhile."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from fastserve.config import Model, Rollout
from fastserve.control.rollout import (
    Decision,
    Figures,
    ShadowFigures,
    Verdict,
    VersionFigures,
    decide,
    read_figures,
    wilson,
)
from fastserve.control.rollout_watch import RolloutWatch
from fastserve.errors import CoreError, CoreLost

CANARY = Rollout(mode="canary")
SHADOW = Rollout(mode="shadow")
WAIT, PROMOTE, ROLLBACK = Decision.WAIT, Decision.PROMOTE, Decision.ROLLBACK


def canary(
    new: tuple[int, int],
    stable: tuple[int, int],
    *,
    p99_us: tuple[int, int] = (10_000, 10_000),
    refused: int = 0,
) -> Figures:
    """new and stable: (requests, failed)."""
    return Figures(
        stable=VersionFigures(stable[0], stable[1], p99_us=p99_us[1]),
        new=VersionFigures(new[0], new[1], refused, p99_us=p99_us[0]),
    )


def shadow(compared: int, *, failed: int = 0, different: int = 0, missing: int = 0) -> Figures:
    return Figures(
        shadow=ShadowFigures(
            compared=compared,
            rows=10 * compared,
            different_rows=different,
            largest_difference=0.5 if different else 0.0,
            missing_outputs=missing,
            failed=failed,
        )
    )


@pytest.mark.parametrize(
    ("seconds", "figures", "expected"),
    [
        # Nothing wrong: the time and the requests, both.
        (0, canary((0, 0), (0, 0)), WAIT),
        (59, canary((5000, 0), (50000, 0)), WAIT),
        (3600, canary((999, 0), (9000, 0)), WAIT),
        (60, canary((1000, 0), (9000, 0)), PROMOTE),
        (60, canary((1000, 0), (0, 0)), PROMOTE),
        # A few failures say nothing, for the first requests of all;
        (1, canary((3, 1), (30, 0)), WAIT),
        (1, canary((10, 1), (100, 0)), WAIT),
        (1, canary((30, 1), (300, 0)), WAIT),
        # many do, at once.
        (1, canary((3, 3), (30, 0)), ROLLBACK),
        (1, canary((20, 8), (200, 0)), ROLLBACK),
        (5, canary((1000, 60), (9000, 9)), ROLLBACK),
        # Both fail alike: not the new one's fault,
        (60, canary((1000, 300), (9000, 2700)), PROMOTE),
        (60, canary((1000, 5), (9000, 9)), PROMOTE),
        # and nothing to compare with is no reason to give up a version.
        (1, canary((3, 3), (0, 0)), WAIT),
        # Above what is allowed, but perhaps by chance: more requests will tell.
        (60, canary((1000, 15), (9000, 0)), WAIT),
        (600, canary((10000, 150), (90000, 0)), ROLLBACK),
        # What it refuses and the old one did not counts as well.
        (1, canary((20, 0), (200, 0), refused=20), ROLLBACK),
        (60, canary((1000, 0), (9000, 0), refused=2), PROMOTE),
        # Latency: with enough requests of both, and by more than noise.
        (1, canary((999, 0), (9000, 0), p99_us=(30_000, 10_000)), WAIT),
        (1, canary((1000, 0), (999, 0), p99_us=(30_000, 10_000)), WAIT),
        (1, canary((1000, 0), (9000, 0), p99_us=(20_001, 10_000)), ROLLBACK),
        (60, canary((1000, 0), (9000, 0), p99_us=(20_000, 10_000)), PROMOTE),
        (60, canary((1000, 0), (9000, 0), p99_us=(900, 100)), PROMOTE),
    ],
)
def test_a_canary(seconds: float, figures: Figures, expected: Decision) -> None:
    assert decide(CANARY, seconds, figures).decision is expected


@pytest.mark.parametrize(
    ("seconds", "figures", "expected"),
    [
        (0, shadow(0), WAIT),
        (3600, shadow(999), WAIT),
        (60, shadow(1000), PROMOTE),
        # All rows of a few requests say nothing,
        (1, shadow(29, different=290), WAIT),
        (1, shadow(30, different=290), ROLLBACK),
        (1, shadow(100, different=60), ROLLBACK),
        (60, shadow(1000, different=99), PROMOTE),
        (60, shadow(1000, different=110), WAIT),
        (1, shadow(3, failed=1), WAIT),
        (1, shadow(0, failed=3), WAIT),
        (1, shadow(0, failed=5), ROLLBACK),
        (1, shadow(1000, failed=60), ROLLBACK),
        (60, shadow(995, failed=5), PROMOTE),
    ],
)
def test_a_shadow(seconds: float, figures: Figures, expected: Decision) -> None:
    assert decide(SHADOW, seconds, figures).decision is expected


def test_with_nothing_allowed_one_different_row_is_enough() -> None:
    strict = Rollout(mode="shadow", max_drift=0.0)
    assert decide(strict, 1, shadow(1000, different=1)).decision is ROLLBACK
    assert decide(strict, 60, shadow(1000)).decision is PROMOTE


def test_a_shadow_is_not_judged_by_its_latency() -> None:
    slow = Figures(
        stable=VersionFigures(5000, p99_us=1_000),
        new=VersionFigures(5000, p99_us=900_000),
        shadow=ShadowFigures(compared=5000, rows=5000),
    )
    assert decide(SHADOW, 60, slow).decision is PROMOTE


@pytest.mark.parametrize(
    ("settings", "figures", "words"),
    [
        (
            CANARY,
            canary((1000, 60), (9000, 9)),
            ["6 % of 1000 requests fail", "0.1 % of 9000", "max_error_increase"],
        ),
        (CANARY, canary((20, 0), (200, 0), refused=20), ["100 % of 20 requests are refused"]),
        (
            CANARY,
            canary((1000, 0), (9000, 0), p99_us=(31_000, 10_000)),
            ["31.0 ms", "10.0 ms", "max_latency_ratio = 2"],
        ),
        (
            SHADOW,
            shadow(100, different=600),
            ["60 % of 1000", "0.001", "largest difference is 0.5", "max_drift"],
        ),
        (SHADOW, shadow(100, different=1000, missing=100), ["outputs are missing, 100 in all"]),
        (SHADOW, shadow(0, failed=9), ["100 % of 9 requests fail in the shadow"]),
        (CANARY, canary((10, 0), (90, 0)), ["1 s of 60 s, 10 of 1000 requests"]),
    ],
)
def test_the_reason_says_what_was_seen_and_what_is_allowed(
    settings: Rollout, figures: Figures, words: list[str]
) -> None:
    reason = decide(settings, 1, figures).reason
    assert not [word for word in words if word not in reason], reason


def test_an_interval_holds_the_share_and_narrows_with_more() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    widths = []
    for of in (10, 100, 1000, 10_000):
        low, high = wilson(of // 10, of)
        assert low < 0.1 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    # Its ends are the shares from which what was seen is three standard deviations away.
    for share in wilson(10, 100):
        assert abs(share - 0.1) == pytest.approx(3 * math.sqrt(share * (1 - share) / 100))


# ---- the watch ----------------------------------------------------------------------------------


def stats(new: int = 0, *, failed: int = 0) -> dict[str, Any]:
    def version(requests: int, failed: int) -> dict[str, Any]:
        return {
            "requests": requests,
            "failed": failed,
            "refused": 0,
            "cancelled": 0,
            "latency_us": {"p50": 100, "p90": 200, "p99": 300},
        }

    names = ("compared", "rows", "different_rows", "missing_outputs", "failed", "dropped", "skipped")
    return {
        "versions": {"6": version(10 * new, 0), "7": version(new, failed)},
        "shadow": {**dict.fromkeys(names, 0), "largest_difference": 0.0},
    }


class World:
    """A core that answers rollout_stats from a list, and a clock that only sleeping moves."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.now = 1000.0
        self.routes: list[Any] = []
        self.progress: list[tuple[str, Figures]] = []
        self.watch = RolloutWatch(self.call, clock=lambda: self.now, sleep=self.sleep)

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        assert params["model"] == "m"
        if op == "route":
            self.routes.append(params["route"])
            return {}
        assert op == "rollout_stats"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, **rollout: Any) -> Verdict:
        model = Model(name="m", base_path="/m", rollout=Rollout(**rollout))
        return asyncio.run(
            self.watch.watch(model, 6, 7, lambda text, figures: self.progress.append((text, figures)))
        )


def test_the_route_is_as_configured_and_cleared_when_the_version_is_promoted() -> None:
    world = World(stats(10), stats(20), stats(30))
    verdict = world.run(mode="canary", share=0.25, sticky_header="x-user", duration_s=3, min_requests=30)
    assert verdict.decision is PROMOTE
    assert world.now == 1003
    assert world.routes == [
        {
            "mode": "canary",
            "stable": 6,
            "new": 7,
            "share": 0.25,
            "sticky_header": "x-user",
            "max_difference": 1e-3,
        },
        None,
    ]
    assert world.watch.routes() == {}
    assert [figures.new.requests for _, figures in world.progress] == [10, 20, 30]
    assert world.progress[0][0] == (
        "canary: version 7 answers 25 %, version 6 the rest; wait: 1 s of 3 s, 10 of 30 requests"
    )


def test_after_a_rollback_the_old_version_answers_everything_until_the_new_one_is_gone() -> None:
    world = World(stats(10), stats(20, failed=20))
    assert world.run(mode="canary").decision is ROLLBACK
    kept = {"mode": "canary", "stable": 6, "new": 7, "share": 0.0}
    assert world.routes[1:] == [kept]
    assert world.watch.routes() == {"m": kept}
    asyncio.run(world.watch.clear("m"))
    assert world.routes[2:] == [None]
    assert world.watch.routes() == {}


@pytest.mark.parametrize(
    "loss", [CoreLost("the core has ended"), CoreError("FAILED_PRECONDITION", "m has no route")]
)
def test_another_core_gets_the_route_and_the_time_begins_anew(loss: Exception) -> None:
    world = World(stats(10), stats(20), loss, stats(5), stats(10), stats(30))
    assert world.run(mode="canary", duration_s=3, min_requests=30).decision is PROMOTE
    assert world.now == 1006
    assert world.routes[0] == world.routes[1]
    assert world.routes[2:] == [None]


def test_a_core_that_is_lost_at_the_verdict_does_not_change_it() -> None:
    world = World(stats(20, failed=20))

    async def lost(op: str, **params: Any) -> dict[str, Any]:
        if op == "route" and params["route"]["share"] == 0:
            raise CoreLost("the core has ended")
        return await world.call(op, **params)

    world.watch = RolloutWatch(lost, clock=lambda: world.now, sleep=world.sleep)
    assert world.run(mode="canary").decision is ROLLBACK
    assert world.watch.routes()["m"]["share"] == 0


def test_without_a_rollout_there_is_nothing_to_wait_for() -> None:
    world = World()
    assert world.run(mode="off").decision is PROMOTE
    assert world.routes == []


def test_figures_are_read_from_the_cores_answer() -> None:
    answer = stats(30, failed=2)
    answer["shadow"] |= {
        "compared": 4,
        "rows": 8,
        "different_rows": 1,
        "largest_difference": 0.5,
        "dropped": 3,
    }
    assert read_figures(answer, 6, 7) == Figures(
        VersionFigures(300, 0, 0, 100, 200, 300),
        VersionFigures(30, 2, 0, 100, 200, 300),
        ShadowFigures(4, 8, 1, 0.5, dropped=3),
    )
