"""Trials of models that take tf.Examples: what is found out by samples of the features that graphs parse."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from exported_models import INFERENCE, exported_models
from fastserve._native.codec import parse_predict, view_tensor
from integration.test_trial import tried

from fastserve.savedmodel import Feature, read

FLOAT, STRING, INT64 = 1, 7, 9
BATCHED = {
    "tensorflow1": {
        "serving_default", "classify", "labels", "scores", "regress", "column", "unlike", "wide", "flat",
        "whole",
    },
    "tensorflow2": {"serving_default", "regress"},
}  # fmt: skip


def path_of(model: str) -> Path:
    return exported_models(INFERENCE) / model / "1"


@pytest.mark.parametrize("model", sorted(BATCHED))
def test_the_features_are_those_of_the_graph(model: str) -> None:
    parsed = (Feature("ids", INT64, None), Feature("word", STRING, 1), Feature("x", FLOAT, 2))
    found = {
        signature.name: signature.inputs[0].features
        for signature in read(path_of(model)).signatures
        if signature.inputs and signature.inputs[0].alias == "inputs"
    }
    assert len(found) >= 2
    assert set(found.values()) == {parsed}


@pytest.mark.parametrize("model", sorted(BATCHED))
def test_signatures_that_take_examples_are_batched_and_warmed(model: str, tmp_path: Path) -> None:
    found = tried(path_of(model), tmp_path / "p")
    assert found.status == 0, found.answer
    signatures = found.servable["signatures"]
    assert {signature["name"] for signature in signatures if signature["batched"]} == BATCHED[model]
    assert found.answer["report"]["warmup"] == {"requests": 0}  # the version brought none along
    data = Path(found.servable["warmup"]["requests"]).read_bytes()
    warmed = set()
    while data:
        (size,) = struct.unpack_from("<I", data)
        request = parse_predict(data[4 : 4 + size])
        view = view_tensor(request.inputs["inputs"])
        assert (view.dtype, view.dims) == (STRING, (1,))
        warmed.add(request.model.signature)
        data = data[4 + size :]
    taking = {s["name"] for s in signatures if [port["alias"] for port in s["inputs"]] == ["inputs"]}
    assert warmed == taking


def test_method_names_are_told(tmp_path: Path) -> None:
    signatures = tried(path_of("tensorflow1"), tmp_path / "p").servable["signatures"]
    methods = {signature["name"]: signature["method_name"] for signature in signatures}
    assert methods["classify"] == "tensorflow/serving/classify"
    assert methods["regress"] == "tensorflow/serving/regress"
    assert methods["serving_default"] == "tensorflow/serving/predict"
    assert methods["total"] == "odd"
