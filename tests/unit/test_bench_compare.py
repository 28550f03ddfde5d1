"""Statistics: a planted change is found, noise is not taken for one, and results survive their file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench_windows import CLOSED, OPEN, result_of, run_of, window
from msgspec.structs import replace

from fastserve._native.load import Histogram
from fastserve.bench.bootstrap import mean, normal_quantile, ratio, statistic, student_quantile
from fastserve.bench.compare import (
    BETTER,
    SAME,
    UNKNOWN,
    WORSE,
    compare_results,
    compare_targets,
    regressions,
)
from fastserve.bench.result import (
    ResultError,
    Window,
    latencies,
    merged,
    pack_pairs,
    read_result,
    unpack_pairs,
    write_result,
)

NOISE = 0.02


def rounds(
    count: int, rate: float, seed: int, target: str = "ours", mean_ms: float = 2.0, requests: int = 400
) -> list[Window]:
    """Rounds whose rates and latencies differ by `noise`, as a machine's mood makes them."""
    rng = np.random.default_rng(seed)
    return [
        window(
            target,
            round=i,
            rate=rate * float(np.exp(rng.normal(0, NOISE))),
            mean_ms=mean_ms * float(np.exp(rng.normal(0, NOISE))),
            seed=seed,
            requests=requests,
        )
        for i in range(count)
    ]


