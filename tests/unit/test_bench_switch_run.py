"""A switch run against a server, generators and a clock that are made up: what is published when, what is
noted, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastserve._native.load import Histogram, LoadResult
from fastserve.bench.child import ChildError
from fastserve.bench.switch_plan import BESIDE, MODEL, Timing
from fastserve.bench.switch_run import Clock, SwitchRun, seen
from fastserve.bench.switch_trace import RECORD, Recording, Switch

SECOND = 1_000_000_000
START = 50 * SECOND
PID = 77
TIMING = Timing(switches=2, lead_s=10.0, tail_s=5.0, gap_s=4.0, warmup_s=1.0, patience_s=20.0)


class World:
    """Time, a publisher, an admin socket and a child. A version that appears is loaded after 2 s, published
    after 3 s; the old one is gone after 4 s."""

    def __init__(self) -> None:
        self.now_ns = START
        self.appeared: dict[int, int] = {1: 0}
        self.restarted_ns = 2**62
        self.stuck = False
        self.at: Callable[[float], None] = lambda seconds: None

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_ns += int(seconds * SECOND)
        self.at((self.now_ns - START) / SECOND)

    def stolen_s(self) -> float:
        return (self.now_ns - START) / SECOND / 10

    def publish(self, version: int) -> int:
        self.appeared[version] = self.now_ns
        return self.now_ns

    def states(self, model: str) -> dict[int, str]:
        assert model == MODEL
        newest = max(self.appeared)
        age = (self.now_ns - self.appeared[newest]) / SECOND
        found = {newest: "loading" if age < 3 or self.stuck else "published"} if age >= 2 else {}
        if newest > 1 and (age < 4 or self.stuck):
            found[newest - 1] = "published" if age < 3 or self.stuck else "retiring"
        return found

    def core_pid(self) -> int:
        return PID + (self.now_ns >= self.restarted_ns)

    def check(self) -> None:
        return None

    def said(self) -> str:
        return "what the server said"


def result(records: bytes = b"", **changes: Any) -> LoadResult:
    usual = LoadResult(
        5, 5, {}, 0, [5], 1.0, 600.0, Histogram(), [], 0.1, 1, 1, Histogram(), 0, "", records, 0
    )
    return usual._replace(**changes)


class Running:
    """A generator that is at work until it is asked to end."""

    def __init__(self, given: LoadResult) -> None:
        self.given = given
        self.ended = self.finished = False

    def over(self) -> bool:
        return self.ended

    def finish(self) -> None:
        self.finished = True

    def wait(self) -> LoadResult:
        assert self.finished
        return self.given


class Loaded:
    """A TargetLoad that starts what it was given."""

    def __init__(self, given: LoadResult) -> None:
        self.running = Running(given)
        self.asked: tuple[float, float, float] | None = None

    def open(self, rate: float, warmup_s: float, most_s: float) -> Running:
        self.asked = (rate, warmup_s, most_s)
        return self.running


def measure(
    world: World, said: list[str] | None = None, timing: Timing = TIMING
) -> tuple[Recording, dict[str, Loaded]]:
    made = np.zeros(3, RECORD)
    loads = {name: Loaded(result(made.tobytes())) for name in (MODEL, BESIDE)}
    run = SwitchRun(
        timing,
        world,  # type: ignore[arg-type]
        world,  # type: ignore[arg-type]
        world,  # type: ignore[arg-type]
        (said if said is not None else []).append,
        Clock(lambda: world.now_ns, world.sleep, world.stolen_s),
    )
    rates, saturation = {MODEL: 300.0, BESIDE: 200.0}, {MODEL: 600.0, BESIDE: 400.0}
    return run.measure(loads, rates, saturation), loads  # type: ignore[arg-type]


def test_versions_appear_one_after_the_other_and_are_timed() -> None:
    world, said = World(), []  # type: ignore[var-annotated]
    recording, loads = measure(world, said)
    assert not recording.ended
    assert recording.core_restarts == 0
    assert list(world.appeared) == [1, 2, 3]
    first, second = recording.switches
    assert first.appeared_ns == START + 11 * SECOND  # warm-up and lead
    assert first.published_ns - first.appeared_ns == pytest.approx(3 * SECOND, abs=0.051 * SECOND)
    assert first.gone_ns - first.appeared_ns == pytest.approx(4 * SECOND, abs=0.051 * SECOND)
    assert first.until_ns == first.gone_ns + 5 * SECOND
    assert first.stages.keys() == {"loading", "published", "old retiring"}
    assert first.stages["loading"] - first.appeared_ns == pytest.approx(2 * SECOND, abs=0.051 * SECOND)
    assert second.appeared_ns - first.until_ns == pytest.approx(4 * SECOND, abs=0.01 * SECOND)
    assert world.now_ns - second.until_ns == pytest.approx(4 * SECOND, abs=0.01 * SECOND)
    assert [(trace.target, trace.rate, trace.saturation) for trace in recording.traces] == [
        (MODEL, 300.0, 600.0),
        (BESIDE, 200.0, 400.0),
    ]
    assert all(len(trace.records) == 3 for trace in recording.traces)
    assert all(load.asked == (load.asked[0], 1.0, TIMING.most_s) for load in loads.values() if load.asked)
    assert "switch 1 of 2: waiting for version 2" in said
    at_ns, stolen = zip(*recording.stolen, strict=True)
    assert sorted(at_ns) == list(at_ns)
    assert (at_ns[0], at_ns[-1]) == (START + SECOND // 4, world.now_ns)
    assert stolen[-1] == pytest.approx((world.now_ns - START) / SECOND / 10)


def test_there_is_as_much_steady_load_as_there_are_windows() -> None:
    world = World()
    recording, _ = measure(world, timing=replace(TIMING, gap_s=None))
    first, second = recording.switches
    assert second.appeared_ns - first.until_ns == pytest.approx(9 * SECOND, abs=0.06 * SECOND)
    assert world.now_ns - second.until_ns == pytest.approx(9 * SECOND, abs=0.06 * SECOND)
    assert replace(TIMING, gap_s=None).most_s > TIMING.most_s


def test_a_version_that_does_not_come_ends_the_run_with_what_there_is() -> None:
    world = World()

    def stick(after_s: float) -> None:
        world.stuck = len(world.appeared) == 3

    world.at = stick
    recording, loads = measure(world)
    assert "version 3 did not take the place of 2 within 20 s" in recording.ended
    assert "what the server said" in recording.ended
    assert [switch.version for switch in recording.switches] == [2]
    assert recording.unfinished is not None
    assert recording.unfinished.version == 3
    assert "loading" in recording.unfinished.stages
    assert all(load.running.finished for load in loads.values())


@pytest.mark.parametrize(
    ("after_s", "switches", "unfinished"), [(5.0, 0, False), (12.0, 0, True), (22.0, 1, False)]
)
def test_ctrl_c_keeps_what_there_is(after_s: float, switches: int, unfinished: bool) -> None:
    world = World()

    def interrupt(now_s: float) -> None:
        if now_s >= after_s:
            world.at = lambda seconds: None
            raise KeyboardInterrupt

    world.at = interrupt
    recording, loads = measure(world)
    assert recording.ended == "interrupted"
    assert len(recording.switches) == switches
    assert (recording.unfinished is not None) == unfinished
    assert len(recording.traces) == 2
    assert all(load.running.finished for load in loads.values())


def test_a_server_that_dies_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def die(now_s: float) -> None:
        if now_s >= 12.0:
            raise ChildError("ended with signal 11")

    world.at = die
    recording, _ = measure(world)
    assert recording.ended == "ended with signal 11"


def test_a_generator_that_ends_by_itself_ends_the_run() -> None:
    world = World()
    loads = {name: Loaded(result()) for name in (MODEL, BESIDE)}
    loads[BESIDE].running.ended = True
    run = SwitchRun(
        TIMING, world, world, world, print, Clock(lambda: world.now_ns, world.sleep, world.stolen_s)
    )  # type: ignore[arg-type]
    recording = run.measure(loads, {MODEL: 1.0, BESIDE: 1.0}, {MODEL: 0.0, BESIDE: 0.0})  # type: ignore[arg-type]
    assert recording.ended == "the load on beside ended by itself"


def test_a_core_that_was_started_again_is_noticed() -> None:
    world = World()
    world.restarted_ns = START + 20 * SECOND
    recording, _ = measure(world)
    assert not recording.ended
    assert recording.core_restarts == 1


def test_a_state_counts_from_when_it_is_first_seen() -> None:
    never = 2**62
    switch = Switch(5, 100, never, never, never)
    switch = seen(switch, {4: "published"}, 110)
    assert (switch.published_ns, switch.gone_ns, switch.stages) == (never, never, {})
    switch = seen(switch, {4: "published", 5: "published"}, 120)
    switch = seen(switch, {4: "retiring", 5: "published"}, 130)
    switch = seen(switch, {4: "retiring", 5: "published"}, 140)
    assert (switch.published_ns, switch.gone_ns) == (120, never)
    switch = seen(switch, {5: "published"}, 150)
    assert (switch.published_ns, switch.gone_ns) == (120, 150)
    assert switch.stages == {"published": 120, "old retiring": 130}
    # An old version that is gone before the new one is served is no switch.
    early = seen(Switch(5, 100, never, never, never), {5: "loading"}, 110)
    assert early.gone_ns == never
