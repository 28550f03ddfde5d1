"""A request as bytes, and an answer as arrays: gRPC's messages and TensorFlow Serving's REST API.

Bodies are made once, before anything is measured. Knows the formats; opens no connection.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastserve.bench.requests import Array, Request
from fastserve.errors import FastServeError

PREDICT_PATH = "/tensorflow.serving.PredictionService/Predict"


class AnswerError(FastServeError):
    """A server's answer cannot be read."""


def rest_path(model: str) -> str:
    return f"/v1/models/{model}:predict"


def grpc_body(model: str, signature: str, request: Request) -> bytes:
    """A PredictRequest message, without gRPC's prefix."""
    from fastserve._native.client_codec import encode_request

    return encode_request(model, request.inputs, signature=signature)


def rest_body(signature: str, request: Request) -> bytes:
    """The JSON of a predict call, in columns, which is the shorter of the two forms."""
    inputs = {name: _plain(array) for name, array in request.inputs.items()}
    return json.dumps({"signature_name": signature, "inputs": inputs}, separators=(",", ":")).encode()


def _plain(array: Array) -> Any:
    if array.dtype == object or array.dtype.kind in "SU":
        return _strings(array.tolist())
    return array.tolist()


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(item) for item in value]
    data = value.encode() if isinstance(value, str) else value
    return {"b64": base64.b64encode(data).decode()}


def read_rest_answer(body: bytes) -> dict[str, Array]:
    """The outputs of a predict call's JSON; a single one that has no name is called ""."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise AnswerError(f"not JSON: {body[:200]!r}") from None
    if isinstance(answer, dict) and "error" in answer:
        raise AnswerError(str(answer["error"]))
    if isinstance(answer, dict) and "outputs" in answer:
        outputs = answer["outputs"]
        named: Mapping[str, Any] = outputs if isinstance(outputs, dict) else {"": outputs}
        return {name: np.array(value) for name, value in named.items()}
    raise AnswerError(f'the answer has no "outputs": {body[:200]!r}')
