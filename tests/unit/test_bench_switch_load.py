"""How much load a switch run puts on its models: saturation, found against models made up; requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastserve._native.load import Histogram, LoadResult
from fastserve.bench.requests import Request
from fastserve.bench.switch_load import SwitchError, TargetLoad, find_saturation, rates_of
from fastserve.bench.switch_plan import BESIDE, MODEL, Load, Timing
from fastserve.bench.switch_versions import Asked
from fastserve.bench.target import at_address

TIMING = Timing(saturation_s=2.0, probe_s=1.0)
MS = 1_000_000


def result(rate: float, took_ms: float = 1.0, **changes: Any) -> LoadResult:
    latency: Any = SimpleNamespace(value_at=lambda share: int(took_ms * MS))
    usual = LoadResult(5, 5, {}, 0, [5], 1.0, rate, latency, [], 0.1, 1, 1, Histogram(), 0, "")
    return usual._replace(**changes)


class Made:
    """A model that answers `most` requests a second in a closed loop, and in an open one, as long as it is
    asked less often than `knee`, within a millisecond. Both loads are started before either is waited for."""

    started: list[Made]

    def __init__(self, most: float, knee: float, spoilt: int = 0) -> None:
        self.most = most
        self.knee = knee
        # So many probes go wrong, the first ones.
        self.spoilt = spoilt
        self.probed: list[float] = []
        self.failed: dict[str, Any] = {}
        self.wrong: dict[str, Any] = {}

    def closed(self, seconds: float, warmup_s: float) -> Made:
        assert seconds == TIMING.saturation_s
        self.next = result(self.most, **self.failed)
        self.started.append(self)
        return self

    def probe(self, rate: float, seconds: float, warmup_s: float) -> Made:
        assert seconds == TIMING.probe_s
        self.probed.append(rate)
        bad = rate > self.knee or len(self.probed) <= self.spoilt
        self.next = result(rate, 30.0 if bad else 1.0, **self.wrong)
        self.started.append(self)
        return self

    def wait(self) -> LoadResult:
        assert len(self.started) % 2 == 0
        return self.next


def both(model: Made, beside: Made) -> dict[str, Any]:
    model.started = beside.started = []
    return {MODEL: model, BESIDE: beside}


def test_saturation_is_the_highest_rate_that_is_answered_in_time() -> None:
    model, beside = Made(1000.0, 640.0), Made(800.0, 800.0)
    found = find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)
    # Both get the same share of what each reaches, and the one that gives way first decides.
    assert found == {MODEL: 625.0, BESIDE: 500.0}
    assert max(model.probed) == 750.0
    assert model.probed.count(750.0) == 2
    assert model.probed.count(625.0) == 1


@pytest.mark.parametrize("most", [1500.0, 2100.0, 9000.0])
def test_saturation_may_lie_beyond_what_a_closed_loop_reaches(most: float) -> None:
    model, beside = Made(1000.0, most), Made(800.0, most)
    found = find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)
    assert 0.96 * most < found[MODEL] <= most
    assert found[BESIDE] == pytest.approx(0.8 * found[MODEL])


def test_one_spoilt_probe_does_not_lower_it() -> None:
    model, beside = Made(1000.0, 640.0, spoilt=1), Made(800.0, 800.0)
    assert find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)[MODEL] == 625.0


def test_what_is_never_answered_in_time_has_no_saturation() -> None:
    loads = both(Made(1000.0, 0.0), Made(800.0, 800.0))
    with pytest.raises(SwitchError, match=r"even 3% of what a closed loop reaches .* --within, or --rates"):
        find_saturation(loads, TIMING, 10.0, lambda text: None)


def test_a_model_that_does_not_answer_is_told_before_any_switch() -> None:
    model, beside = Made(1000.0, 640.0), Made(800.0, 800.0)
    beside.failed = {"done": 0, "failed": {"misversioned": 5}, "first_error": "INTERNAL: no"}
    with pytest.raises(SwitchError, match=r"beside: \{'misversioned': 5\} before any switch: INTERNAL: no"):
        find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)


@pytest.mark.parametrize("kind", ["misversioned", "bad reply"])
def test_a_wrong_answer_to_a_probe_is_told_and_not_taken_for_a_late_one(kind: str) -> None:
    model, beside = Made(1000.0, 640.0), Made(800.0, 800.0)
    beside.wrong = {"failed": {kind: 1}, "first_error": "version 3 answers as 2"}
    with pytest.raises(SwitchError, match=rf"beside: \{{'{kind}': 1\}} before any switch: version 3"):
        find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)


def test_a_refused_request_is_load_that_is_too_much() -> None:
    model, beside = Made(1000.0, 640.0), Made(800.0, 800.0)
    beside.wrong = {"failed": {"UNAVAILABLE": 1}}
    with pytest.raises(SwitchError, match="not answered within 10 ms"):
        find_saturation(both(model, beside), TIMING, 10.0, lambda text: None)


def test_rates_are_given_or_a_share_of_a_saturation_that_is_known_or_found() -> None:
    def rates(load: Load) -> Any:
        return rates_of(load, both(Made(1000.0, 640.0), Made(800.0, 800.0)), TIMING, lambda text: None)

    assert rates(Load(rates=(30.0, 20.0))) == ({MODEL: 0.0, BESIDE: 0.0}, {MODEL: 30.0, BESIDE: 20.0})
    assert rates(Load(share=0.5, saturation=(90.0, 80.0)))[1] == {MODEL: 45.0, BESIDE: 40.0}
    assert rates(Load(share=0.5)) == ({MODEL: 625.0, BESIDE: 500.0}, {MODEL: 312.5, BESIDE: 250.0})


def test_a_load_checks_every_reply_and_has_room_for_every_request() -> None:
    asked = Asked([Request({"x": np.zeros((1, 2), np.float32)}, 1)], "score", [[[0.5]], [[0.25]]])
    calls: list[dict[str, Any]] = []

    def start(address: Any, bodies: Any, **options: Any) -> None:
        calls.append({"bodies": bodies, **options})

    load = Load(connections=3, in_flight=5, seed=9)
    target = at_address("fastserve", "127.0.0.1:8500")
    for model in (MODEL, BESIDE):
        TargetLoad(target, model, asked, load, start).open(1000.0, 1.0, 60.0)
    TargetLoad(target, MODEL, asked, load, start).closed(2.0, 1.0)
    TargetLoad(target, MODEL, asked, load, start).probe(500.0, 2.0, 0.5)
    model, beside, closed, probe = calls
    assert model["check"].output == "score"
    assert model["check"].expected == asked.expected
    assert model["max_records"] >= 60_000
    assert model["seed"] != beside["seed"]
    assert model["bodies"] != beside["bodies"]
    assert (closed["in_flight"], closed["connections"], closed["duration_s"]) == (5, 3, 2.0)
    assert closed["check"] == model["check"]
    assert (probe["rate"], probe["duration_s"], probe["warmup_s"]) == (500.0, 2.0, 0.5)
    assert "max_records" not in probe
