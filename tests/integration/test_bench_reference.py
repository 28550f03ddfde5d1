"""The servers that FastServe is compared with answer as TensorFlow does."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from exported_models import exported_models
from tensorflow_serving.apis import predict_pb2

from fastserve.bench.reference_flask import make_app
from fastserve.bench.reference_grpc_aio import PredictionService
from fastserve.bench.requests import Request
from fastserve.bench.wire import grpc_body, read_rest_answer, rest_body

RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def ranker() -> Path:
    return exported_models() / "ranker" / "1"


@pytest.fixture(scope="module")
def request_(ranker: Path) -> Request:
    specs = tf.saved_model.load(str(ranker)).signatures["serving_default"].structured_input_signature[1]
    dense, ids = (int(specs[name].shape[1]) for name in ("dense", "ids"))
    inputs: dict[str, Any] = {
        "dense": RNG.random((3, dense), np.float32),
        "ids": RNG.integers(0, 10, (3, ids)),
    }
    return Request(inputs, 3)


def expected(ranker: Path, request: Request) -> dict[str, Any]:
    loaded = tf.saved_model.load(str(ranker))
    run = loaded.signatures["serving_default"]
    return {
        name: value.numpy()
        for name, value in run(**{k: tf.constant(v) for k, v in request.inputs.items()}).items()
    }


class Refused(Exception):
    pass


class Context:
    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Refused(f"{code.name}: {details}")


def test_the_grpc_server_answers_as_tensorflow(ranker: Path, request_: Request) -> None:
    with ThreadPoolExecutor(1) as pool:
        service = PredictionService("ranker", str(ranker), "serving_default", pool)

        def ask(body: bytes) -> Any:
            return asyncio.run(service.Predict(predict_pb2.PredictRequest.FromString(body), Context()))

        reply = ask(grpc_body("ranker", "serving_default", request_))
        for name, value in expected(ranker, request_).items():
            np.testing.assert_allclose(tf.make_ndarray(reply.outputs[name]), value, rtol=1e-5)
        with pytest.raises(Refused, match="NOT_FOUND: no model other"):
            ask(grpc_body("other", "serving_default", request_))
        with pytest.raises(Refused, match=r"INVALID_ARGUMENT: expected inputs \['dense', 'ids'\]"):
            ask(grpc_body("ranker", "serving_default", Request({"ids": request_.inputs["ids"]}, 3)))
        wrong = Request({**request_.inputs, "dense": np.ones((3, 1), np.float32)}, 3)
        with pytest.raises(Refused, match="INVALID_ARGUMENT"):
            ask(grpc_body("ranker", "serving_default", wrong))


def test_the_flask_server_answers_as_tensorflow(ranker: Path, request_: Request) -> None:
    client = make_app("ranker", str(ranker), "serving_default").test_client()
    wanted = expected(ranker, request_)
    body = rest_body("serving_default", request_)
    done = client.post("/v1/models/ranker:predict", data=body, content_type="application/json")
    assert done.status_code == 200
    found = read_rest_answer(done.data)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name] if name in found else found[""], value, rtol=1e-5)
    rows = [{name: array[i].tolist() for name, array in request_.inputs.items()} for i in range(3)]
    predictions = client.post("/v1/models/ranker:predict", json={"instances": rows}).get_json()["predictions"]
    for i, row in enumerate(predictions):
        for name, value in wanted.items():
            np.testing.assert_allclose(row[name] if isinstance(row, dict) else row, value[i], rtol=1e-5)
    assert client.post("/v1/models/ranker:predict", json={"inputs": {"ids": [[1]]}}).status_code == 400
    assert client.post("/v1/models/other:predict", json={"inputs": {}}).status_code == 404
    assert client.get("/v1/models/ranker").get_json()["model_version_status"][0]["state"] == "AVAILABLE"


def test_the_flask_server_takes_strings() -> None:
    client = make_app("shapes", str(exported_models() / "shapes" / "1"), "lookup").test_client()
    words = [{"b64": base64.b64encode(word).decode()} for word in (b"a", b"zebra")]
    columns = client.post("/v1/models/shapes:predict", json={"inputs": {"word": words}})
    rows = client.post("/v1/models/shapes:predict", json={"instances": words})
    assert columns.status_code == rows.status_code == 200
    outputs = columns.get_json()["outputs"]
    assert outputs["upper"] == ["A", "ZEBRA"]
    assert rows.get_json()["predictions"] == [
        {"id": outputs["id"][0], "upper": "A"},
        {"id": outputs["id"][1], "upper": "ZEBRA"},
    ]