def test_the_quantiles_are_the_tables() -> None:
    assert normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-5)
    for freedom, value in ((1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (100, 1.98397)):
        assert student_quantile(0.975, freedom) == pytest.approx(value, rel=1e-4)


def test_a_planted_change_of_a_tenth_is_found() -> None:
    before = result_of(run_of(rounds(5, 1000, seed=1, requests=20_000)))
    after = result_of(run_of(rounds(5, 900, seed=2, mean_ms=2.3, requests=20_000)))
    found = {change.statistic: change for change in compare_results(before, after)}
    assert found["rate"].verdict == WORSE and found["rate"].words == "slower"
    assert found["rate"].ratio.low < 0.9 < found["rate"].ratio.high < 1
    assert found["p50"].verdict == WORSE
    assert {change.statistic for change in regressions(list(found.values()))} >= {"rate", "p50"}
    back = {change.statistic: change for change in compare_results(after, before)}
    assert back["rate"].verdict == BETTER and not regressions(list(back.values()))


def test_noise_is_not_taken_for_a_change() -> None:
    """At 95 % one comparison in 20 may be wrong, of 80 that is 4."""
    for count in (2, 3, 5):
        wrong = 0
        for trial in range(80):
            old, new = (rate_rounds(count, 1000.0, seed=2 * trial + side) for side in (0, 1))
            how = ratio(new, old, "rate")
            wrong += not how.low <= 1 <= how.high
        assert wrong <= 9, count


def rate_rounds(count: int, rate: float, seed: int) -> list[Window]:
    """As rounds, where only rates matter; the windows themselves know nothing of the noise."""
    rng = np.random.default_rng(seed)
    return [replace(PLAIN, round=i, rate=rate * float(np.exp(rng.normal(0, NOISE)))) for i in range(count)]


PLAIN = window(requests=400)


def test_few_rounds_that_agree_by_chance_are_not_believed() -> None:
    """Intervals inside the windows say that rates vary; two equal rounds do not make that untrue."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 200, 20)
    intervals = [(float(i), int(n), int(n), 0, 1.0, 1.0, 1.0, 1.0) for i, n in enumerate(counts)]
    uneven = [replace(PLAIN, round=i, rate=1000.0, intervals=intervals) for i in range(2)]
    how = ratio(uneven, uneven, "rate")
    assert how.low < 0.9 and how.high > 1.1


def test_pairing_takes_out_what_both_targets_went_through() -> None:
    rng = np.random.default_rng(3)
    drift = np.exp(rng.normal(0, 0.3, 6))
    ours = [replace(PLAIN, round=i, rate=1100 * float(drift[i])) for i in range(6)]
    theirs = [replace(PLAIN, round=i, rate=1000 * float(drift[i])) for i in range(6)]
    assert ratio(ours, theirs, "rate", paired=True).low > 1.09
    assert ratio(ours, theirs, "rate").low < 1


def test_one_round_tells_nothing() -> None:
    found = compare_results(result_of(run_of(rounds(1, 1000, 1))), result_of(run_of(rounds(1, 100, 2))))
    assert {change.verdict for change in found} == {UNKNOWN}


def test_a_change_too_small_to_matter_is_none() -> None:
    old = [replace(PLAIN, round=i, rate=1000.0 + i * 0.01, intervals=[]) for i in range(5)]
    new = [replace(window, rate=window.rate * 1.01) for window in old]
    before, after = result_of(run_of(old)), result_of(run_of(new))
    assert {c.statistic: c.verdict for c in compare_results(before, after)}["rate"] == SAME
    found = {c.statistic: c.verdict for c in compare_results(before, after, threshold=0.005)}
    assert found["rate"] == BETTER


def test_only_what_both_have_is_compared_and_failures_are_noted() -> None:
    before = run_of([*rounds(3, 1000, 1), *rounds(3, 500, 2, target="gone")])
    failing = [replace(w, failed={"UNAVAILABLE": 5}) for w in rounds(3, 1000, 3)]
    found = compare_results(result_of(before, run_of(failing, name="other")), result_of(run_of(failing)))
    assert {change.target for change in found} == {"ours"}
    assert {change.note for change in found} == {"failed 0 before, 15 after"}


def test_targets_of_one_run_are_compared_where_both_have_rounds() -> None:
    ours, theirs = rounds(4, 2000, 1), rounds(3, 1000, 2, target="theirs")
    found = compare_targets(run_of([*ours, *theirs]), "theirs")
    rate = next(change for change in found if change.statistic == "rate")
    assert (rate.target, rate.verdict) == ("ours", BETTER) and 1.8 < rate.ratio.value < 2.2


def test_statistics_of_a_window() -> None:
    one = window(cpu_s=0.5, rate=1000.0)
    assert statistic(one, "cpu") == pytest.approx(500.0)
    assert statistic(one, "p50") <= statistic(one, "p99") <= statistic(one, "max")
    assert np.isnan(statistic(replace(one, done=0, rate=0.0), "rate"))
    assert np.isnan(mean([one, replace(one, cpu_s=None)], "cpu"))
    assert mean([replace(one, rate=100.0), replace(one, rate=400.0)], "rate") == pytest.approx(200.0)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    result = result_of(run_of([window(point=CLOSED), window(point=OPEN, round=1)]))
    path = tmp_path / "deep" / "r.json"
    write_result(path, result)
    assert read_result(path) == result
    assert merged(read_result(path).runs[0].windows).total == 4000


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ResultError, match="cannot be read"):
        read_result(path)
    path.write_text("{")
    with pytest.raises(ResultError, match="not a file of `fastserve bench`"):
        read_result(path)
    path.write_bytes(msgspec.json.encode({"schema": 99}))
    with pytest.raises(ResultError, match="has schema 99; this FastServe reads 1"):
        read_result(path)


def test_histograms_are_packed_without_loss() -> None:
    histogram = Histogram()
    for value in np.random.default_rng(1).exponential(1e6, 5000):
        histogram.record(int(value))
    kept = latencies(histogram)
    assert kept.histogram() == histogram
    assert len(kept.pairs) < 6000
    assert unpack_pairs(pack_pairs([(0, 1), (300, 70000), (301, 1)])) == [(0, 1), (300, 70000), (301, 1)]
    assert unpack_pairs(pack_pairs([])) == []
    for damaged in ("!", "AAAA"):
        with pytest.raises(ResultError, match="damaged"):
            unpack_pairs(damaged)
