"""Trials of real models, in the child process that the control process starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import exported_models
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime

from fastserve.config import TensorFlow
from fastserve.environment import child_argv, child_environment, tensorflow_dir
from fastserve.protos import message

TIMEOUT_S = 180


@dataclass
class Tried:
    """What a trial wrote: its stages, its last line, and what went to stderr."""

    stages: list[dict[str, Any]]
    answer: dict[str, Any]
    status: int
    stderr: str

    @property
    def servable(self) -> dict[str, Any]:
        assert self.answer["ok"], self.answer
        servable: dict[str, Any] = self.answer["servable"]
        return servable

    def signature(self, name: str = "serving_default") -> dict[str, Any]:
        return next(s for s in self.servable["signatures"] if s["name"] == name)

    @property
    def choice(self) -> str:
        choice: str = self.answer["report"]["xla_choice"]
        return choice


def tried(path: Path, prepared: Path, data: bytes | None = None, **settings: Any) -> Tried:
    """`settings`: of the model; batching and tensorflow are tables of their own; or `data` as the request."""
    batching = {"max_batch_size": 4, **settings.pop("batching", {})}
    tensorflow = settings.pop("tensorflow", {})
    model = {"name": "m", "version": 7, "path": str(path), **settings}
    request = {"model": model, "batching": batching, "tensorflow": tensorflow, "prepared_dir": str(prepared)}
    ran = subprocess.run(
        child_argv("fastserve.control.trial"),
        input=json.dumps(request).encode() if data is None else data,
        capture_output=True,
        env=child_environment(TensorFlow()),
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines, ran.stderr.decode()
    assert all("stage" in line for line in lines[:-1])
    return Tried(lines[:-1], lines[-1], ran.returncode, ran.stderr.decode())


def model_path(name: str) -> Path:
    return exported_models() / name / "1"


def open_and_run(servable: dict[str, Any], signature: str, inputs: list[Any], *, compiled: bool) -> list[Any]:
    """As the core does: from the servable alone."""
    runtime = Runtime("tensorflow", library_dir=tensorflow_dir(TensorFlow()))
    answer: list[Any] = runtime.open(ModelSpec(servable)).run(signature, inputs, compiled=compiled)
    return answer


def test_a_name_that_is_no_input_fails_the_version(tmp_path: Path) -> None:
    found = tried(model_path("half_plus_two"), tmp_path / "p", batching={"broadcast": ["x", "user"]})
    assert found.status == 1
    assert found.answer == {
        "ok": False,
        "error": "model 'm', batching.broadcast: 'user' is no input of it; there are serving_default: x",
    }
    assert [stage["stage"] for stage in found.stages] == ["read"]  # before anything is opened


def test_a_plain_model(tmp_path: Path) -> None:
    found = tried(model_path("half_plus_two"), tmp_path / "p")
    assert found.status == 0
    assert found.stderr == ""
    assert [stage["stage"] for stage in found.stages][:4] == ["read", "library", "open", "run"]
    servable = found.servable
    assert (servable["model"], servable["version"], servable["runtime"]) == ("m", 7, "tensorflow")
    assert servable["path"] == str(model_path("half_plus_two"))
    assert servable["tags"] == ["serve"]
    assert servable["plain_config"] is None
    assert servable["batching"] == {
        "max_batch_size": 4, "batch_timeout_us": 0, "max_enqueued_batches": 10, "num_batch_threads": 0,
        "split_large_batches": True, "refuse_larger": 0, "pad_variable_length_inputs": False,
        "broadcast": [],
    }  # fmt: skip
    signature = found.signature()
    costs = signature.pop("costs_us")
    assert list(costs) == ["1", "2", "4"] and all(0 < cost < 1e6 for cost in costs.values())
    assert signature == {
        "name": "serving_default",
        "method_name": "tensorflow/serving/predict",
        "inputs": [{"alias": "x", "tensor": "serving_default_x:0", "dtype": 1, "dims": [-1]}],
        "outputs": [{"alias": "y", "tensor": "PartitionedCall:0", "dtype": 1, "dims": [-1]}],
        "compiled_outputs": None,
        "batched": True,
        "why": "",
        "compiled": False,
        "compiled_why": 'xla = "off"',
        "buckets": [1, 2, 4],
    }
    told = message("tensorflow.serving.SignatureDefMap").FromString(b64decode(servable["signature_def_map"]))
    assert told.signature_def["serving_default"].outputs["y"].name == "PartitionedCall:0"
    report = found.answer["report"]
    assert report["tensorflow_version"].startswith("2.")
    assert 0 < report["memory_bytes"] < 1 << 30
    assert set(report["seconds"]) == {"read", "library", "open", "run", "probe", "measure"}
    x = np.array([0, 1], np.float32)
    ((_, _, data),) = open_and_run(servable, "serving_default", [(1, (2,), x.tobytes())], compiled=False)
    assert np.frombuffer(data, np.float32).tolist() == [2.0, 2.5]


def test_what_may_be_batched_and_what_may_not(tmp_path: Path) -> None:
    found = tried(model_path("shapes"), tmp_path / "p")
    why = {s["name"]: s["why"] for s in found.servable["signatures"]}
    batched = {s["name"] for s in found.servable["signatures"] if s["batched"]}
    assert batched == {"rows", "ragged", "pairs", "lookup", "loop"}
    assert all((why[name] == "") == (name in batched) for name in why)
    assert why["softmax_over_batch"].startswith("its rows depend on each other: output 'y' differs in")
    assert why["running_sum"].startswith("its rows depend on each other")
    assert why["random"].startswith("its answers change from run to run")
    assert why["counter"].startswith("its answers change from run to run")
    assert why["scalar"] == "input 'x' is a scalar"
    assert why["fixed"] == "input 'x' has a first dimension of exactly 2"
    assert why["total"] == "output 'y' is a scalar"
    assert why["refuses_all"].startswith("no sample that it accepts was found; row_wise = true")
    assert "(a sample run failed: assertion failed: [too small]" in why["refuses_all"]
    assert found.signature("refuses_all")["costs_us"] == {}
    assert found.signature("scalar")["buckets"] == []
    assert list(found.signature("scalar")["costs_us"]) == ["1"]


@pytest.mark.parametrize("row_wise", [True, False])
def test_the_configuration_overrules_the_probe_but_not_shapes(tmp_path: Path, row_wise: bool) -> None:
    found = tried(model_path("shapes"), tmp_path / "p", row_wise=row_wise)
    batched = {s["name"] for s in found.servable["signatures"] if s["batched"]}
    open_first = {"rows", "ragged", "pairs", "lookup", "loop", "softmax_over_batch", "running_sum", "random",
                  "counter", "refuses_all"}  # fmt: skip
    assert batched == (open_first if row_wise else set())
    if not row_wise:
        assert found.signature("rows")["why"] == "row_wise = false"


def test_full_compiles_every_bucket_and_leaves_a_prepared_model(tmp_path: Path) -> None:
    found = tried(model_path("ranker"), tmp_path / "p", xla="full")
    signature = found.signature()
    assert signature["compiled"] and signature["compiled_why"] == ""
    assert signature["compiled_outputs"] == ["StatefulPartitionedCall__compiled:0"]
    assert list(signature["costs_us"]) == ["1", "2", "4"]
    assert found.servable["path"] == str(tmp_path / "p")
    compiled = [s["bucket"] for s in found.stages if s.get("bucket") and s["signature"] == "serving_default"]
    assert compiled == [1, 2, 4]
    unchecked = found.signature("unchecked")
    assert not unchecked["compiled"] and unchecked["compiled_outputs"] is None
    assert unchecked["compiled_why"].startswith(
        "answers differ under XLA: with -1 in input 'ids' (int64), plain TensorFlow fails (indices[0] = -1"
    )
    assert found.choice == "full"
    inputs = [(1, (2, 13), bytes(2 * 13 * 4)), (9, (2, 8), bytes(2 * 8 * 8))]
    plain, twin = (
        open_and_run(found.servable, "serving_default", inputs, compiled=c)[0][2] for c in (False, True)
    )
    np.testing.assert_allclose(np.frombuffer(plain, np.float32), np.frombuffer(twin, np.float32), rtol=1e-5)


def test_signatures_that_xla_cannot_take_run_plain_and_say_why(tmp_path: Path) -> None:
    found = tried(model_path("shapes"), tmp_path / "p", xla="full")
    why = {s["name"]: s["compiled_why"] for s in found.servable["signatures"]}
    assert {name for name, text in why.items() if not text} == {"rows", "loop"}
    assert why["lookup"] == "input 'word' is of strings, which XLA does not know"
    assert "input 'x' has the shape [?, ?]" in why["ragged"]
    assert "and this one is not: its rows depend on each other" in why["softmax_over_batch"]
    assert "no sample that it accepts was found" in why["refuses_all"]
    for signature in found.servable["signatures"]:
        assert signature["compiled"] == (not signature["compiled_why"])
        assert (signature["compiled_outputs"] is None) == bool(signature["compiled_why"])


def test_a_model_that_xla_takes_nothing_of_is_opened_where_it_lies(tmp_path: Path) -> None:
    found = tried(model_path("tensorflow1"), tmp_path / "p", xla="full")
    assert found.servable["path"] == str(model_path("tensorflow1"))
    assert not (tmp_path / "p").exists()
    assert 'xla = "cluster" compiles parts of such a graph' in found.signature()["compiled_why"]
    assert found.choice == "off"


def test_auto_keeps_what_it_chose(tmp_path: Path) -> None:
    first = tried(model_path("ranker"), tmp_path / "p", xla="auto")
    report = {s["name"]: s for s in first.answer["report"]["signatures"]}["serving_default"]
    assert list(report["plain_us"]) == list(report["compiled_us"]) == ["1", "2", "4"]
    assert first.signature()["compiled"] == (first.choice == "full")
    assert first.signature()["compiled_why"] in ("", "it is not faster under XLA")
    assert not first.signature("unchecked")["compiled"]

    off = tried(model_path("ranker_retrained"), tmp_path / "p", xla="auto", previous_choice="off")
    assert off.choice == "off"
    assert not any("bucket" in stage for stage in off.stages), "nothing is compiled"
    assert off.signature()["compiled_why"] == (
        "an earlier version of this model was faster without XLA, and the choice is kept"
    )
    full = tried(model_path("ranker_retrained"), tmp_path / "p", xla="auto", previous_choice="full")
    assert full.choice == "full"
    assert full.signature()["compiled"]
    assert not full.signature("unchecked")["compiled"], "answers that differ rule in any case"


def test_cluster_opens_two_sessions_of_the_model_as_it_is(tmp_path: Path) -> None:
    found = tried(model_path("tensorflow1"), tmp_path / "p", xla="cluster")
    servable = found.servable
    assert servable["path"] == str(model_path("tensorflow1"))
    assert servable["plain_config"] and servable["plain_config"] != servable["session_config"]
    signature = found.signature()
    assert signature["compiled"] and signature["compiled_outputs"] is None
    report = {s["name"]: s for s in found.answer["report"]["signatures"]}["serving_default"]
    # A lazy cluster would have compiled the first size alone, and the others while requests wait.
    assert all(seconds > 0.01 for seconds in report["compile_s"].values()), report

    nothing = tried(model_path("identity"), tmp_path / "p", xla="cluster")
    assert nothing.servable["plain_config"] is None, "one session is enough when nothing is compiled"


def test_the_executor_for_one_thread_is_used_where_the_graph_allows_it(tmp_path: Path) -> None:
    assert tried(model_path("shapes"), tmp_path / "p").answer["report"]["single_threaded_executor"]
    switched = tried(model_path("tensorflow1"), tmp_path / "p")
    assert not switched.answer["report"]["single_threaded_executor"]
    assert switched.signature("switched")["batched"]
    references = tried(model_path("reference_variable"), tmp_path / "p")
    assert not references.answer["report"]["single_threaded_executor"]
    assert references.signature()["outputs"][0]["dtype"] == 1
    assert references.signature()["why"] == "output 'half' is a scalar"
    on_gpu = tried(model_path("half_plus_two"), tmp_path / "p", tensorflow={"device": "gpu"})
    assert not on_gpu.answer["report"]["single_threaded_executor"]


def test_values_of_inputs_that_may_be_left_out_are_handed_on(tmp_path: Path) -> None:
    factor, x = tried(model_path("defaults"), tmp_path / "p").signature()["inputs"]
    assert b64decode(factor["default"]) == b"\x08\x01\x12\x00\x2a\x04" + np.float32(3).tobytes()
    assert "default" not in x


def test_buckets_and_settings_come_from_the_configuration(tmp_path: Path) -> None:
    found = tried(
        model_path("half_plus_two"),
        tmp_path / "p",
        batching={"max_batch_size": 6, "allowed_batch_sizes": [3, 6], "batch_timeout_us": 50},
        weight=2.5,
        reserved_executors=1,
        unknown_shapes="refuse",
    )
    assert found.signature()["buckets"] == [3, 6]
    assert list(found.signature()["costs_us"]) == ["3", "6"]
    assert found.servable["batching"]["batch_timeout_us"] == 50
    assert (found.servable["weight"], found.servable["reserved_executors"]) == (2.5, 1)
    assert found.servable["unknown_shapes"] == "refuse"


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    def error(path: Path, **settings: Any) -> str:
        found = tried(path, tmp_path / "p", **settings)
        assert found.status == 1
        assert found.answer["ok"] is False
        return str(found.answer["error"])

    assert error(tmp_path / "absent") == f"{tmp_path}/absent: no such directory"
    assert "no meta graph has the tags ['gpu']" in error(model_path("half_plus_two"), tags=["gpu"])
    broken = tmp_path / "broken"
    shutil.copytree(model_path("ranker"), broken)
    (broken / "variables" / "variables.index").write_bytes(b"garbage")
    assert error(broken).startswith("TensorFlow cannot open the model: ")
    (tmp_path / "file").touch()
    full = tried(model_path("ranker"), tmp_path / "file" / "p", xla="full")
    assert "the prepared model cannot be written" in full.answer["error"]
    assert "library_dir = /nowhere" in error(model_path("ranker"), tensorflow={"library_dir": "/nowhere"})


@pytest.mark.parametrize("data", [b"", b"{}", b"not JSON", b'{"model": 1}'])
def test_a_request_that_cannot_be_read_is_answered(tmp_path: Path, data: bytes) -> None:
    found = tried(tmp_path, tmp_path, data)
    assert found.status == 1
    assert found.answer["error"].startswith("the request cannot be read: ")


def test_stdout_belongs_to_the_lines() -> None:
    """What a library prints goes to stderr, whichever way it prints."""
    code = (
        "import os, sys\n"
        "from fastserve.control import trial\n"
        "def noisy(data, write):\n"
        "    print('printed'); os.write(1, b'written\\n'); os.system('echo from a child')\n"
        "    write({'stage': 'read'})\n"
        "    return {'ok': True}\n"
        "trial.answer = noisy\n"
        "trial.main()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, env=env, timeout=60)
    assert ran.stdout == b'{"stage":"read"}\n{"ok":true}\n'
    assert b"written" in ran.stderr and b"from a child" in ran.stderr


def test_tensorflow_is_never_imported() -> None:
    code = "import sys, fastserve.control.trial\nprint('tensorflow' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert ran.stdout.strip() == "False", ran.stderr


# ---- session settings ---------------------------------------------------------------------


def session(servable: dict[str, Any]) -> Any:
    return message("tensorflow.ConfigProto").FromString(b64decode(servable["session_config"]))


def test_further_session_settings_reach_tensorflow(tmp_path: Path) -> None:
    text = "graph_options { rewrite_options { auto_mixed_precision_onednn_bfloat16: ON } }"
    found = tried(model_path("half_plus_two"), tmp_path, tensorflow={"session_config": text})
    rewrite = session(found.servable).graph_options.rewrite_options
    assert rewrite.auto_mixed_precision_onednn_bfloat16 == rewrite.ON
    inputs = [(1, (1,), np.array([1.0], np.float32).tobytes())]
    ((_, _, data),) = open_and_run(found.servable, "serving_default", inputs, compiled=False)
    assert np.frombuffer(data, np.float32).tolist() == [2.5]


def test_a_version_may_keep_its_graph_as_it_is(tmp_path: Path) -> None:
    version = tmp_path / "1"
    shutil.copytree(model_path("half_plus_two"), version)
    config = message("tensorflow.serving.SavedModelConfig")()
    config.session_overrides.disable_meta_optimizer = True
    config.session_overrides.batch_op_rewriter_config = b""
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "saved_model_config.pb").write_bytes(config.SerializeToString())
    found = tried(version, tmp_path / "prepared")
    assert session(found.servable).graph_options.rewrite_options.disable_meta_optimizer
    assert found.answer["report"]["ignored"] == ["session_overrides.batch_op_rewriter_config"]
    (version / "assets.extra" / "saved_model_config.pb").write_bytes(b"\xff")
    assert "Unable to parse SavedModelConfig" in tried(version, tmp_path / "prepared").answer["error"]
