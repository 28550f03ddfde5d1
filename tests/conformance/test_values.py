"""The values: every model's signatures give what TensorFlow gave in the process that exported them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conformance.case import ask
from tensorflow_serving.apis import predict_pb2

MODELS = ["half_plus_two", "versions", "many", "classes", "vocabulary", "defaults", "keras"]


def examples(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Signature -> "in" and "out" -> alias -> array."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with np.load(path / "expected.npz", allow_pickle=True) as arrays:
        for key, array in arrays.items():
            signature, way, alias = key.split("/")
            found.setdefault(signature, {"in": {}, "out": {}})[way][alias] = array
    return found


def predict(channel: grpc.Channel, model: str, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    answer = ask(channel, "Predict", request)
    assert answer.code == "OK", answer.message
    reply: Any = answer.reply
    return {alias: tf.make_ndarray(tensor) for alias, tensor in reply.outputs.items()}


def same(got: Any, expected: Any) -> None:
    if expected.dtype == object:
        assert got.tolist() == expected.tolist()
    else:
        assert got.dtype == expected.dtype and got.shape == expected.shape
        # Vector instructions differ with the number of rows: the last bit may, too.
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_values(channel: grpc.Channel, models: Path, model: str) -> None:
    for signature, call in examples(models / model).items():
        got = predict(channel, model, signature, call["in"])
        assert set(got) == set(call["out"]), signature
        for alias, expected in call["out"].items():
            same(got[alias], expected)


def test_rows_one_by_one(channel: grpc.Channel, models: Path) -> None:
    """The same answers, whatever they were batched with."""
    call = examples(models / "keras")["serving_default"]
    ((alias, rows),), ((output, expected),) = call["in"].items(), call["out"].items()
    for row, answer in zip(rows, expected, strict=True):
        same(predict(channel, "keras", "", {alias: row[None]})[output], answer[None])
