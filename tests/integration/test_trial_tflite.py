"""TFLite models from the trial to the core: what is found out about them, and what clients get."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from core_driver import PREDICT, Core, Refused, predict_reply, predict_request
from exported_models import TFLITE, exported_models
from integration.test_trial import tried

from fastserve.config import LiteRT
from fastserve.environment import litert_dir

LIBRARY = {"library_dir": litert_dir(LiteRT()), "interpreters": 4}


def tried_tflite(name: str, tmp_path: Path, **settings: Any) -> Any:
    return tried(exported_models(TFLITE) / name / "1", tmp_path / "p", runtime="litert", **settings)


def test_a_model_is_tried_as_any_other(tmp_path: Path) -> None:
    found = tried_tflite("ranker", tmp_path, batching={"max_batch_size": 64})
    servable, report = found.servable, found.answer["report"]
    assert (
        servable["runtime"] == "litert" and servable["tags"] == ["serve"] and not servable["session_config"]
    )
    assert [(s["name"], s["batched"], s["compiled"]) for s in servable["signatures"]] == [
        ("embed", True, False), ("serving_default", True, False)
    ]  # fmt: skip
    default = found.signature()
    assert default["inputs"] == [
        {"alias": "dense", "tensor": "serving_default_dense:0", "dtype": 1, "dims": [-1, 13]},
        {"alias": "sparse", "tensor": "serving_default_sparse:0", "dtype": 9, "dims": [-1, 4]},
    ]
    assert set(default["costs_us"]) == {"1", "2", "4", "8", "16", "32", "64"}
    assert report["memory_bytes"] > 0 and report["tensorflow_version"] == ""


def test_inputs_may_be_called_by_their_tensors(tmp_path: Path) -> None:
    found = tried_tflite("half_plus_two", tmp_path, tflite_aliases="tensors").signature()
    assert found["batched"] and found["inputs"][0]["alias"] == "serving_default_x"


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    found = tried_tflite("centred", tmp_path).signature()
    assert not found["batched"] and "rows" in found["why"]


def test_a_batch_of_exactly_one_is_found_to_be_a_batch(tmp_path: Path) -> None:
    found = tried_tflite("picture", tmp_path).signature()
    assert found["batched"], found["why"]
    assert found["inputs"][0]["dims"] == [-1, 16, 16, 3] and found["outputs"][0]["dims"] == [-1, 4]


def test_what_cannot_run_is_told_with_the_reason(tmp_path: Path) -> None:
    found = tried_tflite("shaped", tmp_path).signature()
    assert not found["batched"]
    assert "a sample run failed: output 'y' has" in found["why"]
    refused = tried_tflite("strings", tmp_path).answer
    assert (
        not refused["ok"]
        and "cannot be served: signature 'serving_default': 'x' is a tensor of type string"
        in (refused["error"])
    )
    missing = tried_tflite("half_plus_two/nowhere", tmp_path).answer
    assert missing["error"].endswith("model.tflite: no such file; name a directory that holds model.tflite")


def test_a_missing_library_has_a_remedy(tmp_path: Path) -> None:
    path = exported_models(TFLITE) / "half_plus_two" / "1"
    request = {
        "model": {"name": "m", "version": 1, "path": str(path), "runtime": "litert"},
        "litert": {"library_dir": str(tmp_path)},
        "prepared_dir": str(tmp_path / "p"),
    }
    answer = tried(path, tmp_path / "p", json.dumps(request).encode()).answer
    assert f"[litert] library_dir = {tmp_path}: there is no libLiteRt.so" in answer["error"]


def test_four_executors_share_a_model_and_batch_its_requests(tmp_path: Path) -> None:
    half = tried_tflite("half_plus_two", tmp_path, batching={"max_batch_size": 32}).servable
    rng = np.random.default_rng(4)
    requests = [rng.normal(size=int(rng.integers(1, 20))).astype(np.float32) for _ in range(400)]
    with Core(litert=LIBRARY, executor={"threads": 4}) as core:
        core.serve(half)
        with grpc.insecure_channel(core.address) as channel, ThreadPoolExecutor(32) as pool:
            call = channel.unary_unary(PREDICT)

            def ask(x: Any) -> list[float]:
                return predict_reply(call(predict_request("m", x.tobytes(), [len(x)]), timeout=30))

            for x, answer in zip(requests, pool.map(ask, requests), strict=True):
                np.testing.assert_allclose(answer, 0.5 * x + 2, rtol=1e-6)
        (counted,) = core.stats()["signatures"]
        assert counted["ok"] == 400 and counted["failed"] == 0 and counted["reruns"] == 0
        assert counted["rows"] == sum(map(len, requests)) and counted["batches"] < 400
        core.call("retire", model="m", version=7)
        core.call("close", model="m", version=7)


def test_a_core_without_litert_says_so_and_serves_on(tmp_path: Path) -> None:
    half = tried_tflite("half_plus_two", tmp_path).servable
    with Core() as core, pytest.raises(Refused, match="LiteRT was not installed when the core started"):
        core.call("load", servable=half)
    with Core(litert={"library_dir": "/no/such"}) as core:
        for _ in range(2):
            with pytest.raises(Refused, match="FAILED_PRECONDITION: cannot open LiteRT's library: /no/such"):
                core.call("load", servable=half)
        assert core.call("list")["servables"] == []
