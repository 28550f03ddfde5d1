"""A run's order, what it tells the generator, and how it ends: with a generator that only pretends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench_windows import load_result

from fastserve.bench import measure
from fastserve.bench.measure import Bodies
from fastserve.bench.requests import Log, Request
from fastserve.bench.runner import Runner, Silent
from fastserve.bench.target import Target
from fastserve.bench.workload import Closed, Load, Open, Replay, Slo
from fastserve.errors import FastServeError

BODIES = Bodies(
    {"grpc": [b"a", b"bb"], "http": [b"{}", b"{ }"]},
    rows=[1, 3],
    paths={"grpc": "/p", "http": "/v1/models/m:predict"},
)


def target(name: str, protocol: Any = "grpc") -> Target:
    return Target(name, "address", protocol, ("127.0.0.1", len(name)), "127.0.0.1:1")


class Pretender:
    """A generator: servers, by the port that stands for their name, answer until a rate; calls are kept."""

    def __init__(self, capacity: dict[str, float]) -> None:
        self.capacity = {len(name): value for name, value in capacity.items()}
        self.calls: list[tuple[int, dict[str, Any]]] = []
        self.stop_after = -1

    def __call__(self, address: tuple[str, int], bodies: list[bytes], **how: Any) -> Any:
        self.calls.append((address[1], how))
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        if how["on_progress"] is not None:
            how["on_progress"]({"measuring": True})
        capacity = self.capacity[address[1]]
        rate = min(how.get("rate", capacity), capacity)
        bad = how.get("rate", 0.0) > capacity
        values = np.full(200, 500e6 if bad else 1e6)
        return load_result(values, how.get("duration_s", 1.0), rate, per_body_done=[100, 100])


@pytest.fixture(autouse=True)
def _no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "busy_fraction", lambda seconds: 0.25)


def runner(generate: Pretender, targets: list[Target], load: Load, **more: Any) -> Runner:
    return Runner(targets, BODIES, load, generate, Silent(), check=lambda: None, **more)


def test_targets_take_turns_and_rounds_turn_the_order() -> None:
    generate = Pretender({"a": 100.0, "bb": 50.0, "ccc": 10.0})
    load = Load(closed=(Closed(connections=1), Closed(connections=2, in_flight=3)), rounds=3)
    found = runner(generate, [target("a"), target("bb"), target("ccc")], load).run()
    order = [port for port, _ in generate.calls]
    assert order == [1, 2, 3, 1, 2, 3, 2, 3, 1, 2, 3, 1, 3, 1, 2, 3, 1, 2]
    assert len(found.windows) == 18 and found.ended == ""
    window = found.windows[0]
    assert (window.target, window.point, window.round, window.rate) == ("a", "closed 1 x 1", 0, 100.0)
    assert window.rows_rate == pytest.approx(200.0)
    assert window.busy_before == 0.25 and window.cpu_s is None
    assert {how["in_flight"] for _, how in generate.calls} == {1, 3}


def test_fractions_are_of_the_highest_rate_and_arrivals_are_the_same_for_all() -> None:
    generate = Pretender({"a": 100.0, "bb": 50.0})
    load = Load(closed=(Closed(),), open=Open(fractions=(0.5,), of="each"), rounds=2)
    runner(generate, [target("a"), target("bb")], load, seed=7).run()
    opened = [(port, how["rate"], how["seed"]) for port, how in generate.calls if "rate" in how]
    assert opened == [(1, 50.0, 7000), (2, 25.0, 7000), (2, 25.0, 7001), (1, 50.0, 7001)]
    generate = Pretender({"a": 100.0, "bb": 50.0})
    load = Load(closed=(Closed(),), open=Open(fractions=(0.5,)), rounds=1)
    runner(generate, [target("a"), target("bb")], load).run()
    assert [how["rate"] for _, how in generate.calls if "rate" in how] == [25.0, 25.0]


def test_rest_has_as_many_connections_as_requests_in_flight() -> None:
    generate = Pretender({"a": 100.0})
    load = Load(closed=(Closed(connections=4, in_flight=8),), open=Open(rates=(10.0,)), rounds=1)
    runner(generate, [target("a", "http")], load).run()
    closed, opened = (how for _, how in generate.calls)
    assert (closed["connections"], closed["in_flight"], closed["protocol"]) == (32, 1, "http")
    assert closed["path"] == "/v1/models/m:predict"
    assert closed["http_headers"] == {"Content-Type": "application/json"}
    assert opened["connections"] == 64


def test_an_objective_is_searched_for_each_target_and_then_measured_in_turn() -> None:
    generate = Pretender({"a": 1000.0, "bb": 300.0})
    load = Load(slo=Slo(p99_ms=10), rounds=2, window_s=1.0)
    found = runner(generate, [target("a"), target("bb")], load).run()
    assert {one.target: one.limit for one in found.found} == {"a": "", "bb": ""}
    for one, capacity in zip(found.found, (1000.0, 300.0), strict=True):
        assert 0.95 * capacity < one.rate <= capacity < one.refused < 1.05 * capacity
        assert one.bound_ms == 10 and one.objective == "p99"
    assert [window.target for window in found.windows] == ["a", "bb", "bb", "a"]
    assert found.windows[0].offered == found.found[0].rate


def test_a_log_is_replayed_with_its_timing() -> None:
    requests = [Request({"x": np.ones(1)}, 1)] * 3
    log = Log(requests, np.array([0, 500, 2_000_000], np.int64))
    generate = Pretender({"a": 1.0})
    load, replay = Load(rounds=1, warmup_s=0.5), Replay(file="log", connections=3)
    found = runner(generate, [target("a")], load, replay=replay, log=log, log_bodies=BODIES).run()
    warm, replayed = (how for _, how in generate.calls)
    assert warm["duration_s"] == 0.5 and "times_us" not in warm
    assert replayed["times_us"].tolist() == [0, 500, 2_000_000] and replayed["connections"] == 3
    assert [window.point for window in found.windows] == ["replay at 1x"]


def test_what_was_measured_until_an_interrupt_is_kept() -> None:
    generate = Pretender({"a": 100.0, "bb": 50.0})
    generate.stop_after = 4
    found = runner(generate, [target("a"), target("bb")], Load(closed=(Closed(),), rounds=5)).run()
    assert len(found.windows) == 3 and found.ended == "interrupted"


def test_a_target_that_dies_ends_the_run_with_its_words() -> None:
    generate = Pretender({"a": 100.0})
    run = runner(generate, [target("a")], Load(closed=(Closed(),), rounds=5))
    checks = iter([None, FastServeError("a: ended with signal 9")])

    def check() -> None:
        error = next(checks)
        if error is not None:
            raise error

    run.check = check
    found = run.run()
    assert len(found.windows) == 1 and found.ended == "a: ended with signal 9"
