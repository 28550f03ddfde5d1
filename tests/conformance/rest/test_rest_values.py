"""The numbers over REST are gRPC's, bit for bit."""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from conformance.rest.rest_case import fetch
from conformance.test_values import MODELS, examples, predict

DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64", "bool"]  # fmt: skip


def shown(array: Any) -> Any:
    """An input as a client writes it in JSON."""
    if array.dtype == object:
        return np.vectorize(lambda value: {"b64": b64encode(value).decode()}, otypes=[object])(array).tolist()
    return array.astype(np.float64).tolist() if array.dtype == ml_dtypes.bfloat16 else array.tolist()


def read(value: Any, like: Any) -> Any:
    """JSON's value as an array."""
    if like.dtype == object:
        flat = [v if isinstance(v, str) else b64decode(v["b64"]) for v in np.array(value, object).ravel()]
        made = np.empty(len(flat), object)
        made[:] = [v.encode() if isinstance(v, str) else v for v in flat]
        return made.reshape(like.shape)
    if like.dtype == ml_dtypes.bfloat16:
        return np.array(value, np.float64).astype(np.float32).astype(like.dtype).reshape(like.shape)
    return np.array(value, like.dtype).reshape(like.shape)


def same_bits(got: Any, expected: Any) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if expected.dtype == object:
        assert got.tolist() == expected.tolist()
    else:
        assert got.tobytes() == expected.tobytes()


def over_rest(rest: tuple[str, int], model: str, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    body = {"signature_name": signature, "inputs": {alias: shown(array) for alias, array in inputs.items()}}
    answered = fetch(rest, "POST", f"/v1/models/{model}:predict", body)
    assert answered.status == 200, answered.body
    outputs: Any = answered.value["outputs"]
    return outputs


@pytest.mark.parametrize("model", [model for model in MODELS if model != "defaults"])
def test_values_of_models(channel: grpc.Channel, rest: tuple[str, int], models: Path, model: str) -> None:
    for signature, call in examples(models / model).items():
        expected = predict(channel, model, signature, call["in"])
        outputs = over_rest(rest, model, signature, call["in"])
        if len(expected) == 1:
            outputs = {next(iter(expected)): outputs}
        assert set(outputs) == set(expected)
        for alias, array in expected.items():
            same_bits(read(outputs[alias], array), array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_of_a_dtype_comes_back(rest: tuple[str, int], dtype: str) -> None:
    """Random bits of each width, what is not finite left out."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    data = np.random.default_rng(7).bytes(4096 * kind.itemsize)
    values: Any = np.frombuffer(data, np.uint8 if dtype == "bool" else kind)
    if dtype == "bool":
        values = values % 2 == 1
    if kind.kind in "fV":
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(values.astype(np.float64))
        values = np.where(finite, values, np.array(1, kind))
    if dtype in ("int64", "uint64", "int32", "uint32"):
        info = np.iinfo(dtype)
        values = np.concatenate([values, np.array([info.min, info.max], dtype)])
    outputs = over_rest(rest, "identity", dtype, {"x": values.reshape(-1, 2)})
    same_bits(read(outputs, values.reshape(-1, 2)), values.reshape(-1, 2))


def test_rows_and_columns_agree(rest: tuple[str, int], models: Path) -> None:
    call = examples(models / "many")["serving_default"]["in"]
    rows = [dict(zip(call, each, strict=True)) for each in zip(*map(shown, call.values()), strict=True)]
    predictions = fetch(rest, "POST", "/v1/models/many:predict", {"instances": rows}).value["predictions"]
    outputs = over_rest(rest, "many", "", call)
    assert predictions == [
        dict(zip(outputs, each, strict=True)) for each in zip(*outputs.values(), strict=True)
    ]
