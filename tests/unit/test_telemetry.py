"""Telemetry: what is shown second by second, from counters and a manager that are made up."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.fake_metrics import FakeHistogram, FakeSeries, FakeSnapshot, busy

from fastserve.control.telemetry import LINGER_S, POINTS, WINDOW_S, Telemetry
from fastserve.control.telemetry_events import KEPT, Chronicle
from fastserve.control.telemetry_window import batch_sizes, quantiles, window
from fastserve.log import Log


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def version(number: int, state: str = "AVAILABLE", **more: Any) -> dict[str, Any]:
    return {
        "version": number,
        "state": state,
        "stage": "",
        "done": None,
        "total": None,
        "signature": "",
        "bucket": None,
        "attempts": 1,
        "retry_in_s": None,
        "error": "",
        "seconds": None,
        "memory_bytes": 10,
        **more,
    }


class FakeModels:
    def __init__(self) -> None:
        self.rows = [self.row("m", version(1))]
        self.missing: dict[str, str] = {}

    @staticmethod
    def row(name: str, *versions: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "labels": {},
            "problem": "",
            "rollout": None,
            "versions": list(versions),
            **more,
        }

    def status(self) -> list[dict[str, Any]]:
        return self.rows


class FakeCoreProcess:
    restarts = 0
    pid: int | None = 77
    up = True


class FakeMemory:
    limit_bytes = 1000

    def core_bytes(self) -> int:
        return 500


class Bench:
    """A telemetry whose seconds a test counts."""

    def __init__(self, log: Log) -> None:
        self.clock = Clock()
        self.models = FakeModels()
        self.core = FakeCoreProcess()
        self.snapshot = FakeSnapshot()
        self.failure: Exception | None = None
        self.gateway: dict[str, Any] | None = None
        self.logs: list[dict[str, Any]] = []
        self.chronicle = Chronicle(clock=self.clock, wall_clock=self.clock)
        self.telemetry = Telemetry(
            self.models,
            self.core,
            FakeMemory(),
            self.chronicle,
            log,
            counters=self,
            logs=self.log_rows,
            gateway=lambda: self.gateway,
            library="2.20.0",
            clock=self.clock,
            wall_clock=self.clock,
        )
        self.telemetry.phase = "serving"

    def follow(self) -> None:
        """There is but one core."""

    def keep(self, models: Collection[str]) -> None:
        self.kept = set(models)

    def look(self) -> FakeSnapshot:
        if self.failure is not None:
            raise self.failure
        return self.snapshot

    async def log_rows(self) -> list[dict[str, Any]]:
        return self.logs

    async def second(self, *series: FakeSeries, **unresolved: int) -> None:
        self.clock.now += 1
        self.snapshot = FakeSnapshot(
            list(series), {("Predict", "grpc", code): count for code, count in unresolved.items()}
        )
        await self.telemetry.look()

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.telemetry.status()))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    log = Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), json_lines=True)
    made = Bench(log)
    yield made
    made.telemetry.close()
    log.flush()


# ---- windows -----------------------------------------------------------------------------------


def test_a_window_counts_what_is_new() -> None:
    before = busy(times_us=(100.0, 100.0, 100.0, 50.0))
    after = busy(times_us=(100.0, 100.0, 100.0, 500.0, 500.0, 900.0, 50.0))
    there = window(FakeSnapshot([after]), FakeSnapshot([before]), 2.0)
    traffic = there.models["m"]
    assert (traffic.requests, traffic.errors, traffic.rows) == (3, 0, 3)
    assert traffic.per_s(traffic.requests) == 1.5
    assert quantiles(traffic.latency, (0.5, 1.0)) == [500.0, 900.0]
    assert there.total.requests == 3 and there.versions["m", 1].requests == 3


def test_a_window_adds_up_signatures_versions_and_models() -> None:
    new = [
        busy("a", 1, "s", times_us=(1.0, 2.0)),
        busy("a", 1, "t", times_us=(3.0, 4.0)),
        busy("a", 2, "s", times_us=(5.0, 6.0)),
        busy("b", 1, "s", times_us=(7.0, 8.0)),
    ]
    there = window(FakeSnapshot(new, {("Predict", "grpc", "NOT_FOUND"): 5}), None, 1.0)
    assert there.versions["a", 1].requests == 4 and there.versions["a", 2].requests == 2
    assert there.models["a"].requests == 6 and there.models["b"].requests == 2
    assert there.total.requests == 8 + 5 and there.total.errors == 4 + 5
    assert there.total.latency.values == [1, 2, 3, 4, 5, 6, 7, 8]
    assert there.models["a"].waiting_rows == 21
    assert there.models["a"].by_transport == {"grpc": 3, "rest": 3}


def test_counters_that_went_down_are_of_another_core() -> None:
    old = FakeSnapshot([busy(times_us=(1.0,) * 50)], {("Predict", "grpc", "NOT_FOUND"): 90})
    new = FakeSnapshot([busy(times_us=(2.0, 2.0))], {("Predict", "grpc", "NOT_FOUND"): 1})
    there = window(new, old, 1.0)
    assert there.models["m"].requests == 2 and there.models["m"].latency.values == [2, 2]
    assert there.total.requests == 3


def test_closed_versions_are_no_traffic() -> None:
    """What a version has counted moves to those that have closed, and was there before."""
    ended = busy(version=None)
    ended.waiting_rows = 0
    there = window(FakeSnapshot([ended]), FakeSnapshot([busy()]), 1.0)
    assert there.total.requests == 0 and there.total.latency is None
    assert there.models["m"].requests == 0 and there.versions == {}
    assert window(FakeSnapshot([ended]), FakeSnapshot([ended]), 1.0).total.requests == 0


def test_a_switch_loses_nothing_of_the_window() -> None:
    """The version that has closed answered a part of it, and is not there any more to say so."""
    old = busy(version=1, times_us=(100.0,) * 10)
    more = busy(version=1, times_us=(100.0,) * 6 + (900.0,) * 4, failed=0)
    new = busy(version=2, times_us=(300.0,) * 5, failed=0)
    before = FakeSnapshot([busy(version=None), old])
    after = FakeSnapshot([busy(version=None).plus(old).plus(more), new])
    there = window(after, before, 5.0)
    assert there.total.requests == there.models["m"].requests == 15 and there.total.errors == 0
    assert there.models["m"].latency.values == [100] * 6 + [300] * 5 + [900] * 4
    assert there.versions["m", 2].requests == 5
    # The same version, loaded anew: its first series has closed, the second is as young as its counters say.
    renewed = window(
        FakeSnapshot([old.plus(more), busy(version=1, times_us=(300.0,) * 5)]), FakeSnapshot([old]), 5.0
    )
    assert renewed.models["m"].requests == 15


def test_an_idle_series_has_no_percentiles() -> None:
    there = window(FakeSnapshot([busy()]), FakeSnapshot([busy()]), 1.0)
    assert there.models["m"].latency is None and quantiles(None) == [None] * 4


def test_batch_sizes_are_by_powers_of_two() -> None:
    assert batch_sizes(FakeHistogram(1, 2, 2, 3, 8), 2.0) == [[1, 0.5], [2, 1.0], [4, 0.5], [8, 0.5]]
    assert batch_sizes(None, 1.0) == []


# ---- status and history --------------------------------------------------------------------------


async def test_the_status_has_everything_that_is_shown(bench: Bench) -> None:
    bench.models.rows = [
        bench.models.row(
            "m",
            version(1),
            version(2, "LOADING", stage="compile", bucket=8, done=2, total=5, seconds=3.0),
            labels={"stable": 1},
            rollout={"mode": "canary", "new": 2, "stable": 1, "share": 0.1, "text": "words", "figures": None},
        )
    ]
    bench.gateway = {"pids": [5, 6], "restarts": 1, "up": True}
    await bench.second()
    for _ in range(5):
        await bench.second(busy(times_us=(100.0,) * 98 + (7000.0, 9000.0)))
    status = bench.status()
    assert status["time_s"] == bench.clock.now and status["ready"] is True and status["uptime_s"] == 6.0
    assert status["core"] == {
        "pid": 77,
        "restarts": 0,
        "rss_bytes": 500,
        "memory_limit_bytes": 1000,
        "up": True,
    }
    assert status["gateway"] == {"pids": [5, 6], "restarts": 1, "up": True}
    (model,) = status["models"]
    assert model["name"] == "m" and model["labels"] == {"stable": 1}
    assert model["rollout"] == {
        "kind": "canary",
        "new": 2,
        "stable": 1,
        "share": 0.1,
        "text": "words",
        "figures": None,
    }
    one, two = model["versions"]
    assert (one["state"], one["stage"], one["progress"]) == ("AVAILABLE", "", None)
    assert (two["state"], two["stage"], two["progress"]) == ("LOADING", "compile", 0.4)
    assert (two["bucket"], two["done"], two["total"], two["attempts"]) == (8, 2, 5, 1)
    assert two["since_s"] == bench.clock.now - 3
    traffic = model["traffic"]
    assert traffic["requests_per_s"] == 20.0 and traffic["errors_per_s"] == 0.2
    assert [traffic[f"p{p}_us"] for p in (50, 90, 99, 999)] == [100.0, 100.0, 7000.0, 9000.0]
    assert traffic["queue_p99_us"] == 700.0 and traffic["compute_p50_us"] == 60.0
    assert traffic["mean_batch_rows"] == 2.0 and traffic["padding_share"] == pytest.approx(1 / 3, abs=1e-3)
    assert traffic["batch_rows"] == [[1, 0.0], [2, 10.0]]
    assert traffic["by_version"] == {"1": {"requests_per_s": 20.0, "p99_us": 7000.0}}
    assert traffic["by_transport"] == {"grpc": 19.8, "rest": 0.2}
    assert traffic["waiting_rows"] == 7
    total = status["total"]
    assert total["requests_per_s"] == 20.0 and total["p99_us"] == 7000.0
    assert (total["expired_per_s"], total["cancelled_per_s"], total["shed_per_s"]) == (0.6, 0.4, 0.2)
    assert (traffic["expired_per_s"], traffic["cancelled_per_s"], traffic["shed_per_s"]) == (0.6, 0.4, 0.2)
    assert total["queue_p99_us"] == traffic["queue_p99_us"] and total["waiting_rows"] == 7
    assert total["p999_us"] == traffic["p999_us"]


async def test_an_idle_daemon_has_nulls_for_percentiles_and_zeros_for_rates(bench: Bench) -> None:
    for _ in range(2):
        await bench.second(FakeSeries())
    (model,) = bench.status()["models"]
    traffic = model["traffic"]
    assert (
        traffic["p50_us"] is None and traffic["queue_p99_us"] is None and traffic["mean_batch_rows"] is None
    )
    assert traffic["requests_per_s"] == 0.0 and traffic["batch_rows"] == [] and traffic["by_version"] == {}


async def test_before_anything_was_read_there_is_a_status(bench: Bench) -> None:
    assert bench.status()["total"]["requests_per_s"] == 0.0
    assert json.loads(bench.telemetry.history()) == {"step_s": 1, "points": []}


async def test_what_was_more_than_the_window_ago_is_forgotten(bench: Bench) -> None:
    await bench.second()
    for _ in range(WINDOW_S):
        await bench.second(busy())
    assert bench.status()["total"]["requests_per_s"] > 0
    await bench.second(busy())
    assert bench.status()["total"]["requests_per_s"] == 0.0
    assert bench.status()["total"]["p99_us"] is None


async def test_the_status_is_made_once_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.second(busy())
    assert bench.telemetry.status() is bench.telemetry.status()
    before = bench.telemetry.status()
    await bench.second(busy())
    assert bench.telemetry.status() is not before
    bench.telemetry.phase = "draining"
    assert bench.status()["ready"] is False


async def test_the_history_is_of_ten_minutes_each_second_for_itself(bench: Bench) -> None:
    await bench.second()
    await bench.second(busy(times_us=(100.0, 300.0)))
    await bench.second(busy(times_us=(100.0, 300.0)))
    points = json.loads(bench.telemetry.history())["points"]
    assert [point["requests_per_s"] for point in points] == [0.0, 2.0, 0.0]
    assert points[1] == {
        "time_s": 1002.0,
        "requests_per_s": 2.0,
        "p50_us": 100.0,
        "p99_us": 300.0,
        "p999_us": 300.0,
        "rows_per_s": 2.0,
        "errors_per_s": 1.0,
        "expired_per_s": 3.0,
        "shed_per_s": 1.0,
        "cancelled_per_s": 2.0,
        "waiting_rows": 7,
    }
    assert points[2]["p50_us"] is None
    for _ in range(POINTS):
        await bench.second()
    assert len(json.loads(bench.telemetry.history())["points"]) == POINTS


async def test_counters_that_cannot_be_read_are_told_of_once(bench: Bench, tmp_path: Path) -> None:
    bench.failure = ValueError("of another layout")
    for _ in range(3):
        await bench.second()
    assert bench.status()["total"]["requests_per_s"] == 0.0
    # Everything else goes on being told.
    bench.telemetry._chronicle.process("core", "process 7 died: SIGKILL")
    await bench.second()
    assert bench.status()["events"][-1]["text"] == "process 7 died: SIGKILL"
    bench.failure = None
    await bench.second(busy())
    # What had been counted meanwhile is no burst.
    assert json.loads(bench.telemetry.history())["points"][-1]["requests_per_s"] == 0.0
    bench.failure = ValueError("of another layout")
    await bench.second()
    bench.failure = None
    await bench.second(busy())
    assert bench.status()["total"]["requests_per_s"] == 0.0
    bench.telemetry._log.flush()
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["event"] for event in events] == ["the core's counters cannot be read"] * 2


async def test_it_looks_once_a_second_and_does_not_catch_up(bench: Bench) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        bench.clock.now += seconds + (2.5 if len(slept) == 2 else 0.0)
        if len(slept) == 5:
            raise asyncio.CancelledError
        await asyncio.sleep(0)

    bench.telemetry._sleep = sleep
    with pytest.raises(asyncio.CancelledError):
        await bench.telemetry.run()
    assert slept == [1.0, 1.0, 0.0, 1.0, 1.0]


# ---- health ------------------------------------------------------------------------------------


def test_health_is_the_daemon_and_its_core(bench: Bench) -> None:
    assert bench.telemetry.health().ok
    bench.core.up = False
    assert not bench.telemetry.health().ok and "core" in bench.telemetry.health().why
    bench.telemetry.phase = "starting"
    assert bench.telemetry.health().ok


def test_ready_means_that_every_model_has_a_version(bench: Bench) -> None:
    assert bench.telemetry.readiness().ok
    bench.models.missing = {"m": "it does not fit"}
    readiness = bench.telemetry.readiness()
    assert not readiness.ok and readiness.models == {"m": "it does not fit"} and readiness.why == ""


@pytest.mark.parametrize("phase", ["starting", "draining"])
def test_who_starts_or_drains_is_not_ready(bench: Bench, phase: str) -> None:
    bench.telemetry.phase = phase
    assert bench.telemetry.readiness().why == f"it is {phase}"
    assert not bench.telemetry.readiness().ok


def test_who_has_lost_its_core_is_not_ready(bench: Bench) -> None:
    bench.core.up = False
    assert not bench.telemetry.readiness().ok


# ---- figures for a scrape ------------------------------------------------------------------------


async def test_a_closed_version_is_shown_a_while_longer(bench: Bench) -> None:
    await bench.second(busy(version=1), busy(version=2))
    await bench.second(busy(version=2))
    figures = await bench.telemetry.figures()
    assert sorted(series.version for series in figures.live) == [1, 2]
    bench.clock.now += LINGER_S
    await bench.second(busy(version=2))
    assert [series.version for series in (await bench.telemetry.figures()).live] == [2]


async def test_a_version_that_comes_back_is_there_once(bench: Bench) -> None:
    await bench.second(busy())
    await bench.second()
    await bench.second(busy(times_us=(1.0,)))
    (series,) = (await bench.telemetry.figures()).live
    assert series.rows == 1


async def test_the_figures_are_of_now(bench: Bench) -> None:
    await bench.second()
    ended = FakeSeries("m", None, rows=5)
    bench.snapshot = FakeSnapshot([busy(), ended], {("Predict", "grpc", "NOT_FOUND"): 1})
    bench.models.rows = [bench.models.row("m", version(1), version(0, "END"))]
    bench.logs = [{"model": "m", "records": 9}]
    chronicle = bench.chronicle
    chronicle.load_begins("m", 1, 1)
    report = {
        "signatures": [{"name": "s", "compile_s": {"8": 0.25}, "warm_s": {"8": 0.01}}],
        "seconds": {"warmup": 0.5},
    }
    chronicle.trial_passed("m", 1, "/m/1", report)
    chronicle.opened("m", 1, "/m/1", 0.7)
    chronicle.available("m", 1, "/m/1", 2.0, renewed=False)
    figures = await bench.telemetry.figures()
    assert [s.rows for s in figures.live] == [4] and [s.rows for s in figures.all] == [4, 5]
    (one,) = figures.versions
    assert (one.open_s, one.compile_s, one.warmup_s) == (0.7, {("s", "8"): 0.25}, {("s", "8"): 0.01})
    (model,) = figures.models
    assert model.loads == {"success": 1, "failure": 0} and model.log == {"model": "m", "records": 9}
    assert model.load_s is not None and model.load_s.sum == 2.0
    (path,) = figures.paths
    assert (path.path, path.succeeded, path.load_s) == ("/m/1", 1, 2.0)
    assert path.warmup_s is not None and (path.warmup_s.count, path.warmup_s.sum) == (1, 0.5)
    assert figures.core.up and figures.gateway is None and figures.library == "2.20.0" and figures.ready


# ---- what has happened ---------------------------------------------------------------------------


def test_a_switch_lasts_from_the_new_versions_publication_to_the_old_ones_close(bench: Bench) -> None:
    chronicle, clock = bench.chronicle, bench.clock
    chronicle.load_begins("m", 1, 1)
    chronicle.published("m", 1, replacement=False)
    chronicle.available("m", 1, "/m/1", 1.0, renewed=False)
    chronicle.published("m", 2, replacement=False)
    clock.now += 0.25
    chronicle.unload_begins("m", 1)
    clock.now += 0.25
    chronicle.ended("m", 1, "", 0.25)
    durations = chronicle.model("m").switch_s.durations()
    assert (durations.count, durations.sum) == (1, 0.5)
    assert dict(zip(durations.bounds, durations.counts, strict=True))[0.25] == 0
    assert dict(zip(durations.bounds, durations.counts, strict=True))[0.5] == 1
    assert chronicle.events()[-1].told() == {
        "time_s": 1000.5,
        "kind": "end",
        "model": "m",
        "version": 1,
        "text": "0.5 s after a newer version was published",
        "seconds": 0.25,
    }


def test_an_unload_that_follows_no_newer_version_is_no_switch(bench: Bench) -> None:
    chronicle = bench.chronicle
    chronicle.published("m", 1, replacement=False)
    chronicle.ended("m", 1, "", 0.1)
    chronicle.published("m", 2, replacement=False)
    chronicle.published("m", 3, replacement=False)
    chronicle.ended("m", 3, "rolled back", 0.1)
    assert chronicle.model("m").switch_s.durations().count == 0


def test_failures_are_counted_and_told(bench: Bench) -> None:
    bench.chronicle.load_failed("m", 1, "/m/1", "it crashed", 1.5, 2)
    story = bench.chronicle.model("m")
    assert (story.failed, story.succeeded) == (1, 0) and story.paths["/m/1"].failed == 1
    event = bench.chronicle.events()[-1]
    assert (event.kind, event.text, event.seconds) == ("failed", "it crashed", 1.5)


def test_the_newest_events_are_kept(bench: Bench) -> None:
    for number in range(KEPT + 5):
        bench.chronicle.process("core", f"number {number}")
    texts = [event.text for event in bench.chronicle.events()]
    assert texts[0] == "number 5" and texts[-1] == f"number {KEPT + 4}" and len(texts) == KEPT


def test_every_kind_of_event(bench: Bench) -> None:
    chronicle = bench.chronicle
    chronicle.load_begins("m", 1, 1)
    chronicle.load_begins("m", 1, 2)
    chronicle.available("m", 1, "/m/1", 1.0, renewed=True)
    chronicle.rollout("m", 2, "canary: version 2 beside 1", None)
    chronicle.labels("m", {"stable": 1})
    chronicle.labels("m", {})
    chronicle.reloaded([])
    chronicle.reloaded(["m: added"])
    chronicle.process("gateway", "process 7 is back", 0.5)
    assert [(event.kind, event.text) for event in chronicle.events()] == [
        ("load", ""),
        ("load", "attempt 2"),
        ("available", "loaded anew"),
        ("rollout", "canary: version 2 beside 1"),
        ("label", "stable = 1"),
        ("label", "none"),
        ("reload", "nothing has changed"),
        ("reload", "m: added"),
        ("gateway", "process 7 is back"),
    ]


def test_what_is_no_more_is_forgotten(bench: Bench) -> None:
    chronicle = bench.chronicle
    for number in range(40):
        chronicle.load_failed("m", number, f"/m/{number}", "no", 1.0, 0)
        chronicle.load_failed("gone", number, f"/gone/{number}", "no", 1.0, 0)
    chronicle.keep({"m": [38, 39]})
    story = chronicle.model("m")
    assert list(story.versions) == [38, 39] and story.failed == 40
    assert list(story.paths) == [f"/m/{number}" for number in range(20, 40)]
    assert chronicle.model("gone").failed == 0
