"""`fastserve bench switch`: from made-up recordings to bars and verdicts; versions, plans, the picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastserve.bench import switch_ask
from fastserve.bench.requests import Array, Request
from fastserve.bench.switch_analysis import (
    EARLY,
    STALE,
    found,
    quantile,
    span_maxima,
    steady_spans,
    stolen_share,
    wrong_times,
)
from fastserve.bench.switch_plan import (
    ABLATIONS,
    BESIDE,
    MODEL,
    Load,
    ModelSource,
    Plan,
    Timing,
    Variant,
    parse_ablations,
    parse_model,
    parse_options,
)
from fastserve.bench.switch_plot import line, panels_of, plot, series
from fastserve.bench.switch_report import show_switches
from fastserve.bench.switch_result import (
    SCHEMA,
    RunFound,
    SwitchResult,
    read_switch_result,
    write_switch_result,
)
from fastserve.bench.switch_trace import RECORD, Recording, Records, Switch, Trace
from fastserve.bench.switch_versions import (
    Asked,
    Contents,
    Publisher,
    draw_requests,
    find_contents,
    keep_telling,
    tell_apart,
)
from fastserve.bench.target import TargetError
from fastserve.savedmodel import Port, SavedModel, Signature

MS, SECOND = 1_000_000, 1_000_000_000
BEGIN = 1000 * SECOND
EVERY = 2 * MS  # a request each
STEADY_S, WINDOW_S = 10, 8
PERIOD_S = STEADY_S + WINDOW_S


def switches(count: int) -> tuple[Switch, ...]:
    """One every PERIOD_S: appears after STEADY_S, published 2 s later, alone another second later."""
    made = []
    for i in range(count):
        at = BEGIN + (i * PERIOD_S + STEADY_S) * SECOND
        times = (at, at + 2 * SECOND, at + 3 * SECOND, at + WINDOW_S * SECOND)
        made.append(Switch(2 + i, *times, stages={"loading": at + SECOND}))
    return tuple(made)


def records(count: int, took_ns: int = MS) -> Records:
    """Requests at equal distances for `count` switches, with a steady p99.9 of 2 ms and a maximum of 4 ms,
    each answered by the version of its time."""
    due = np.arange(BEGIN, BEGIN + count * PERIOD_S * SECOND, EVERY)
    made = np.zeros(len(due), RECORD)
    made["due_ns"], made["took_ns"], made["version"] = due, took_ns, 1
    made["took_ns"][::200] = 2 * MS
    for switch in switches(count):
        made["version"][due >= switch.published_ns] = switch.version
    made["took_ns"][100] = 4 * MS
    return made


def trace(target: str, made: Records, **changes: object) -> Trace:
    usual = Trace(target, 500.0, 1000.0, made, len(made), {}, 0, 0, "", 20_000, 1.5)
    return replace(usual, **changes)  # type: ignore[arg-type]


def recording(count: int, model: Records | None = None) -> Recording:
    beside = records(count)
    beside["version"] = 1
    traces = (trace(MODEL, records(count) if model is None else model), trace(BESIDE, beside))
    return Recording(traces, switches(count))


def plan(count: int) -> Plan:
    return Plan(
        ModelSource("small", Path("/nowhere")),
        "off",
        Variant(),
        Timing(switches=count),
        Load(rates=(500, 500)),
    )


def in_window(made: Records, number: int) -> slice:
    switch = switches(number + 1)[number]
    first, last = np.searchsorted(made["due_ns"], [switch.appeared_ns, switch.until_ns])
    return slice(int(first), int(last))


def model_of(count: int, made: Records) -> RunFound:
    return found(plan(count), recording(count, made), 1.0)


# ---- the bars --------------------------------------------------------------------------------------


def test_switches_that_change_nothing_pass() -> None:
    run = found(plan(10), recording(10), 200.0)
    assert run.passes is True
    for target in run.targets:
        assert target.bars is not None
        assert target.bars.passes
        assert (target.bars.p999_ratio, target.bars.max_within, target.bars.wrong) == (1.0, 10, 0)
        assert target.steady is not None
        assert target.steady.seconds == pytest.approx(100)
        assert [window.seconds for window in target.windows] == [WINDOW_S] * 10
        assert target.steady.done == 100 * 500
        assert {window.done for window in target.windows} == {WINDOW_S * 500}
        assert (target.steady.p50, target.steady.p999, target.steady.max) == (1.0, 2.0, 4.0)
    assert run.targets[0].by_version.keys() == {str(version) for version in range(1, 12)}
    assert run.targets[1].by_version == {"1": 180 * 500}


def test_what_the_host_gave_to_others_is_told_of_steady_time_and_windows_apart() -> None:
    # A processor second in the first window, and none elsewhere.
    first = switches(1)[0]
    stolen = ((BEGIN, 7.0), (first.appeared_ns, 7.0), (first.until_ns, 8.0), (BEGIN + 99 * SECOND, 8.0))
    run = found(plan(2), replace(recording(2), stolen=stolen), 1.0)
    share = 1.0 / WINDOW_S / (os.cpu_count() or 1)
    for target in run.targets:
        assert target.steady is not None
        assert target.steady.stolen == 0.0
        assert [window.stolen for window in target.windows] == [pytest.approx(share, abs=1e-4), 0.0]
    half = (first.appeared_ns, first.appeared_ns + WINDOW_S * SECOND // 2)
    assert stolen_share(stolen, [half]) == pytest.approx(share)
    assert stolen_share((), [half]) == 0.0


def test_p999_counts_by_the_median_over_the_windows() -> None:
    made = records(10)
    for number in range(5):  # half of them: the median lies between 2 and 6 ms
        made["took_ns"][in_window(made, number)][::100] = 6 * MS
    bars = model_of(10, made).targets[0].bars
    assert bars is not None
    assert (bars.p999_ratio, bars.p999_passes) == (2.0, False)
    assert bars.max_passes
    made = records(10)
    for number in range(4):
        made["took_ns"][in_window(made, number)][::100] = 6 * MS
    run = model_of(10, made)
    assert run.targets[0].bars is not None
    assert run.targets[0].bars.p999_passes
    assert run.passes is True


@pytest.mark.parametrize(("high", "passes"), [(1, True), (2, False)])
def test_one_of_ten_windows_may_have_a_maximum_beyond_5_ms_more(high: int, passes: bool) -> None:
    made = records(10)
    for number in range(10):
        made["took_ns"][in_window(made, number)][7] = 9 * MS  # 4 + 5: just within
    for number in range(high):
        made["took_ns"][in_window(made, number)][7] = 9 * MS + 1000
    bars = model_of(10, made).targets[0].bars
    assert bars is not None
    assert (bars.max_within, bars.max_within_least, bars.max_passes) == (10 - high, 9, passes)
    assert bars.p999_passes
    assert bars.passes is passes


def test_a_slow_request_belongs_to_where_it_was_due() -> None:
    made = records(2)
    window = in_window(made, 0)
    made["took_ns"][window.start - 1] = 900 * MS  # due before, answered inside
    target = model_of(2, made).targets[0]
    assert target.steady is not None
    assert target.steady.max == 900.0
    assert target.windows[0].max == 2.0


@pytest.mark.parametrize(
    "changes",
    [{"failed": {"UNAVAILABLE": 1}}, {"unanswered": 1}, {"unrecorded": 1}, {"failed": {"timeout": 2}}],
)
def test_one_request_that_failed_or_was_lost_fails_the_run(changes: dict[str, object]) -> None:
    usual = recording(2)
    for spoilt in (0, 1):
        traces = [replace(one, **changes) if i == spoilt else one for i, one in enumerate(usual.traces)]  # type: ignore[arg-type]
        run = found(plan(2), replace(usual, traces=tuple(traces)), 1.0)
        assert run.passes is False
        assert [target.bars is not None and target.bars.wrong_passes for target in run.targets] == [
            i != spoilt for i in (0, 1)
        ]


def test_failed_requests_are_in_no_latency() -> None:
    made = records(2)
    made["failure"][50] = 14
    made["took_ns"][50] = 5 * SECOND
    target = model_of(2, made).targets[0]
    assert target.steady is not None
    assert target.steady.max == 4.0
    assert target.done == len(made) - 1


def test_a_core_that_was_started_again_fails_the_run() -> None:
    assert found(plan(2), replace(recording(2), core_restarts=1), 1.0).passes is False


def test_a_run_that_ended_early_is_not_judged() -> None:
    full = recording(3)
    last = full.switches[2]
    unfinished = Switch(last.version, last.appeared_ns, 2**62, 2**62, 2**62)
    cut = replace(full, switches=full.switches[:2], unfinished=unfinished, ended="interrupted")
    run = found(plan(3), cut, 1.0)
    assert run.passes is None
    assert len(run.switches) == 2
    for target in run.targets:
        assert target.bars is None
        assert len(target.windows) == 2
        assert target.steady is not None
        assert target.steady.seconds == pytest.approx(3 * STEADY_S)  # up to where the third one appeared
    nothing = replace(full, switches=(), ended="interrupted")
    assert found(plan(3), nothing, 1.0).targets[0].windows == []
    empty = replace(
        nothing, traces=tuple(replace(one, records=one.records[:0], sent=0) for one in full.traces)
    )
    assert found(plan(3), empty, 1.0).targets[0].steady is None


# ---- versions and times ----------------------------------------------------------------------------


def test_an_answer_before_its_version_appeared_is_wrong() -> None:
    made = records(2)
    window = in_window(made, 0)
    made["version"][window.start - 10] = 2  # due 20 ms before, and answered 1 ms later
    assert wrong_times(trace(MODEL, made), switches(2)) == {EARLY: 1}
    made["took_ns"][window.start - 10] = 30 * MS
    assert wrong_times(trace(MODEL, made), switches(2)) == {}
    run = model_of(2, records(2))
    assert run.targets[0].failed == {}


def test_an_answer_by_a_version_that_is_gone_is_wrong() -> None:
    made = records(2)
    gone_ns = switches(2)[0].gone_ns
    after = int(np.searchsorted(made["due_ns"], gone_ns, side="right"))
    made["version"][after - 5] = 1  # both are served
    assert wrong_times(trace(MODEL, made), switches(2)) == {}
    made["version"][after : after + 3] = 1
    assert wrong_times(trace(MODEL, made), switches(2)) == {STALE: 3}
    run = model_of(2, made)
    assert run.targets[0].failed == {STALE: 3}
    assert run.passes is False


def test_a_version_that_never_appeared_is_wrong_for_either_model() -> None:
    made = records(2)
    made["version"][5] = 9
    assert wrong_times(trace(MODEL, made), switches(2)) == {EARLY: 1}
    beside = recording(2).traces[1]
    beside.records["version"][7] = 2  # which the other model has
    assert wrong_times(beside, switches(2)) == {EARLY: 1}


def test_a_switch_is_told_in_seconds_after_its_directory_appeared() -> None:
    made = records(2)
    switch = switches(2)[0]
    at = int(np.searchsorted(made["due_ns"], switch.published_ns + SECOND // 2))
    made["version"][at] = 1  # half a second later the old one still answers
    told = model_of(2, made).switches[0]
    assert (told.version, told.at_s, told.published_s, told.gone_s, told.window_s) == (2, 10.0, 2.0, 3.0, 8.0)
    assert told.first_answer_s == pytest.approx(2.001, abs=0.002)
    assert told.last_old_answer_s == pytest.approx(2.501, abs=0.002)
    assert told.stages == {"loading": 1.0}


# ---- arithmetic ------------------------------------------------------------------------------------


def test_steady_is_what_no_window_covers() -> None:
    full = recording(2)
    assert steady_spans(full, BEGIN, BEGIN + 36 * SECOND) == [
        (BEGIN, BEGIN + 10 * SECOND),
        (BEGIN + 18 * SECOND, BEGIN + 28 * SECOND),
    ]
    later = BEGIN + 12 * SECOND  # begun inside a window
    assert steady_spans(full, later, BEGIN + 40 * SECOND)[1:] == [(BEGIN + 36 * SECOND, BEGIN + 40 * SECOND)]


def test_quantiles_are_values_that_were_there() -> None:
    values = np.arange(1, 1001)
    assert (quantile(values, 0.5), quantile(values, 0.999), quantile(values, 1.0)) == (500, 999, 1000)
    assert quantile(np.array([7]), 0.999) == 7


def test_spans_join_over_what_lies_between() -> None:
    made = records(2)
    made["took_ns"] = MS
    spans = [(BEGIN, BEGIN + 10 * SECOND), (BEGIN + 18 * SECOND, BEGIN + 28 * SECOND)]
    for at_s, took_ms in ((1, 3), (9, 5), (19, 6), (25, 4), (12, 99)):  # the last one is in no span
        made["took_ns"][np.searchsorted(made["due_ns"], BEGIN + at_s * SECOND)] = took_ms * MS
    assert span_maxima(made, spans, 8 * SECOND) == [3.0, 6.0]  # 0-8; 8-10 and 18-24
    assert span_maxima(made, spans, 10 * SECOND) == [5.0, 6.0]
    assert span_maxima(made, spans, 30 * SECOND) == []


# ---- versions on disk ------------------------------------------------------------------------------


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    root = tmp_path / "exported"
    for name in ("1", "2", "10"):
        (root / name / "variables").mkdir(parents=True)
        (root / name / "saved_model.pb").write_text(name)
        (root / name / "variables" / "data").write_text(f"weights of {name}")
    (root / "11").mkdir()  # not a version
    score = np.stack([np.full((40, 1), value, np.float32) for value in (0.1, 0.5, 0.9)])
    np.savez(root / "requests.npz", x=np.arange(40, dtype=np.float32))
    np.savez(root / "answers.npz", score=score)
    return find_contents(ModelSource("mine", root))


def test_versions_of_a_directory_are_found_in_order(contents: Contents, tmp_path: Path) -> None:
    assert [path.name for path in contents.directories] == ["1", "2", "10"]
    (tmp_path / "one" / "1").mkdir(parents=True)
    (tmp_path / "one" / "1" / "saved_model.pb").touch()
    with pytest.raises(TargetError, match="at least two"):
        find_contents(ModelSource("one", tmp_path / "one"))


def test_a_version_appears_whole_and_without_a_copy(contents: Contents, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "model", contents, 4)
    assert os.listdir(publisher.base_path) == []
    before = [publisher.publish(version) for version in (1, 2, 4)]
    assert before == sorted(before)
    assert sorted(os.listdir(publisher.base_path)) == ["1", "2", "4"]
    for version, name in ((1, "2"), (2, "10"), (4, "2")):  # by the rest of dividing by three
        mine = publisher.base_path / str(version) / "variables" / "data"
        assert mine.read_text() == f"weights of {name}"
        assert mine.samefile(contents.directories[version % 3] / "variables" / "data")


def test_requests_have_their_rows_and_every_versions_answer(contents: Contents) -> None:
    asked = draw_requests(contents, rows=4, count=100, seed=1)
    assert len(asked.requests) == 10
    assert asked.output == "score"
    assert sorted(np.concatenate([request.inputs["x"] for request in asked.requests])) == list(range(40))
    for content, value in enumerate((0.1, 0.5, 0.9)):
        assert asked.expected[content] == [pytest.approx([value] * 4)] * 10
    assert len(draw_requests(contents, rows=1, count=16, seed=1).requests) == 16
    with pytest.raises(TargetError, match="answer 5 requests differently enough"):
        draw_requests(contents, rows=8, count=100, seed=1)


def test_requests_that_do_not_tell_the_versions_apart_are_left_out(contents: Contents) -> None:
    assert tell_apart(np.array([[0.1, 0.5], [0.1, 0.6], [0.2, 0.6]]))
    assert not tell_apart(np.array([[0.1, 0.5], [0.1, 0.5001], [0.2, 0.5]]))
    assert not tell_apart(np.array([[0.1], [0.5], [0.1]]))  # the third is followed by the first
    asked = draw_requests(contents, rows=1, count=16, seed=1)
    alike = [[*content] for content in asked.expected]
    alike[1][3] = alike[0][3]
    kept = keep_telling(Asked(asked.requests, "score", alike))
    assert kept.requests == [request for i, request in enumerate(asked.requests) if i != 3]
    assert {len(content) for content in kept.expected} == {15}


class Asker:
    """A server that answers with its version's number times x."""

    def __init__(self) -> None:
        self.started: list[str] = []

    @contextmanager
    def serve(self, plan: object, model: str, path: Path, *rest: object) -> Iterator[tuple[str, None]]:
        self.started.append(path.name)
        yield path.name, None

    def ask(self, target: str, model: str, signature: str, request: Request) -> dict[str, Array]:
        x = request.inputs["x"]
        return {"label": np.array([b"a"] * len(x), object), "y": np.float32(int(target)) * x}


