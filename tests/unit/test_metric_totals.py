"""Sums over versions that have closed and cores that have died never go down."""

from __future__ import annotations

import os

import pytest

from fastserve._native.metrics import Histogram, MetricsSnapshot, Series
from fastserve.control import metric_totals
from fastserve.control.metric_totals import MetricTotals
from fastserve.control.shared_memory import SharedMemory

OK = ("Predict", "grpc", "OK")
LOST = ("Predict", "grpc", "NOT_FOUND")


class FakeMetrics:
    """A reader of a memory that a test writes by hand: by inode, what is there now."""

    now: dict[int, MetricsSnapshot]

    def __init__(self, fd: int) -> None:
        self.inode = os.fstat(fd).st_ino

    def read(self) -> MetricsSnapshot:
        return self.now.get(self.inode, MetricsSnapshot())


class World:
    def __init__(self) -> None:
        self.shared = SharedMemory({"metrics": 4096})
        self.totals = MetricTotals(self.shared)
        FakeMetrics.now = {}

    def core(self) -> None:
        self.shared.renew()

    def counted(self, *series: Series, lost: int = 0) -> None:
        fd = self.shared.current("metrics")
        assert fd is not None
        FakeMetrics.now[os.fstat(fd).st_ino] = MetricsSnapshot({LOST: lost} if lost else {}, series)

    def look(self) -> MetricsSnapshot:
        self.totals.follow()
        return self.totals.look()

    def read(self) -> dict[tuple[int | None, str], int]:
        """Requests by version and signature."""
        found = self.look().series
        assert len({(one.version, one.signature) for one in found}) == len(found)
        assert all(one.model == "m" for one in found)
        return {(one.version, one.signature): one.requests.get(OK, 0) for one in found}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(metric_totals, "Metrics", FakeMetrics)
    return World()


def series(serial: int, version: int, n: int, signature: str = "s", closed: bool = False) -> Series:
    return Series(
        "m",
        version,
        signature,
        serial=serial,
        closed=closed,
        requests={OK: n},
        queue=Histogram.of([1.0] * n),
        waiting_calls=1,
        waiting_rows=2,
    )


def test_before_there_is_a_core_there_is_nothing(world: World) -> None:
    assert world.read() == {}
    world.core()
    assert world.read() == {}


def test_open_versions_stand_for_themselves(world: World) -> None:
    world.core()
    world.counted(series(1, 1, 10), series(2, 1, 20, "t"), series(3, 2, 30))
    assert world.read() == {(1, "s"): 10, (1, "t"): 20, (2, "s"): 30}


def test_a_version_that_closes_goes_on_in_the_sum(world: World) -> None:
    world.core()
    world.counted(series(1, 1, 10), series(2, 2, 5))
    assert world.read() == {(1, "s"): 10, (2, "s"): 5}
    world.counted(series(1, 1, 12, closed=True), series(2, 2, 6))
    assert world.read() == {(None, "s"): 12, (2, "s"): 6}
    world.counted(series(1, 1, 13, closed=True), series(2, 2, 7))  # an answer that came home late
    assert world.read() == {(None, "s"): 13, (2, "s"): 7}
    world.counted(series(2, 2, 8))  # its block was given back
    assert world.read() == world.read() == {(None, "s"): 13, (2, "s"): 8}
    world.counted()  # closed and given back between two looks
    assert world.read() == {(None, "s"): 21}
    ended = world.look().series[0]
    assert ended.queue.count == 21 and (ended.waiting_calls, ended.waiting_rows) == (0, 0)


def test_the_same_version_twice_is_one(world: World) -> None:
    world.core()
    world.counted(series(1, 1, 10), series(2, 1, 1))
    assert world.read() == {(1, "s"): 11}
    assert world.look().series[0].waiting_calls == 2
    world.counted(series(1, 1, 10, closed=True), series(2, 1, 4))
    assert world.read() == {(None, "s"): 10, (1, "s"): 4}


def test_a_core_that_dies_leaves_what_it_has_counted(world: World) -> None:
    world.core()
    world.counted(series(1, 1, 10), series(2, 2, 3, closed=True), lost=2)
    assert world.read() == {(1, "s"): 10, (None, "s"): 3}
    world.counted(series(1, 1, 15), series(2, 2, 3, closed=True), lost=3)  # and died
    world.core()
    assert world.read() == {(None, "s"): 18}
    world.counted(series(1, 1, 4), lost=1)  # the same serial number, of another core
    assert world.read() == {(None, "s"): 18, (1, "s"): 4}
    assert world.look().unresolved == {LOST: 4}
    world.shared.close()


def test_what_cannot_be_read_is_added_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a core whose end cannot be read nor one that cannot be opened counts the one before twice."""
    world.core()
    world.counted(series(1, 1, 10))
    assert world.read() == {(1, "s"): 10}

    def refuse(*_: object) -> None:
        raise ValueError("another layout")

    with monkeypatch.context() as broken:
        broken.setattr(FakeMetrics, "read", refuse)
        broken.setattr(FakeMetrics, "__init__", refuse)
        world.core()
        for _ in range(3):
            with pytest.raises(ValueError, match="another layout"):
                world.look()
    world.counted(series(1, 2, 5))
    assert world.read() == {(2, "s"): 5, (None, "s"): 10}


def test_sums_of_models_that_are_no_more_are_forgotten(world: World) -> None:
    world.core()
    world.counted(series(1, 1, 10))
    world.read()
    world.counted(series(2, 2, 1))
    assert world.read() == {(2, "s"): 1, (None, "s"): 10}
    world.totals.keep(["other", "m"])
    assert world.read() == {(2, "s"): 1, (None, "s"): 10}
    world.totals.keep(["other"])
    assert world.read() == {(2, "s"): 1}
