"""What the harness asks of targets: grpcio with TensorFlow Serving's messages, and the REST API's pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from stock_server import StockServer
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from fastserve.bench.adhoc import adhoc_workload, replay_workload
from fastserve.bench.ask import ask, ask_signature
from fastserve.bench.requests import Request, make_requests
from fastserve.bench.target import Target, TargetError, parse_target
from fastserve.bench.wire import AnswerError
from fastserve.bench.workload import Input, Requests

METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
X = Request({"x": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)}, 2)
PORTS = [("ids", 9, (-1,)), ("s", 7, None), ("x", 1, (-1, 2))]


def _metadata(data: bytes, context: grpc.ServicerContext) -> bytes:
    assert get_model_metadata_pb2.GetModelMetadataRequest.FromString(data).model_spec.name == "sum"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    inputs = signatures.signature_def["serving_default"].inputs
    inputs["x"].dtype = types_pb2.DT_FLOAT
    for size in (-1, 2):
        inputs["x"].tensor_shape.dim.add().size = size
    inputs["ids"].dtype = types_pb2.DT_INT64
    inputs["ids"].tensor_shape.dim.add().size = -1
    inputs["s"].dtype = types_pb2.DT_STRING
    inputs["s"].tensor_shape.unknown_rank = True
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.metadata["signature_def"].Pack(signatures)
    return bytes(reply.SerializeToString())


def test_a_grpc_target_answers_and_tells_its_signatures() -> None:
    with StockServer(methods={METADATA: _metadata}) as server:
        target = parse_target(f"stock={server.address}")
        assert ask(target, "sum", "serving_default", X)["y"].ravel().tolist() == [3.0, 7.0]
        found = ask_signature(target, "sum", "serving_default")
        assert [(port.alias, port.dtype, port.dims) for port in found.inputs] == PORTS
        made = make_requests(Requests(rows=3, inputs={"s": Input(dims=(4,))}), found)
        assert made[0].inputs["x"].shape == (3, 2) and made[0].inputs["s"].shape == (3, 4)
        with pytest.raises(
            AnswerError, match="stock: model sum has no signature other; it has serving_default"
        ):
            ask_signature(target, "sum", "other")
        with pytest.raises(AnswerError, match=r"stock: NOT_FOUND"):
            ask(target, "nobody", "serving_default", X)


def test_a_server_that_tells_nothing_is_named_with_the_remedy() -> None:
    with StockServer() as server, pytest.raises(AnswerError, match=r"UNIMPLEMENTED.*name --saved-model"):
        ask_signature(parse_target(f"stock={server.address}"), "sum", "serving_default")


class _Rest(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rows = body["inputs"]["x"]
        self._answer(
            200, {"outputs": [sum(row) for row in rows]} if self.path.endswith("sum:predict") else {}
        )

    def do_GET(self) -> None:
        x = {
            "dtype": "DT_FLOAT",
            "tensor_shape": {"dim": [{"size": "-1"}, {"size": "2"}], "unknown_rank": False},
        }
        ids = {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}], "unknown_rank": False}}
        text = {"dtype": "DT_STRING", "tensor_shape": {"dim": [], "unknown_rank": True}}
        signature = {"inputs": {"x": x, "ids": ids, "s": text}, "outputs": {}}
        page = {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}
        self._answer(200, page if self.path == "/v1/models/sum/metadata" else {"error": "no such model"})

    def _answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def rest() -> Iterator[Target]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Rest) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield parse_target(f"rest=http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_a_rest_target_answers_and_tells_its_signatures(rest: Target) -> None:
    assert ask(rest, "sum", "serving_default", X)[""].tolist() == [3.0, 7.0]
    found = ask_signature(rest, "sum", "serving_default")
    assert [(port.alias, port.dtype, port.dims) for port in found.inputs] == PORTS
    with pytest.raises(AnswerError, match="rest: tells no signatures at /v1/models/other/metadata"):
        ask_signature(rest, "other", "serving_default")
    with pytest.raises(AnswerError, match='rest: the answer has no "outputs"'):
        ask(rest, "other", "serving_default", X)


def test_nobody_there_is_told() -> None:
    gone = parse_target("gone=http://127.0.0.1:1")
    with pytest.raises(AnswerError, match="gone: "):
        ask(gone, "m", "s", X)


def test_command_lines_become_workloads() -> None:
    common: dict[str, Any] = {"saved_model": None, "signature": "s", "requests": None, "connections": 3}
    times: dict[str, Any] = {"duration_s": 2.0, "warmup_s": 0.5, "rounds": 4}
    closed = adhoc_workload(model="m", rows="2:5", rate=None, in_flight=6, slo=None, **common, **times)
    assert (closed.model, closed.requests.rows) == ("m", (2, 5))
    assert (closed.load.closed[0].connections, closed.load.closed[0].in_flight, closed.load.rounds) == (
        3,
        6,
        4,
    )
    opened = adhoc_workload(model="m", rows="1", rate=50.0, in_flight=None, slo=None, **common, **times)
    assert opened.load.open is not None and opened.load.open.rates == (50.0,)
    kept = adhoc_workload(model="m", rows="1", rate=None, in_flight=None, slo="p99.9=3ms", **common, **times)
    assert kept.load.slo is not None and kept.load.slo.objective == ("p999", 0.999, 3.0)
    assert kept.load.slo.connections == 3
    with pytest.raises(TargetError, match="--rows 5:2: expected a number of rows"):
        adhoc_workload(model="m", rows="5:2", rate=1.0, in_flight=None, slo=None, **common, **times)
    with pytest.raises(TargetError, match="--slo never: expected QUANTILE"):
        adhoc_workload(model="m", rows="1", rate=None, in_flight=None, slo="never", **common, **times)


def test_a_log_becomes_a_workload(tmp_path: Path) -> None:
    log = tmp_path / "monday.jsonl"
    found = replay_workload(
        log=log, model="m", saved_model=None, signature="s", speed=2.0, connections=4, rounds=2
    )
    assert found.name == "m monday" and found.replay is not None
    assert (found.replay.file, found.replay.speed, found.load.rounds) == (str(log), 2.0, 2)