def test_versions_without_recorded_answers_are_asked_one_at_a_time(
    contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = Asker()
    signature = Signature("serving_default", "", (Port("x", "x:0", 1, (-1,)),), ())
    monkeypatch.setattr(switch_ask, "started", asker.serve)
    monkeypatch.setattr(switch_ask, "ask", asker.ask)
    monkeypatch.setattr(switch_ask, "read", lambda path: SavedModel("", (), "", (signature,)))
    unknown = Contents(contents.directories)
    asked = switch_ask.asked_of(unknown, Load(rows=2, bodies=20), lambda text: None)
    assert asker.started == ["1", "2", "10"]
    assert asked.output == "y"
    assert 8 <= len(asked.requests) <= 20
    for version, content in zip((1, 2, 10), asked.expected, strict=True):
        for request, expected in zip(asked.requests, content, strict=True):
            assert expected == pytest.approx(list(request.inputs["x"] * version))
    # Those whose answers are in a file are not.
    assert switch_ask.asked_of(contents, Load(rows=1, bodies=9), lambda text: None).output == "score"
    assert len(asker.started) == 3


def test_a_run_has_room_for_two_minutes_of_each_switch_and_for_its_patience() -> None:
    timing = Timing(switches=10, lead_s=10, tail_s=5, gap_s=6, warmup_s=3, patience_s=180)
    assert timing.most_s == 3 + 10 + 10 * 131 + 180
    assert timing.shorter(3) == replace(timing, switches=3, lead_s=8.0)


# ---- the command line ------------------------------------------------------------------------------


def test_ablations_are_names_all_of_them_or_configuration() -> None:
    assert [variant.name for variant in parse_ablations(["all"], {})] == list(ABLATIONS)
    (nice, other) = parse_ablations(["nice", "server.allocator=jemalloc"], {"loading.poll_s": 0.2})
    assert nice.environment() == {"FASTSERVE_ABLATE": "nice"}
    assert nice.options == {"loading.poll_s": 0.2}
    assert other.environment() == {}
    assert other.options == {"loading.poll_s": 0.2, "server.allocator": "jemalloc"}
    with pytest.raises(TargetError, match="expected all, pool"):
        parse_ablations(["nicer"], {})


def test_models_are_shipped_ones_or_paths(tmp_path: Path) -> None:
    assert parse_model("small").path.name == "switch_small.py"
    assert parse_model(str(tmp_path)) == ModelSource(tmp_path.name, tmp_path)
    with pytest.raises(TargetError, match="expected small or large"):
        parse_model("tiny")


def test_options_of_the_server_are_keys_with_their_table() -> None:
    assert parse_options(["executor.threads=1", 'model.xla="full"']) == {
        "executor.threads": 1,
        "model.xla": "full",
    }
    with pytest.raises(TargetError, match=r"expected TABLE\.KEY=VALUE"):
        parse_options(["threads=1"])


# ---- what comes out --------------------------------------------------------------------------------


def result_of(*runs: RunFound) -> SwitchResult:
    return SwitchResult(
        schema=SCHEMA, started="2026-01-01T00:00:00+00:00", seconds=1.0, command="fastserve bench switch",
        machine={}, versions={}, revision="", timing={}, load={}, runs=list(runs), ablations=list(runs),
    )  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = result_of(found(plan(3), recording(3), 1.0))
    write_switch_result(tmp_path / "deep" / "r.json", result)
    assert read_switch_result(tmp_path / "deep" / "r.json") == result


def test_the_table_says_what_passes_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    made = records(3)
    made["took_ns"][in_window(made, 1)][::50] = 80 * MS
    show_switches(Console(width=220, highlight=False), result_of(model_of(3, made)))
    text = capsys.readouterr().out
    model, beside = (line for line in text.split("The same")[0].splitlines() if "500/s" in line)
    assert "80.0 ms" in model and "2 of 3" in model and "FAIL" in model
    assert "3 of 3" in beside and "pass" in beside
    assert "2.00 (2.00)" in text  # published, after so many seconds


def test_a_series_has_the_latencies_of_each_bin() -> None:
    made = records(1)
    made["took_ns"][60:70] = 7 * MS
    made["failure"][33] = 14
    found = series(trace(MODEL, made), BEGIN)
    assert len(found.lines["max"].at_s) == PERIOD_S * 10  # tenths of a second,
    assert len(found.lines["p99.9"].at_s) == PERIOD_S  # and whole ones
    assert list(found.lines["max"].values[:3]) == [2.0, 7.0, 4.0]
    assert list(found.lines["p50"].values[:3]) == [1.0, 1.0, 1.0]
    assert found.lines["p99.9"].values[0] == 7.0
    assert list(found.failed_s) == [pytest.approx(0.066)]


def test_a_bin_in_which_nothing_was_due_has_no_value() -> None:
    found = line(np.array([0, 5, 31]), np.array([MS, 3 * MS, 2 * MS]), 1.0, 10)
    assert list(found.values) == [
        3.0,
        pytest.approx(np.nan, nan_ok=True),
        pytest.approx(np.nan, nan_ok=True),
        2.0,
    ]
    assert len(line(np.array([], np.int64), np.array([], np.int64), 0.5, 10).at_s) == 0


def test_the_picture_is_a_png_with_a_panel_for_each_model(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seen = recording(2)
    run = found(plan(2), seen, 1.0)
    sizes = []
    for count in (1, 2):
        plot(tmp_path / "p" / f"{count}.png", [panels_of(run, seen)] * count)
        data = (tmp_path / "p" / f"{count}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(data[20:24], "big"))
    assert sizes[1] > 1.5 * sizes[0]
