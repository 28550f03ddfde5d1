"""The lookup table of examples/plugins, from its loader through a trial and a core to answers over gRPC."""

from __future__ import annotations

import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, Refused
from example_plugins import installed_plugins
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime, RuntimeFailure

from fastserve.config import Model, TensorFlow
from fastserve.control.plugins import prepared_request
from fastserve.environment import child_argv, child_environment
from fastserve.errors import ModelError
from fastserve.extensions import Prepared, VersionPath, find_plugin
from fastserve.protos import message

KEYS = np.array([30, 10, 20])
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
DEFAULT = np.full(4, -1, np.float32)
MODEL = Model(name="users", base_path="/users", platform="lookup")


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed_plugins())


def table(directory: Path, vectors: Any = VECTORS) -> Path:
    """A version's directory with a table in it."""
    from fastserve_lookup import write_table

    directory.mkdir(parents=True)
    write_table(directory / "table.lookup", KEYS, vectors, DEFAULT[: vectors.shape[1]])
    return directory


def linked(directory: Path, to: Path) -> Path:
    """A version whose table is that of another."""
    directory.mkdir(parents=True)
    (directory / "table.lookup").symlink_to(to / "table.lookup")
    return directory


def prepared(directory: Path, work_dir: Path) -> Prepared:
    loader = find_plugin("fastserve.loaders", "lookup", {}, "platform")(MODEL)
    done: Prepared = loader.prepare(VersionPath(7, str(directory)), str(work_dir))
    return done


