"""The monitor of a real daemon: its metrics say what the stock client asked, and probes see what happens."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifecycle import RECORDS, Caller, Serving, install, table, with_records
from monitor_client import Monitor
from predict_client import Client, request

LISTEN = '[monitoring]\nlisten = ["127.0.0.1:0"]\n'


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Not started yet; what a test leaves of it is ended."""
    serving = Serving(tmp_path)
    yield serving
    serving.daemon.end()


def test_requests_are_counted_under_both_kinds_of_names(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    serving.start(serving.config(table("m", tmp_path / "m")))
    monitor = Monitor(serving.directory / "state")
    with serving.daemon.channel() as channel:
        client = Client(channel)
        for rows in (1, 1, 3):
            client.predict(request("m", {"x": [1.0] * rows}))
        assert client.refused(request("m", {"z": [1.0]}))[0] == "INVALID_ARGUMENT"
        assert client.refused(request("unknown", {"x": [1.0]}))[0] == "NOT_FOUND"
    ours = {"model": "m", "version": "1", "signature": "serving_default"}
    grpc = {"method": "Predict", "transport": "grpc"}
    serving.daemon.until(lambda: monitor.value("fastserve_requests_total", **ours, **grpc, status="OK") == 3)
    assert monitor.value("fastserve_requests_total", **ours, **grpc, status="INVALID_ARGUMENT") == 1
    assert monitor.value("fastserve_unresolved_requests_total", **grpc, status="NOT_FOUND") == 1
    assert monitor.value("fastserve_request_duration_seconds_count", **ours, **grpc) == 3
    assert 0 < monitor.value("fastserve_request_duration_seconds_sum", **ours, **grpc) < 3
    assert monitor.value("fastserve_rows_total", **ours) == 5
    batches = monitor.value("fastserve_batches_total", **ours)
    assert 1 <= batches <= 3
    for part in ("queue", "batch_formation", "compute", "encode"):
        assert monitor.value(f"fastserve_{part}_duration_seconds_count", **ours) == (
            3 if part == "queue" else batches
        )
    assert monitor.value("fastserve_model_requests_total", model="m", **grpc, status="OK") == 3
    count = ":tensorflow:serving:request_count_total"
    assert monitor.value(count, model_name="m", status="OK") == 3
    assert monitor.value(count, model_name="m", status="INVALID_ARGUMENT") == 1
    assert monitor.value(count, model_name="", status="NOT_FOUND") == 1
    latency = ":tensorflow:serving:request_latency_count"
    assert monitor.value(latency, model_name="m", API="Predict", entrypoint="GRPC") == 3
    runtime = ":tensorflow:serving:runtime_latency_count"
    assert monitor.value(runtime, model_name="m", API="Predict", runtime="TF1") == batches
    assert monitor.value(":tensorflow:core:graph_runs_total") == batches
    path = str(tmp_path / "m/1")
    assert (
        monitor.value(
            ":tensorflow:cc:saved_model:load_attempt_count_total", model_path=path, status="success"
        )
        == 1
    )
    # Both formats tell the same names; OpenMetrics keeps counters without _total as they are.
    names = {name.removesuffix("_total") for name, _ in monitor.samples()}
    assert names == {name.removesuffix("_total") for name, _ in monitor.samples(openmetrics=True)}


def test_a_switch_is_told_of_and_sums_go_on(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    serving.start(serving.config(table("m", tmp_path / "m"), loading="poll_s = 0.1"))
    monitor = Monitor(serving.directory / "state")
    with Caller(serving, "m") as caller:
        caller.more(50)
        before = monitor.value(":tensorflow:serving:request_count_total", model_name="m", status="OK")
        assert before >= 50
        install("half", tmp_path / "m/2")
        caller.until_served_by(2)
        switched = "fastserve_switch_duration_seconds_count"
        serving.daemon.until(lambda: monitor.value(switched, model="m") == 1)
        after = monitor.value(":tensorflow:serving:request_count_total", model_name="m", status="OK")
        assert after > before
        serving.daemon.until(
            lambda: monitor.model("m")["traffic"]["by_version"].get("2", {}).get("requests_per_s", 0) > 0
        )
    status = monitor.json("/status.json")
    kinds = [(event["kind"], event["version"]) for event in status["events"] if event["model"] == "m"]
    assert kinds.index(("available", 2)) < kinds.index(("unload", 1)) < kinds.index(("end", 1))
    assert monitor.value("fastserve_loads_total", model="m", result="success") == 2
    assert monitor.value("fastserve_version_state", model="m", version="2", state="AVAILABLE") == 1
    points = monitor.json("/history.json")["points"]
    assert max(point["requests_per_s"] for point in points) > 0
    assert any(point["p99_us"] for point in points)


def test_a_core_that_dies_takes_no_sum_along(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    serving.start(serving.config(table("m", tmp_path / "m")))
    monitor = Monitor(serving.directory / "state")
    count = ":tensorflow:serving:request_count_total"
    with serving.daemon.channel() as channel:
        client = Client(channel)
        for _ in range(5):
            client.predict(request("m", {"x": [1.0]}))
        serving.daemon.until(lambda: monitor.value(count, model_name="m", status="OK") == 5)
        os.kill(serving.daemon.core_pid, signal.SIGKILL)
        serving.daemon.until(lambda: monitor.json("/status.json")["core"]["restarts"] == 1)
        serving.daemon.until(lambda: monitor.get("/healthz")[0] == 200)
        client.predict(request("m", {"x": [1.0]}), wait_for_ready=True)
    serving.daemon.until(lambda: monitor.value(count, model_name="m", status="OK") == 6)
    assert monitor.value("fastserve_core_restarts_total") == 1


def test_recorded_requests_and_batch_sizes_have_their_times(serving: Serving, tmp_path: Path) -> None:
    version = with_records(install("half", tmp_path / "m/1"), [request("m", {"x": [1.0]})])
    assert (version / RECORDS).exists()
    serving.start(
        serving.config(
            table("m", tmp_path / "m", "[models.batching]\nallowed_batch_sizes = [1, 4]\nmax_batch_size = 4")
        )
    )
    monitor = Monitor(serving.directory / "state")
    warmup = ":tensorflow:serving:model_warmup_latency_count"
    assert monitor.value(warmup, model_path=str(version), status="OK") == 1
    buckets = {
        dict(labels)["rows"]
        for (name, labels) in monitor.samples()
        if name == "fastserve_warmup_seconds" and ("model", "m") in labels
    }
    assert buckets == {"1", "4"}
    assert monitor.value("fastserve_open_seconds", model="m", version="1") > 0


def test_readiness_with_a_version_that_fails(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    install("crashing", tmp_path / "broken/1")
    serving.start(serving.config(LISTEN + table("m", tmp_path / "m") + table("broken", tmp_path / "broken")))
    monitor = Monitor(serving.directory / "state")
    status, body = monitor.get("/readyz")
    told = json.loads(body)
    assert status == 503 and list(told["models"]) == ["broken"] and told["models"]["broken"]
    (address,) = serving.daemon.ready["monitoring"]
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    # A version that can be served makes it ready.
    install("half", tmp_path / "broken/2")
    serving.daemon.until(lambda: monitor.get("/readyz")[0] == 200)


def test_a_canary_and_a_request_log_have_their_figures(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    keys = (
        '[models.rollout]\nmode = "canary"\nshare = 0.5\nduration_s = 3.0\nmin_requests = 50\n'
        "[models.logging]\nsampling_rate = 1.0\n"
    )
    serving.start(serving.config(table("m", tmp_path / "m", keys)))
    monitor = Monitor(serving.directory / "state")
    with Caller(serving, "m"):
        install("half", tmp_path / "m/2")
        serving.daemon.until(
            lambda: monitor.value("fastserve_rollout_requests", model="m", side="new", outcome="requests") > 0
        )
        told = monitor.model("m")["rollout"]
        assert (told["kind"], told["stable"], told["new"], told["share"]) == ("canary", 1, 2, 0.5)
        assert told["figures"]["new"]["requests"] > 0
        assert monitor.value("fastserve_rollout_share", model="m", kind="canary", stable="1", new="2") == 0.5
        serving.daemon.until(lambda: monitor.model("m")["rollout"] is None)
        assert monitor.total("fastserve_rollout_requests", model="m") == 0
    texts = [event["text"] for event in monitor.json("/status.json")["events"] if event["kind"] == "rollout"]
    assert texts == ["canary: version 2 beside 1", "canary: version 2 is promoted"]
    assert monitor.value("fastserve_log_records_total", model="m") > 0
    logged = monitor.value(":tensorflow:serving:request_log_count_total", model_name="m", status_code="OK")
    assert logged > 0


def test_a_core_that_is_adopted_brings_its_counts_along(serving: Serving, tmp_path: Path) -> None:
    install("half", tmp_path / "m/1")
    config = serving.config(table("m", tmp_path / "m"))
    serving.start(config)
    monitor = Monitor(serving.directory / "state")
    count = ":tensorflow:serving:request_count_total"
    with serving.daemon.channel() as channel:
        client = Client(channel)
        for _ in range(4):
            client.predict(request("m", {"x": [1.0]}))
    serving.daemon.until(lambda: monitor.value(count, model_name="m", status="OK") == 4)
    serving.daemon.process.kill()
    serving.daemon.process.wait(20)
    serving.start(config)
    assert monitor.get("/readyz")[0] == 200
    assert monitor.value(count, model_name="m", status="OK") == 4
    # What it had answered before is no traffic of now.
    points = monitor.json("/history.json")["points"]
    assert all(point["requests_per_s"] == 0 for point in points)
    status = monitor.json("/status.json")
    assert any(event["text"].endswith("adopted") for event in status["events"])
    assert serving.daemon.stop() == 0
