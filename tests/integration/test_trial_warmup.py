"""Trials of versions that bring requests along, in files as TensorFlow and TensorFlow Serving write them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from core_driver import Core
from exported_models import exported_models
from fastserve._native.codec import parse_predict, view_tensor
from tensorflow_serving.apis import prediction_log_pb2

from fastserve.config import TensorFlow
from fastserve.environment import child_argv, child_environment, tensorflow_dir

TIMEOUT_S = 180
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def version(tmp_path: Path, name: str, *logs: Any) -> Path:
    """A copy of a model with records."""
    path = tmp_path / name
    shutil.copytree(exported_models() / name / "1", path)
    (path / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return path


def predict(signature: str, **inputs: Any) -> Any:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "then", signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    log.predict_log.response.outputs["y"].CopyFrom(tf.make_tensor_proto([1.0]))
    log.log_metadata.dc = "somewhere"
    return log


def ranked(rows: int, below: int = 1000) -> Any:
    rng = np.random.default_rng(rows)
    return predict(
        "",
        dense=rng.standard_normal((rows, 13)).astype(np.float32),
        ids=rng.integers(0, below, (rows, 8)),
    )


def tried(
    path: Path, prepared: Path, records: bool = True, broadcast: tuple[str, ...] = (), **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    request = {
        "model": {"name": "m", "version": 7, "path": str(path), **settings},
        "batching": {"max_batch_size": 4, "broadcast": broadcast},
        "prepared_dir": str(prepared),
        "warmup_records": records,
    }
    ran = subprocess.run(
        child_argv("fastserve.control.trial"),
        input=json.dumps(request).encode(),
        capture_output=True,
        env=child_environment(TensorFlow()),
        timeout=TIMEOUT_S,
        check=False,
    )
    *stages, answer = (json.loads(line) for line in ran.stdout.splitlines())
    return stages, answer


@pytest.mark.parametrize("xla", ["off", "full"])
def test_requests_are_run_and_left_for_the_core(tmp_path: Path, xla: str) -> None:
    path = version(tmp_path, "ranker", ranked(1), ranked(3))
    stages, answer = tried(path, tmp_path / "p", xla=xla)
    assert answer["ok"], answer
    assert {"stage": "warmup", "done": 0, "total": 2} in stages
    assert answer["report"]["warmup"] == {"requests": 2}
    file = answer["servable"]["warmup"]["requests"]
    assert Path(file).parent == tmp_path / "p"
    data = Path(file).read_bytes()
    shapes = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        request = parse_predict(data[4 : 4 + size])
        assert (request.model.name, request.model.version) == ("m", 7)
        shapes.append(view_tensor(request.inputs["ids"]).dims)
        data = data[4 + size :]
    assert shapes == [(1, 8), (3, 8)]


def test_one_row_for_all_is_left_for_the_core_as_it_was_recorded(tmp_path: Path) -> None:
    once = predict("", dense=np.ones((1, 13), np.float32), ids=np.arange(24).reshape(3, 8))
    path = version(tmp_path, "ranker", ranked(2), once)
    _, refused = tried(path, tmp_path / "p")
    assert (refused["ok"], refused["code"]) == (False, "INVALID_ARGUMENT"), "three rows beside one"
    _, answer = tried(path, tmp_path / "p", broadcast=("dense",))
    assert answer["ok"], answer
    assert answer["servable"]["batching"]["broadcast"] == ["dense"]
    data = Path(answer["servable"]["warmup"]["requests"]).read_bytes()
    (size,) = struct.unpack_from("<I", data)
    request = parse_predict(data[size + 8 :])
    assert [view_tensor(request.inputs[name]).dims for name in ("dense", "ids")] == [(1, 13), (3, 8)]
    with Core(tensorflow={"library_dir": tensorflow_dir(TensorFlow())}, environment=QUIET) as core:
        core.serve(answer["servable"])


def test_records_are_left_alone_when_the_configuration_says_so(tmp_path: Path) -> None:
    path = version(tmp_path, "ranker", predict("none"))
    _, answer = tried(path, tmp_path / "p", records=False)
    assert answer["ok"]
    assert "warmup" not in answer["servable"]


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (predict("none", x=[1.0]), 'Serving signature key "none" not found.'),
        (
            predict("", dense=[1.0]),
            "input size does not match signature: 1!=2 len({dense}) != len({dense,ids}).",
        ),
    ],
)
def test_a_record_that_is_no_request_of_the_model_fails_the_version(
    tmp_path: Path, log: Any, error: str
) -> None:
    _, answer = tried(version(tmp_path, "ranker", ranked(1), log), tmp_path / "p")
    assert not answer["ok"]
    assert answer["error"].startswith(error)
    assert not (tmp_path / "p").exists()


def test_a_run_that_fails_fails_the_version_in_tensorflows_words(tmp_path: Path) -> None:
    log = predict("unchecked", dense=np.zeros((1, 13), np.float32), ids=np.full((1, 8), 5000, np.int64))
    _, answer = tried(version(tmp_path, "ranker", ranked(1), log), tmp_path / "p")
    assert (answer["ok"], answer["code"]) == (False, "INVALID_ARGUMENT")
    assert "indices[0] = 5000 is not in [0, 1000)" in answer["error"]


def test_rows_that_the_version_brings_along_stand_in_for_made_up_ones(tmp_path: Path) -> None:
    """The signature takes no made-up sample at all."""
    rows = np.arange(2, 10, dtype=np.float32) * 1e9
    without = tried(version(tmp_path, "shapes"), tmp_path / "p")[1]
    shutil.rmtree(tmp_path / "shapes")
    _, answer = tried(version(tmp_path, "shapes", predict("refuses_all", x=rows)), tmp_path / "p")
    assert answer["ok"], answer
    why = [
        next(s["why"] for s in found["servable"]["signatures"] if s["name"] == "refuses_all")
        for found in (without, answer)
    ]
    assert why[0].startswith("no sample that it accepts was found")
    assert why[1] == ""