def trial(version: Prepared, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    """The last line of a trial of what a loader has prepared."""
    model = {"name": "users", "version": 7, **prepared_request(version), **settings}
    ran = subprocess.run(
        child_argv("fastserve.control.trial"),
        input=json.dumps(
            {"model": model, "batching": {"max_batch_size": 8}, "prepared_dir": str(tmp_path / "prepared")}
        ).encode(),
        capture_output=True,
        env=child_environment(TensorFlow()),
        timeout=120,
        check=False,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines, ran.stderr.decode()
    answer: dict[str, Any] = lines[-1]
    return answer


def tried(directory: Path, tmp_path: Path) -> dict[str, Any]:
    answer = trial(prepared(directory, tmp_path), tmp_path)
    assert answer["ok"], answer
    servable: dict[str, Any] = answer["servable"]
    return servable


def ask(channel: grpc.Channel, model: str, keys: list[int], shape: list[int] | None = None) -> Any:
    """The vectors that the core answers with."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = model
    tensor = request.inputs["keys"]
    tensor.dtype = 9
    for size in shape or [len(keys)]:
        tensor.tensor_shape.dim.add(size=size)
    tensor.int64_val.extend(keys)
    call = channel.unary_unary(PREDICT)
    data = call(request.SerializeToString(), timeout=PATIENCE_S, wait_for_ready=True)
    reply = message("tensorflow.serving.PredictResponse").FromString(data).outputs["vectors"]
    return np.array(reply.float_val, np.float32).reshape([dim.size for dim in reply.tensor_shape.dim])


@pytest.fixture
def core() -> Iterator[Core]:
    with Core(executor={"threads": 2}) as core:
        core.call("serve")
        yield core


def published(core: Core, servable: dict[str, Any]) -> None:
    core.call("load", servable=servable)
    core.call("publish", model=servable["model"], version=servable["version"])


# ---- the loader -----------------------------------------------------------------------------


def test_a_loader_says_what_the_table_offers(tmp_path: Path) -> None:
    version = prepared(table(tmp_path / "1"), tmp_path)
    assert version.path == str(tmp_path / "1" / "table.lookup")
    assert version.runtime == "lookup"
    assert version.resident_bytes == 64 + 3 * 8 + 4 * 16
    assert version.signatures is not None
    (signature,) = version.signatures
    assert [(p.alias, p.dtype, p.dims) for p in signature.inputs] == [("keys", 9, (-1,))]
    assert [(p.alias, p.dtype, p.dims) for p in signature.outputs] == [("vectors", 1, (-1, 4))]


def test_a_loader_says_what_is_wrong_with_a_version(tmp_path: Path) -> None:
    good = (table(tmp_path / "1") / "table.lookup").read_bytes()

    def error(data: bytes | None) -> str:
        (tmp_path / "2").mkdir(exist_ok=True)
        if data is not None:
            (tmp_path / "2" / "table.lookup").write_bytes(data)
        with pytest.raises(ModelError) as caught:
            prepared(tmp_path / "2", tmp_path)
        return str(caught.value)

    assert "a version of a lookup model is a directory with table.lookup in it" in error(None)
    assert 'does not begin with "fslookup"' in error(b"")
    assert 'does not begin with "fslookup"' in error(b"F" + good[1:])
    assert "has 151 bytes; 3 rows of 4 values take 152" in error(good[:-1])
    assert "its keys do not increase" in error(good[:64] + good[72:80] + good[64:72] + good[80:])


# ---- the trial ------------------------------------------------------------------------------


def test_a_trial_probes_and_measures_what_is_no_saved_model(tmp_path: Path) -> None:
    answer = trial(prepared(table(tmp_path / "1"), tmp_path), tmp_path, xla="full")
    assert answer["ok"], answer
    servable, report = answer["servable"], answer["report"]
    assert servable["runtime"] == "lookup"
    assert servable["runtime_library"].startswith(str(installed_plugins()))
    assert servable["path"] == str(tmp_path / "1" / "table.lookup")
    assert servable["session_config"] == ""
    assert servable["plain_config"] is None
    (signature,) = servable["signatures"]
    assert signature["batched"] and signature["why"] == ""
    assert not signature["compiled"] and signature["compiled_why"] == "XLA compiles SavedModels only"
    told = message("tensorflow.serving.SignatureDefMap").FromString(b64decode(servable["signature_def_map"]))
    assert list(told.signature_def[signature["name"]].inputs) == ["keys"]
    assert list(signature["costs_us"]) == ["1", "2", "4", "8"]
    assert all(0 <= cost < 1e5 for cost in signature["costs_us"].values())
    assert report["tensorflow_version"] == ""
    assert not report["single_threaded_executor"]
    assert not (tmp_path / "prepared").exists()


def test_a_trial_says_what_the_runtime_refuses(tmp_path: Path) -> None:
    version = prepared(table(tmp_path / "1"), tmp_path)
    other = prepared(table(tmp_path / "2", VECTORS[:, :2]), tmp_path)
    answer = trial(replace(version, signatures=other.signatures), tmp_path)
    assert answer["error"] == (
        "the runtime 'lookup' cannot open the model: a lookup table of 4 dims has one signature: an int64 "
        "input [?] and a float output [?, 4]"
    )
    assert answer["code"] == "FAILED_PRECONDITION"
    answer = trial(version, tmp_path, runtime_library="/nowhere/lookup.so")
    assert "/nowhere/lookup.so: the plug-in cannot be read: No such file" in answer["error"]
    answer = trial(version, tmp_path, signatures=None)
    assert answer["error"] == "its loader names the runtime 'lookup' and gives no signatures"


def test_a_loader_may_name_a_runtime_that_is_no_plug_in(tmp_path: Path) -> None:
    version = replace(prepared(table(tmp_path / "1"), tmp_path), runtime="null")
    answer = trial(version, tmp_path)
    assert answer["ok"], answer
    assert answer["servable"]["runtime"] == "null"
    assert "runtime_library" not in answer["servable"]


# ---- the core -------------------------------------------------------------------------------


def test_keys_are_looked_up_over_grpc(core: Core, tmp_path: Path) -> None:
    published(core, tried(table(tmp_path / "1"), tmp_path))
    with grpc.insecure_channel(core.address) as channel:
        answer = ask(channel, "users", [10, 11, 20, 30, -1])
        np.testing.assert_array_equal(answer, [VECTORS[1], DEFAULT, VECTORS[2], VECTORS[0], DEFAULT])
        assert ask(channel, "users", [], [0]).shape == (0, 4)
        # More rows than a batch takes run in pieces.
        many = ask(channel, "users", [10, 20] * 50)
        np.testing.assert_array_equal(many, np.tile(VECTORS[1:], (50, 1)))
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel, "users", [10, 20, 30, 40], [2, 2])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "keys have one dimension, not 2"
    (row,) = core.stats()["signatures"]
    assert row["batches"] > 0 and row["reruns"] == 0


def test_requests_for_a_plug_in_share_batches(tmp_path: Path) -> None:
    with Core(executor={"threads": 1}) as core, grpc.insecure_channel(core.address) as channel:
        core.call("serve")
        servable = tried(table(tmp_path / "1"), tmp_path)
        servable["batching"]["batch_timeout_us"] = 200_000
        published(core, servable)
        request = message("tensorflow.serving.PredictRequest")()
        request.model_spec.name = "users"
        request.inputs["keys"].dtype = 9
        request.inputs["keys"].tensor_shape.dim.add(size=1)
        request.inputs["keys"].int64_val.append(20)
        call = channel.unary_unary(PREDICT)
        pending = [
            call.future(request.SerializeToString(), timeout=PATIENCE_S, wait_for_ready=True)
            for _ in range(8)
        ]
        for one in pending:
            reply = message("tensorflow.serving.PredictResponse").FromString(one.result())
            assert list(reply.outputs["vectors"].float_val) == VECTORS[2].tolist()
        (row,) = core.stats()["signatures"]
        assert row["rows"] == 8
        assert row["batches"] < 8


def mapped(core: Core, path: Path) -> int:
    """How often a file is mapped into the core."""
    lines = Path(f"/proc/{core.process.pid}/maps").read_text().splitlines()
    return sum(line.endswith(str(path)) for line in lines)


def test_models_and_versions_of_one_table_share_it_in_the_core(core: Core, tmp_path: Path) -> None:
    first = table(tmp_path / "users" / "7")
    servable = tried(first, tmp_path)
    second = {**tried(linked(tmp_path / "items" / "7", first), tmp_path), "model": "items"}
    third = {**second, "version": 8}
    for one in (servable, second, third):
        published(core, one)
    file = first / "table.lookup"
    assert mapped(core, file) == 1
    with grpc.insecure_channel(core.address) as channel:
        for model in ("users", "items"):
            np.testing.assert_array_equal(ask(channel, model, [10]), VECTORS[1:2])
        for model, version in (("users", 7), ("items", 7)):
            core.call("retire", model=model, version=version)
            core.call("close", model=model, version=version)
        assert mapped(core, file) == 1
        np.testing.assert_array_equal(ask(channel, "items", [10]), VECTORS[1:2])
        core.call("retire", model="items", version=8)
        core.call("close", model="items", version=8)
    assert mapped(core, file) == 0


def test_a_core_says_why_a_plug_in_cannot_be_opened(core: Core, tmp_path: Path) -> None:
    servable = tried(table(tmp_path / "1"), tmp_path)
    with pytest.raises(Refused, match=r"NOT_FOUND: /nowhere/x.so: the plug-in cannot be read"):
        core.call("load", servable={**servable, "runtime_library": "/nowhere/x.so"})
    with pytest.raises(Refused, match=r"INVALID_ARGUMENT: .*no such runtime: 'lookup'"):
        core.call("load", servable={**servable, "runtime_library": ""})
    with pytest.raises(Refused, match="NOT_FOUND: /gone cannot be opened: No such file"):
        core.call("load", servable={**servable, "path": "/gone"})
    published(core, servable)


# ---- the bindings ---------------------------------------------------------------------------


def test_the_library_of_another_kind_is_no_runtime() -> None:
    batcher = find_plugin("fastserve.batchers", "priority", {}, "policy")()
    with pytest.raises(RuntimeFailure, match="'priority' is a batcher, and a runtime is needed") as failure:
        Runtime("priority", library=batcher)
    assert failure.value.code == "INVALID_ARGUMENT"


def test_a_plug_in_says_what_it_is_and_goes_with_its_models(tmp_path: Path) -> None:
    servable = tried(table(tmp_path / "1"), tmp_path)
    runtime = Runtime("lookup", library=servable["runtime_library"])
    assert (runtime.name, runtime.version) == ("lookup", "")
    model = runtime.open(ModelSpec(servable))
    del runtime
    keys = np.array([20, 99], np.int64)
    ((dtype, dims, data),) = model.run("serving_default", [(9, (2,), keys.tobytes())])
    assert (dtype, dims) == (1, (2, 4))
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), [*VECTORS[2], *DEFAULT])
    assert str(tmp_path) in Path(f"/proc/{os.getpid()}/maps").read_text()
    model.close()
    assert str(tmp_path) not in Path(f"/proc/{os.getpid()}/maps").read_text()
