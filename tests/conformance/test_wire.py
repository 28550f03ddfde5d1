"""Requests that are no messages, odd ones that are, and methods that there are not."""

from __future__ import annotations

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"

X = b"\x12\x13\x0a\x01x\x12\x0e\x08\x01\x12\x04\x12\x02\x08\x01\x2a\x04\x00\x00\x80\x3f"  # inputs: x = [1.0]
NINE = X.replace(b"\x80\x3f", b"\x10\x41")  # x = [9.0]
HALF = b"\x0a\x0f\x0a\x0dhalf_plus_two"  # model_spec
NOPE = b"\x0a\x06\x0a\x04nope"


def answer(channel: grpc.Channel, method: str, request: bytes) -> tuple[str, str, bytes]:
    try:
        return "OK", "", channel.unary_unary(method)(request, timeout=60)
    except grpc.RpcError as error:
        return error.code().name, error.details(), b""


NO_MESSAGES = {
    "garbage": b"\xff\xff\xff\xff",
    "cut short": b"\x0a\x05\x0a\x01m",
    "a field without a value": b"\x12",
    "an endless varint": b"\x08" + b"\xff" * 11,
    "field 0": b"\x00\x01",
    "a group without an end": b"\x0b",
}


@pytest.mark.parametrize("name", NO_MESSAGES)
@pytest.mark.parametrize("method", [PREDICT, STATUS, RELOAD])
def test_what_is_no_message(channel: grpc.Channel, method: str, name: str) -> None:
    """gRPC's own answer, as every gRPC server in C++ gives it."""
    assert answer(channel, method, NO_MESSAGES[name]) == ("INTERNAL", "", b"")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        pytest.param(b"", "Missing ModelSpec", id="empty"),
        pytest.param(
            HALF + NOPE + X, "Servable not found for request: Latest(nope)", id="the spec twice: merged"
        ),
        pytest.param(NOPE + HALF + X, [2.5], id="the other way round"),
        pytest.param(HALF + X + NINE, [6.5], id="an input twice: the last one counts"),
        pytest.param(X + HALF, [2.5], id="in another order"),
        pytest.param(HALF + X + b"\xf8\x07\x01\xfa\x07\x01a", [2.5], id="fields that nobody knows"),
    ],
)
def test_odd_messages(channel: grpc.Channel, request_bytes: bytes, expected: str | list[float]) -> None:
    code, message, reply = answer(channel, PREDICT, request_bytes)
    if isinstance(expected, str):
        assert message == expected
    else:
        assert code == "OK", message
        assert list(predict_pb2.PredictResponse.FromString(reply).outputs["y"].float_val) == expected


@pytest.mark.parametrize(
    "method",
    [
        "/tensorflow.serving.PredictionService/Foo",
        "/tensorflow.serving.NoService/Predict",
        "/Predict",
        "/tensorflow.serving.PredictionService/predict",
    ],
)
def test_methods_that_there_are_not(channel: grpc.Channel, method: str) -> None:
    assert answer(channel, method, HALF) == ("UNIMPLEMENTED", "", b"")
