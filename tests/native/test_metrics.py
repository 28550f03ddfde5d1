"""Histograms and readers of what a core counts: figures to 1 %, and memories that are not what they should
be."""

from __future__ import annotations

import math
import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastserve._native.metrics import Histogram, Metrics, Series
from fastserve.control.shared_memory import METRICS, SIZES, make_memory

# From a nanosecond to an hour, in microseconds.
TIMES = st.lists(st.floats(1e-3, 3.6e9), min_size=1, max_size=200)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=5)


def exact(values: list[float], q: float) -> float:
    rank = max(1, math.ceil(q * len(values) * (1 - 2**-50)))
    return sorted(values)[rank - 1]


@given(TIMES, SHARES)
def test_a_quantile_is_good_to_one_percent(values: list[float], qs: list[float]) -> None:
    histogram = Histogram.of(values)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    for q, found in zip(qs, histogram.quantiles(qs), strict=True):
        # Below 128 ns it is the half nanosecond that the clock has no word for.
        assert found == pytest.approx(exact(values, q), rel=0.01, abs=0.000501)
        assert histogram.quantile(q) == found


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200))
def test_whole_numbers_below_128_are_exact(values: list[int]) -> None:
    histogram = Histogram.of(values, 1.0)
    small = Counter(value for value in values if value < 128)
    assert {low: n for low, high, n in histogram.items() if high < 128} == small
    assert all(low == high for low, high, _ in histogram.items() if high < 128)
    for low, high, n in histogram.items():
        assert n == sum(low <= value <= high for value in values)


@given(TIMES, TIMES)
def test_histograms_add_up_and_subtract(one: list[float], more: list[float]) -> None:
    before, after = Histogram.of(one), Histogram.of([*one, *more])
    both = before.plus(Histogram.of(more))
    assert both.items() == after.items() and both.count == after.count
    assert both.sum == pytest.approx(after.sum)
    since = after.minus(before)
    assert since.items() == Histogram.of(more).items()
    assert since.sum == pytest.approx(sum(more), rel=1e-6, abs=1e-3 * before.sum)
    assert before.minus(after).count == 0 and before.minus(after).sum == 0.0


@given(TIMES)
def test_cumulative_counts_end_with_all(values: list[float]) -> None:
    bounds = [10.0**k for k in range(-4, 11)]
    found = Histogram.of(values).cumulative(bounds)
    assert found == sorted(found) and found[-1] == len(values) and found[0] == 0
    for bound, n in zip(bounds, found, strict=True):
        assert sum(value <= bound * 0.99 for value in values) <= n
        assert n <= sum(value <= bound * 1.01 + 0.001 for value in values)


def test_an_empty_histogram_has_zeros() -> None:
    empty = Histogram.of(())
    assert (empty.count, empty.sum, empty.quantiles((0.0, 0.5, 1.0))) == (0, 0.0, [0.0, 0.0, 0.0])
    assert empty.items() == [] and empty.cumulative((1.0, 2.0)) == [0, 0]
    one = Histogram.of([5.0])
    assert one.plus(empty) == one == empty.plus(one) == one.minus(empty)
    assert empty.minus(one) == empty != one


def test_what_is_no_quantile_and_no_value_is_refused() -> None:
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="quantile"):
            Histogram.of([1.0]).quantile(q)
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="0 or more"):
            Histogram.of([value])
    assert Histogram.of([math.inf]).quantile(0.5) == pytest.approx(2**42 / 1000, rel=0.01)


def test_series_add_up() -> None:
    one = Series(
        "m",
        1,
        "s",
        serial=7,
        closed=True,
        requests={("Predict", "grpc", "OK"): 2, ("Predict", "rest", "OK"): 1},
        latency={("Predict", "grpc"): Histogram.of([5.0, 6.0])},
        batch_rows=Histogram.of([2, 1], 1.0),
        expired=1,
        waiting_calls=1,
        waiting_rows=4,
    )
    other = Series(
        "m",
        2,
        "s",
        requests={("Predict", "grpc", "OK"): 3},
        latency={("Predict", "grpc"): Histogram.of([7.0]), ("Regress", "web"): Histogram.of([1.0])},
        queue=Histogram.of([3.0]),
        batch_rows=Histogram.of([8], 1.0),
        shed=2,
        waiting_rows=1,
    )
    both = one.plus(other)
    assert (both.model, both.version, both.signature, both.closed) == ("m", None, "s", False)
    assert both.requests == {("Predict", "grpc", "OK"): 5, ("Predict", "rest", "OK"): 1}
    assert both.latency["Predict", "grpc"] == Histogram.of([5.0, 6.0, 7.0])
    assert both.latency["Regress", "web"].count == 1 and both.queue.count == 1
    assert (both.rows, both.batches) == (11, 3)
    assert (both.expired, both.shed, both.cancelled, both.waiting_calls, both.waiting_rows) == (1, 2, 0, 1, 5)
    assert one.requests == {("Predict", "grpc", "OK"): 2, ("Predict", "rest", "OK"): 1}  # as it was


def test_a_memory_in_which_no_core_counts_yet_is_empty() -> None:
    fd = make_memory(METRICS, SIZES[METRICS])
    metrics = Metrics(fd)
    os.close(fd)
    snapshot = metrics.read()
    assert snapshot.series == [] and snapshot.unresolved == {}


def test_what_is_no_memory_of_a_core_is_refused() -> None:
    ends = os.pipe()
    open_ended = os.memfd_create("m")  # it could shrink under its reader
    os.ftruncate(open_ended, 64 << 20)
    small = make_memory(METRICS, 4096)
    for fd in (*ends, open_ended, small):
        with pytest.raises(ValueError, match="memfd"):
            Metrics(fd)
        os.close(fd)
    with pytest.raises(ValueError, match="memfd"):
        Metrics(-1)
    other = make_memory(METRICS, 64 << 20)
    os.pwrite(other, b"\xff" * 4096, 0)
    metrics = Metrics(other)
    with pytest.raises(ValueError, match="another version"):
        metrics.read()
    os.close(other)
