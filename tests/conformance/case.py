"""What a conformance test is made of: a request and the answer it must get, both in protobuf's text format.

Calls go through TensorFlow Serving's own stubs on grpcio.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

_PREDICTION = prediction_service_pb2_grpc.PredictionServiceStub
_MODEL = model_service_pb2_grpc.ModelServiceStub
_METHODS: dict[str, tuple[Any, type[Message]]] = {
    "Predict": (_PREDICTION, predict_pb2.PredictRequest),
    "Classify": (_PREDICTION, classification_pb2.ClassificationRequest),
    "Regress": (_PREDICTION, regression_pb2.RegressionRequest),
    "MultiInference": (_PREDICTION, inference_pb2.MultiInferenceRequest),
    "GetModelMetadata": (_PREDICTION, get_model_metadata_pb2.GetModelMetadataRequest),
    "GetModelStatus": (_MODEL, get_model_status_pb2.GetModelStatusRequest),
    "HandleReloadConfigRequest": (_MODEL, model_management_pb2.ReloadConfigRequest),
}


@dataclass(frozen=True)
class Case:
    """`reply` counts with OK, `message` otherwise; a message that ends with "..." says only how it begins."""

    name: str
    method: str
    request: str
    code: str = "OK"
    message: str = ""
    reply: str = ""


@dataclass(frozen=True)
class Answer:
    code: str
    message: str
    reply: Message | None


def ask(channel: grpc.Channel, method: str, request: str | Message) -> Answer:
    """One call, whatever comes of it."""
    stub, kind = _METHODS[method]
    if isinstance(request, str):
        request = text_format.Parse(request, kind())
    try:
        return Answer("OK", "", getattr(stub(channel), method)(request, timeout=60))
    except grpc.RpcError as error:
        return Answer(error.code().name, error.details(), None)


def check(channel: grpc.Channel, case: Case) -> None:
    answer = ask(channel, case.method, case.request)
    message = answer.message
    if case.message.endswith("..."):
        message = message[: len(case.message) - 3] + "..."
    assert (answer.code, message) == (case.code, case.message)
    if answer.reply is not None:
        expected = text_format.Parse(case.reply, type(answer.reply)())
        # As text, which tells values apart that are equal (0 and -0) and shows what differs.
        assert str(answer.reply) == str(expected)


def named(cases: Iterable[Case]) -> dict[str, Any]:
    """Arguments of pytest.mark.parametrize: a parameter "case", one test for each, with its name."""
    cases = list(cases)
    return {"argnames": "case", "argvalues": cases, "ids": [case.name for case in cases]}


# ---- words of requests and replies -------------------------------------------------------------


def spec(
    name: str,
    signature: str = "",
    *,
    version: int | None = None,
    label: str | None = None,
    field: str = "model_spec",
) -> str:
    """A ModelSpec."""
    inside = [f'name: "{name}"'] if name else []
    if version is not None:
        inside.append(f"version {{ value: {version} }}")
    if label is not None:
        inside.append(f'version_label: "{label}"')
    if signature:
        inside.append(f'signature_name: "{signature}"')
    return f"{field} {{ {' '.join(inside)} }} "


def tensor(shape: Iterable[int], values: str, dtype: str = "DT_FLOAT") -> str:
    """A TensorProto's text. `values` is the text of its value fields: "float_val: 1"."""
    dims = " ".join(f"dim {{ size: {size} }}" for size in shape)
    return f"dtype: {dtype} tensor_shape {{ {dims} }} {values} "


def floats(*values: float, shape: Iterable[int] | None = None) -> str:
    """A tensor of floats, one row each unless `shape` says otherwise."""
    return tensor([len(values)] if shape is None else shape, f"float_val: [{', '.join(map(str, values))}]")


def strings(*values: str, shape: Iterable[int] | None = None) -> str:
    text = " ".join(f'string_val: "{value}"' for value in values)
    return tensor([len(values)] if shape is None else shape, text, "DT_STRING")


def inputs(**tensors: str) -> str:
    return "".join(f'inputs {{ key: "{alias}" value {{ {text} }} }} ' for alias, text in tensors.items())


def outputs(**tensors: str) -> str:
    return "".join(f'outputs {{ key: "{alias}" value {{ {text} }} }} ' for alias, text in tensors.items())
