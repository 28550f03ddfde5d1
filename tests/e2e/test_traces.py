"""Traces of a real daemon: a switch of versions in the file of `fastserve trace`, and spans at a collector,
over the restart of its core and of its control process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from exported_models import INFERENCE, exported_models
from lifecycle import Serving, install, table
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from predict_client import Client, request
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
    session_service_pb2,
)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Not started yet; what a test leaves of it is ended."""
    serving = Serving(tmp_path)
    yield serving
    serving.daemon.end()


class Collector(ThreadingHTTPServer):
    """Keeps the spans of kind SERVER that it gets, and the resources that sent them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.servers: list[Any] = []
        self.resources: list[Any] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.server.servers += [s for s in scope.spans if s.kind == Span.SPAN_KIND_SERVER]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_switch_of_versions_is_in_the_picture(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    command = [sys.executable, "-m", "fastserve", "trace", "config.toml", "--seconds", "60", "-o", "t.json"]
    recording = subprocess.Popen(
        command, cwd=serving.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    serving.daemon.until(lambda: serving.daemon.admin("trace_progress")["ok"])
    with serving.daemon.channel() as channel:
        client = Client(channel)
        for _ in range(20):
            client.outputs(request("m", {"x": [1.0, 2.0]}))
        install("half", base / "2")
        serving.until_version("m", 2)
        serving.daemon.until(lambda: serving.version("m", 1)["state"] in ("END", ""))
        client.outputs(request("m", {"x": [1.0, 2.0]}))
    recording.send_signal(signal.SIGINT)
    said, errors = recording.communicate(timeout=60)
    assert recording.returncode == 0, errors
    assert "https://ui.perfetto.dev" in said
    assert not list((serving.directory / "state/recordings").glob("trace-*"))
    rows = json.loads((serving.directory / "t.json").read_text())["traceEvents"]
    lanes = {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert set(lanes.values()) >= {"fs-exec-0", "fs-exec-1", "fs-load-0", "fs-switch", "loop"}
    slices = [row for row in rows if row["ph"] == "X"]
    names = {lane: [row["name"] for row in slices if lanes[row["tid"]] == lane] for lane in lanes.values()}
    batches = [row for row in slices if row["name"] == "m:1 serving_default"]
    assert len(batches) == 20 and all(row["args"]["rows"] == 2 for row in batches)
    assert sum(row["name"] == "m:2 serving_default" for row in slices) == 1
    assert "load m:2" in names["fs-load-0"] and "close m:1" in names["fs-load-0"]
    assert "warm up" in names["fs-load-0"]
    assert "publish m:2" in names["fs-switch"] and "retire m:1" in names["fs-switch"]
    assert {"read", "deliver"} <= set(names["loop"])
    refused = serving.daemon.admin("trace_end")
    assert refused["code"] == "FAILED_PRECONDITION"


def test_spans_reach_a_collector_whatever_dies(serving: Serving, collector: Collector) -> None:
    install("half", serving.directory / "m" / "1")
    tracing = f'[tracing]\notlp_endpoint = "{collector.endpoint}"\nservice_name = "ranking"\n'
    config = serving.config(tracing + table("m", "m"))
    serving.start(config)
    traces: list[bytes] = []

    def ask() -> None:
        """One call with a parent; returns when its span has arrived."""
        traces.append(os.urandom(16))
        parent = os.urandom(8)
        header = f"00-{traces[-1].hex()}-{parent.hex()}-01"
        with serving.daemon.channel() as channel:
            stub = Client(channel).stub
            stub.Predict(
                request("m", {"x": [1.0]}),
                timeout=60,
                metadata=[("traceparent", header)],
                wait_for_ready=True,
            )
        serving.daemon.until(lambda: len(collector.servers) == len(traces), 20)
        span = collector.servers[-1]
        assert (span.trace_id, span.parent_span_id) == (traces[-1], parent)

    def spans_are_on() -> bool:
        """The memory of a new core is looked at a moment later."""
        return serving.daemon.admin("status")["tracing"] is not None

    serving.daemon.until(spans_are_on)
    ask()
    (service,) = [a.value.string_value for a in collector.resources[0].attributes if a.key == "service.name"]
    assert service == "ranking"
    assert serving.daemon.admin("status")["tracing"]["exported"] == 1

    core = serving.daemon.core_pid
    os.kill(core, signal.SIGKILL)
    serving.daemon.until(lambda: "core is back" in serving.daemon.log)
    ask()

    core = serving.daemon.core_pid
    serving.daemon.process.kill()
    serving.daemon.process.wait()
    (serving.directory / "ready.json").unlink()
    serving.start(config)
    assert serving.daemon.core_pid == core  # it is adopted, and its memory with it
    ask()
    assert len(collector.servers) == 3
    assert serving.daemon.stop() == 0


def test_every_method_of_the_engine_has_spans(serving: Serving, collector: Collector) -> None:
    root = exported_models(INFERENCE) / "tensorflow1"
    tracing = f'[tracing]\notlp_endpoint = "{collector.endpoint}"\nsample_ratio = 1.0\n'
    serving.start(serving.config(tracing + table("m", root), server="session_run = true"))
    spec = {"name": "m"}
    data = input_pb2.Input()
    for x in (1.0, 2.0, 3.0):
        one = data.example_list.examples.add()
        one.features.feature["x"].float_list.value[:] = [x, x]
    run = session_service_pb2.SessionRunRequest(model_spec=spec, fetch=["y"], tensor_name_is_alias=True)
    run.feed.add(name="x").tensor.CopyFrom(tf.make_tensor_proto([2.0]))
    with serving.daemon.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classify = classification_pb2.ClassificationRequest(
            model_spec={**spec, "signature_name": "classify"}, input=data
        )
        regress = regression_pb2.RegressionRequest(
            model_spec={**spec, "signature_name": "regress"}, input=data
        )
        both = inference_pb2.MultiInferenceRequest(input=data)
        for kind in ("classify", "regress"):
            both.tasks.add(
                model_spec={**spec, "signature_name": kind}, method_name=f"tensorflow/serving/{kind}"
            )
        stub.Classify(classify, timeout=60)
        stub.Regress(regress, timeout=60)
        stub.MultiInference(both, timeout=60)
        ask = channel.unary_unary(
            "/tensorflow.serving.SessionService/SessionRun",
            session_service_pb2.SessionRunRequest.SerializeToString,
            session_service_pb2.SessionRunResponse.FromString,
        )
        ask(run, timeout=60)
        run.fetch[:] = ["nothing"]
        with pytest.raises(grpc.RpcError):
            ask(run, timeout=60)
    assert serving.daemon.stop() == 0
    told = []
    for span in collector.servers:
        values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
        keys = ("fastserve.model", "fastserve.version", "fastserve.signature", "fastserve.rows")
        told.append((span.name.split("Service/")[1], values["rpc.grpc.status_code"], *map(values.get, keys)))
    assert sorted(told, key=str) == [
        ("Classify", 0, "m", 1, "classify", 3),
        ("MultiInference", 0, "m", 1, None, 3),
        ("Regress", 0, "m", 1, "regress", 3),
        ("SessionRun", 0, "m", 1, None, None),
        ("SessionRun", 3, "m", 1, None, None),
    ]


def test_a_stop_sends_what_is_left(serving: Serving, collector: Collector) -> None:
    install("half", serving.directory / "m" / "1")
    tracing = f'[tracing]\notlp_endpoint = "{collector.endpoint}"\nsample_ratio = 1.0\n'
    serving.start(serving.config(tracing + table("m", "m")))
    with serving.daemon.channel() as channel:
        for _ in range(5):
            Client(channel).outputs(request("m", {"x": [1.0]}))
        with pytest.raises(grpc.RpcError):
            Client(channel).outputs(request("nobody", {"x": [1.0]}))
    assert serving.daemon.stop() == 0
    assert len(collector.servers) == 6
