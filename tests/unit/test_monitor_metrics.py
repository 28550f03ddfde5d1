"""The metrics' text, read back by prometheus-client's parsers: both formats, both families of names."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from unit.fake_metrics import FakeHistogram, FakeSeries, busy

from fastserve.control.telemetry_events import WARMUP_S, Stopwatch
from fastserve.monitor.exposition import Bounds, Exposition, accepts, labels, number, wants_openmetrics
from fastserve.monitor.scrape import render
from fastserve.monitor.values import (
    Durations,
    Figures,
    ModelFigures,
    PathFigures,
    ProcessFigures,
    VersionFigures,
)

NASTY = 'a "model"\\ of\nours'
ROLLOUT = {
    "kind": "canary",
    "stable": 1,
    "new": 2,
    "share": 0.1,
    "figures": {
        "stable": {"requests": 90, "failed": 1, "refused": 2, "p99_us": 5},
        "new": {"requests": 10, "failed": 3, "refused": 0, "p99_us": 5},
        "shadow": {"compared": 5, "rows": 9, "different_rows": 1, "failed": 0, "dropped": 2, "skipped": 0},
    },
}


# Two runs through recorded requests, of 20 and 30 ms.
_WATCH = Stopwatch(WARMUP_S)
_WATCH.add(0.02)
_WATCH.add(0.03)
WARMUPS = _WATCH.durations()


def figures(**changes: Any) -> Figures:
    """Two models, one with a signature of its second version, and a name that has to be escaped."""
    live = [busy(), busy(version=2, signature="other"), busy(NASTY, 7, times_us=(50.0, 70.0))]
    ended = FakeSeries(
        "m",
        None,
        requests={("Predict", "grpc", "OK"): 1000, ("Classify", "rest", "OK"): 5},
        request_rows={
            "Classify": FakeHistogram(3.0, 5.0),
            "Regress": FakeHistogram(8.0),
            "MultiInference": FakeHistogram(2.0),
        },
        padding={0: FakeHistogram(0.0, 0.0), 4: FakeHistogram(3.0)},
    )
    values: dict[str, Any] = {
        "version": "1.2.3",
        "library": "2.20.0",
        "uptime_s": 12.5,
        "ready": True,
        "live": live,
        "all": [*live, ended],
        "unresolved": {("Predict", "grpc", "NOT_FOUND"): 11},
        "core": ProcessFigures(True, 2, 1),
        "core_bytes": 123456,
        "memory_limit_bytes": 1 << 30,
        "gateway": ProcessFigures(False, 4, 0),
        "models": [
            ModelFigures(
                "m",
                2,
                {"success": 3, "failure": 1},
                Durations((1.0, 10.0), (2, 3), 3, 4.5),
                Durations((0.1,), (0,), 1, 0.25),
                ROLLOUT,
                {"records": 40, "dropped": 2, "skipped": 0, "failed": 1, "buffered_bytes": 77},
            ),
            ModelFigures(NASTY, 1),
        ],
        "versions": [
            VersionFigures("m", 1, "AVAILABLE", 1000, 0.5, {("s", "8"): 0.01}, {("s", "8"): 0.25}),
            VersionFigures("m", 2, "LOADING", 0),
        ],
        "paths": [PathFigures("/models/m/1", 2, 1, 3.5, 6, WARMUPS), PathFigures("/models/m/2", 0, 1)],
    }
    return Figures(**{**values, **changes})


class Read:
    """What a parser has found: values by sample name and labels, kinds by family."""

    def __init__(self, families: Any) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self.kinds = {}
        for family in families:
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.values, key
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def labels_of(self, name: str) -> set[frozenset[str]]:
        return {frozenset(label for label, _ in labels) for found, labels in self.values if found == name}


def text(**changes: Any) -> Read:
    return Read(parse_text(render(figures(**changes), openmetrics=False).decode()))


def openmetrics(**changes: Any) -> Read:
    return Read(parse_openmetrics(render(figures(**changes), openmetrics=True).decode()))


# By name, as TensorFlow Serving's exporter writes it: labels, and whether it is a counter, whose name this
# parser gives _total to.
TENSORFLOW = {
    ":tensorflow:serving:request_count": ({"model_name", "status"}, True),
    ":tensorflow:serving:request_latency_bucket": ({"model_name", "API", "entrypoint", "le"}, False),
    ":tensorflow:serving:request_latency_sum": ({"model_name", "API", "entrypoint"}, False),
    ":tensorflow:serving:request_latency_count": ({"model_name", "API", "entrypoint"}, False),
    ":tensorflow:serving:runtime_latency_bucket": ({"model_name", "API", "runtime", "le"}, False),
    ":tensorflow:serving:runtime_latency_count": ({"model_name", "API", "runtime"}, False),
    ":tensorflow:serving:request_log_count": ({"model_name", "status_code"}, True),
    ":tensorflow:serving:model_warmup_latency_count": ({"model_path", "status"}, False),
    ":tensorflow:serving:model_warmup_records_read": ({"model_path"}, True),
    ":tensorflow:serving:request_example_counts_bucket": ({"model", "le"}, False),
    ":tensorflow:serving:request_example_counts_count": ({"model"}, False),
    ":tensorflow:serving:request_example_count_total": ({"model"}, False),
    ":tensorflow:serving:batching_session:queuing_latency_bucket": ({"thread_pool_name", "le"}, False),
    ":tensorflow:serving:batching_session:queuing_latency_count": ({"thread_pool_name"}, False),
    ":tensorflow:serving:batching_session:wrapped_run_count": (set(), True),
    ":tensorflow:serving:batching_session:processed_batch_size_count": (set(), False),
    ":tensorflow:serving:batching_session:input_batch_size_count": (set(), False),
    ":tensorflow:core:direct_session_runs": (set(), True),
    ":tensorflow:core:graph_runs": (set(), True),
    ":tensorflow:core:graph_run_time_usecs": (set(), True),
    ":tensorflow:core:graph_run_time_usecs_histogram_count": (set(), False),
    ":tensorflow:cc:saved_model:load_attempt_count": ({"model_path", "status"}, True),
    ":tensorflow:cc:saved_model:load_latency": ({"model_path"}, True),
}


@pytest.mark.parametrize("name", TENSORFLOW)
def test_a_name_of_tensorflow_serving_has_its_labels(name: str) -> None:
    labels_wanted, counter = TENSORFLOW[name]
    assert text().labels_of(name + "_total" * counter) == {frozenset(labels_wanted)}
    # A counter there must end in _total: these are of no kind.
    assert openmetrics().labels_of(name) == {frozenset(labels_wanted)}


def test_every_name_of_tensorflow_serving_is_among_them() -> None:
    written = {
        line.split("{")[0]
        for line in render(figures(), openmetrics=False).decode().splitlines()
        if line.startswith(":")
    }
    bases = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in TENSORFLOW}
    bases.add(":tensorflow:serving:batching_session:padding_size")  # whose labels differ: see below
    assert {name for name in written if name not in TENSORFLOW} <= {
        f"{base}{end}" for base in bases for end in ("_bucket", "_sum", "_count")
    }


def test_requests_as_tensorflow_serving_counts_them() -> None:
    read = text()
    count = ":tensorflow:serving:request_count_total"
    # Two versions with 2 + 1 each, and those that have closed.
    assert read(count, model_name="m", status="OK") == 2 * 3 + 1005
    assert read(count, model_name="m", status="INVALID_ARGUMENT") == 2
    assert read(count, model_name="", status="NOT_FOUND") == 11
    latency = ":tensorflow:serving:request_latency"
    assert read(f"{latency}_count", model_name="m", API="Predict", entrypoint="GRPC") == 6
    assert read(f"{latency}_sum", model_name="m", API="Predict", entrypoint="GRPC") == 1200
    assert read(f"{latency}_count", model_name="m", API="predict", entrypoint="REST") == 2
    assert read(f"{latency}_bucket", model_name="m", API="Predict", entrypoint="GRPC", le="104.976") == 2
    assert read(f"{latency}_bucket", model_name="m", API="Predict", entrypoint="GRPC", le="+Inf") == 6
    runs = ":tensorflow:serving:runtime_latency_count"
    assert read(runs, model_name="m", API="Predict", runtime="TF1") == 4
    queue = ":tensorflow:serving:batching_session:queuing_latency_count"
    assert read(queue, thread_pool_name="batch_threads") == 10
    assert read(":tensorflow:serving:batching_session:wrapped_run_count_total") == 5
    padding = ":tensorflow:serving:batching_session:padding_size"
    assert read(f"{padding}_sum", execution_batch_size="4") == 5 + 3
    assert read(f"{padding}_bucket", execution_batch_size="4", le="1") == 5
    assert read(f"{padding}_bucket", execution_batch_size="4", le="4") == 6
    assert (read(f"{padding}_count"), read(f"{padding}_sum")) == (2, 0)  # of batches that ran as they were
    sizes = ":tensorflow:serving:batching_session:input_batch_size"
    assert (read(f"{sizes}_count"), read(f"{sizes}_sum")) == (10 + 4, 10 + 3 + 5 + 8 + 2)
    assert [read(f"{sizes}_bucket", le=str(1 << i)) for i in range(4)] == [10, 11, 12, 14]
    examples = ":tensorflow:serving:request_example_count"  # of Predict there are none
    assert (read(f"{examples}s_count", model="m"), read(f"{examples}_total", model="m")) == (4, 18)
    assert [read(f"{examples}s_bucket", model="m", le=str(1 << i)) for i in range(4)] == [0, 1, 2, 4]
    assert read.labels_of(f"{examples}_total") == {frozenset({"model"})}
    assert read(f"{examples}s_bucket", model="m", le=str(1 << 14)) == 4
    assert read(":tensorflow:core:graph_runs_total") == 5
    assert read(":tensorflow:core:graph_run_time_usecs_total") == 300


def test_loads_as_tensorflow_serving_counts_them() -> None:
    read = text()
    attempts = ":tensorflow:cc:saved_model:load_attempt_count_total"
    assert read(attempts, model_path="/models/m/1", status="success") == 2
    assert read(attempts, model_path="/models/m/1", status="fail") == 1
    assert read(":tensorflow:cc:saved_model:load_latency_total", model_path="/models/m/1") == 3_500_000
    warmup = ":tensorflow:serving:model_warmup_latency"
    assert read(f"{warmup}_sum", model_path="/models/m/1", status="OK") == pytest.approx(50_000)
    assert read(f"{warmup}_bucket", model_path="/models/m/1", status="OK", le="20823") == 1
    assert read(":tensorflow:serving:model_warmup_records_read_total", model_path="/models/m/1") == 6


def test_bounds_are_written_as_tensorflow_serving_writes_them() -> None:
    ends = [
        line.split('le="')[1].split('"')[0]
        for line in render(figures(), openmetrics=False).decode().splitlines()
        if line.startswith(':tensorflow:serving:request_latency_bucket{model_name="m",API="Predict",')
    ]
    assert ends[:5] == ["10", "18", "32.4", "58.32", "104.976"]
    assert ends[16:23] == [
        "121440",
        "218591",
        "393464",
        "708235",
        "1.27482e+06",
        "2.29468e+06",
        "4.13043e+06",
    ]
    assert ends[-2:] == ["1.47476e+09", "+Inf"] and len(ends) == 34


def test_our_names_are_in_seconds_by_version_signature_method_transport_and_status() -> None:
    read = text()
    m = {"model": "m", "version": "1", "signature": "serving_default"}
    grpc = {"method": "Predict", "transport": "grpc"}
    assert read("fastserve_requests_total", **m, **grpc, status="OK") == 2
    assert read("fastserve_requests_total", **m, **grpc, status="INVALID_ARGUMENT") == 1
    assert read("fastserve_unresolved_requests_total", **grpc, status="NOT_FOUND") == 11
    assert read("fastserve_request_duration_seconds_count", **m, **grpc) == 3
    assert read("fastserve_request_duration_seconds_sum", **m, **grpc) == pytest.approx(0.0006)
    assert read("fastserve_request_duration_seconds_bucket", **m, **grpc, le="0.0001") == 1
    assert read("fastserve_request_duration_seconds_bucket", **m, **grpc, le="0.00025") == 2
    rest = {"method": "Predict", "transport": "rest"}
    assert read("fastserve_request_duration_seconds_bucket", **m, **rest, le="0.003") == 0
    assert read("fastserve_request_duration_seconds_bucket", **m, **rest, le="0.004") == 1
    for part, sum_us in (("queue", 460.0), ("batch_formation", 10), ("compute", 120), ("encode", 16)):
        assert read(f"fastserve_{part}_duration_seconds_sum", **m) == pytest.approx(sum_us / 1e6)
    assert read("fastserve_request_rows_bucket", **m, method="Predict", le="1") == 4
    assert read("fastserve_batch_rows_bucket", **m, le="2") == 2
    assert read("fastserve_batch_rows_bucket", **m, le="1") == 0
    for name, value in (
        ("batches", 2),
        ("rows", 4),
        ("padding_rows", 2),
        ("expired", 3),
        ("cancelled", 2),
        ("shed", 1),
    ):
        assert read(f"fastserve_{name}_total", **m) == value
    assert read("fastserve_waiting_calls", **m) == 4
    assert read("fastserve_waiting_rows", **m) == 7
    # By model, with what has closed.
    assert read("fastserve_model_requests_total", model="m", **grpc, status="OK") == 1004


def test_models_versions_and_processes() -> None:
    read = text()
    assert read("fastserve_model_available_versions", model="m") == 2
    assert read("fastserve_loads_total", model="m", result="success") == 3
    assert read("fastserve_loads_total", model="m", result="failure") == 1
    assert read("fastserve_load_duration_seconds_bucket", model="m", le="1") == 2
    assert read("fastserve_load_duration_seconds_sum", model="m") == 4.5
    assert read("fastserve_switch_duration_seconds_bucket", model="m", le="0.1") == 0
    assert read("fastserve_switch_duration_seconds_count", model="m") == 1
    states = {
        s: read("fastserve_version_state", model="m", version="2", state=s) for s in ("LOADING", "AVAILABLE")
    }
    assert states == {"LOADING": 1, "AVAILABLE": 0}
    assert read("fastserve_version_memory_bytes", model="m", version="1") == 1000
    assert read("fastserve_open_seconds", model="m", version="1") == 0.5
    bucket = {"model": "m", "version": "1", "signature": "s", "rows": "8"}
    assert read("fastserve_warmup_seconds", **bucket) == 0.01
    assert read("fastserve_compile_seconds", **bucket) == 0.25
    assert read("fastserve_rollout_share", model="m", kind="canary", stable="1", new="2") == 0.1
    assert read("fastserve_rollout_requests", model="m", side="new", outcome="failed") == 3
    assert read("fastserve_shadow", model="m", what="dropped") == 2
    assert read("fastserve_log_records_total", model="m") == 40
    assert read("fastserve_log_buffered_bytes", model="m") == 77
    assert read("fastserve_core_up") == 1 and read("fastserve_core_restarts_total") == 2
    assert read("fastserve_gateway_up") == 0 and read("fastserve_gateway_restarts_total") == 4
    assert read("fastserve_core_resident_memory_bytes") == 123456
    assert read("fastserve_ready") == 1
    assert read("fastserve_build_info", version="1.2.3", library="2.20.0") == 1


def test_both_formats_say_the_same() -> None:
    """Values by name and labels, but for the ends of buckets, which OpenMetrics writes as floats."""

    def plain(read: Read) -> dict[Any, float]:
        return {
            (
                name.removesuffix("_total"),
                frozenset((k, float(v) if k == "le" else v) for k, v in labels),
            ): value
            for (name, labels), value in read.values.items()
        }

    assert plain(text()) == plain(openmetrics())
    kinds = openmetrics().kinds
    assert (
        kinds["fastserve_requests"] == "counter"
        and kinds["fastserve_request_duration_seconds"] == "histogram"
    )
    assert kinds[":tensorflow:serving:request_count"] == "unknown"
    assert text().kinds[":tensorflow:serving:request_count"] == "counter"


def test_names_with_quotes_and_lines_survive() -> None:
    assert text()("fastserve_model_available_versions", model=NASTY) == 1
    assert openmetrics()("fastserve_model_available_versions", model=NASTY) == 1


def test_a_daemon_that_has_counted_nothing_yet() -> None:
    empty: dict[str, Any] = {
        "live": [],
        "all": [],
        "unresolved": {},
        "gateway": None,
        "models": [],
        "versions": [],
        "paths": [],
    }
    for read in (text(**empty), openmetrics(**empty)):
        assert read("fastserve_core_up") == 1
        assert not [name for name, _ in read.values if name.startswith("fastserve_gateway")]


def test_only_the_families_that_are_asked_for() -> None:
    only = ("fastserve_ready", "fastserve_queue_duration_seconds_bucket", "fastserve_requests_total")
    families = list(parse_text(render(figures(), openmetrics=False, only=only).decode()))
    assert {family.name for family in families} == {
        "fastserve_ready",
        "fastserve_queue_duration_seconds",
        "fastserve_requests",
    }


def test_zipped_is_the_same() -> None:
    plain = render(figures(), openmetrics=False)
    zipped = render(figures(), openmetrics=False, zipped=True)
    assert gzip.decompress(zipped) == plain and len(zipped) < len(plain) / 5


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text", True),
        ("text/plain, Application/OpenMetrics-Text; version=1.0.0; q=0.8", True),
        ("application/openmetrics-text;q=0, text/plain", False),
    ],
)
def test_the_format_is_the_one_that_is_accepted(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


def test_compression_is_asked_for_by_name() -> None:
    assert accepts("deflate, gzip;q=0.5", "gzip")
    assert not accepts("identity", "gzip") and not accepts("gzip;q=0", "gzip")


def test_numbers_and_labels() -> None:
    assert [number(v) for v in (3, 0.5, 1e-7, float("inf"), float("-inf"), float("nan"))] == [
        "3",
        "0.5",
        "1e-07",
        "+Inf",
        "-Inf",
        "NaN",
    ]
    assert labels(a=1, b='x"\\\n') == 'a="1",b="x\\"\\\\\\n"'
    assert Bounds.of((0.5, 1.0)).text == ("0.5", "1")
    assert Bounds.exponential(1, 2, 3).counted == (1, 2, 4)
    out = Exposition(openmetrics=True)
    assert out.family("x_total", "counter", "words")
    out.sample("", 1)
    assert out.bytes() == b"# HELP x words\n# TYPE x counter\nx_total{} 1\n# EOF\n"
