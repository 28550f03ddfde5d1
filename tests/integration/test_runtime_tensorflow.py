"""The TensorFlow runtime against TensorFlow: its numbers, its dtypes, its errors, its XLA.

The models and the expected answers are TensorFlow's own (export_saved_models.py); this process never
imports it.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from exported_models import exported_models
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Model, Runtime, RuntimeFailure

from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir
from fastserve.offline.session import session_config
from fastserve.offline.tensors import Tensor, from_native
from fastserve.savedmodel import Port, SavedModel, prepare, read

NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32",
    23: "uint64",
}  # fmt: skip


@cache
def runtime() -> Runtime:
    return Runtime("tensorflow", library_dir=tensorflow_dir(TensorFlow()))


def servable(saved_model: SavedModel, path: Path | str = "", **changes: Any) -> dict[str, Any]:
    def ports(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [{"alias": p.alias, "tensor": p.tensor, "dtype": p.dtype, "dims": p.dims} for p in ports]

    signatures = [
        {"name": s.name, "inputs": ports(s.inputs), "outputs": ports(s.outputs)}
        for s in saved_model.signatures
    ]
    return {
        "model": "m",
        "version": 1,
        "path": str(path or saved_model.path),
        "runtime": "tensorflow",
        "tags": list(saved_model.tags),
        "session_config": b64encode(session_config(TensorFlow(), single_threaded=False)).decode(),
        "plain_config": None,
        "signatures": signatures,
        **changes,
    }


def opened(name: str, **changes: Any) -> Model:
    saved_model = read(exported_models() / name / "1")
    return runtime().open(ModelSpec(servable(saved_model, **changes)))


def expected(name: str) -> dict[str, dict[str, dict[str, npt.NDArray[Any]]]]:
    """Inputs and answers by signature: {"score": {"in": {"x": ...}, "out": {"y": ...}}}."""
    found: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
    with np.load(exported_models() / name / "expected.npz", allow_pickle=True) as arrays:
        for key in arrays.files:
            signature, way, alias = key.split("/")
            found.setdefault(signature, {"in": {}, "out": {}})[way][alias] = arrays[key]
    return found


DTYPES = {np.dtype(name): number for number, name in NAMES.items() if name not in ("string", "bfloat16")}


def tensor(array: npt.NDArray[Any]) -> Any:
    return Tensor(7 if array.dtype == object else DTYPES[array.dtype], array).native()


def run(
    model: Model, signature: str, feeds: dict[str, npt.NDArray[Any]], **how: Any
) -> list[npt.NDArray[Any]]:
    return [
        from_native(o).array for o in model.run(signature, [tensor(feeds[a]) for a in sorted(feeds)], **how)
    ]


@pytest.mark.parametrize("name", ["half_plus_two", "ranker", "shapes", "tensorflow1", "reference_variable"])
def test_answers_are_tensorflows(name: str) -> None:
    model = opened(name)
    cases = expected(name)
    assert cases
    for signature, case in cases.items():
        answers = run(model, signature, case["in"])
        for alias, answer in zip(sorted(case["out"]), answers, strict=True):
            wanted = case["out"][alias]
            assert answer.shape == wanted.shape
            if wanted.dtype == object:
                assert list(answer.flat) == list(wanted.flat)
            else:
                assert answer.dtype == wanted.dtype
                np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", sorted(NAMES))
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 3), (1, 1, 1, 1, 1, 1, 1, 2)])
def test_every_dtype_comes_back_bit_for_bit(dtype: int, shape: tuple[int, ...]) -> None:
    model = identity()
    count = int(np.prod(shape))
    data: Any
    if dtype == 7:
        data = [b"", b"\0\xff", b"x" * 22, b"y" * 23, b"z" * 5000, "ö".encode()][:count]
    else:
        size = {4: 4, 8: 8, 16: 16, 2: 2, 1: 1}[np.dtype(_memory(dtype)).itemsize]
        data = bytes(
            np.random.default_rng(dtype).integers(0, 2 if dtype == 10 else 256, count * size, np.uint8)
        )
    assert model.run(NAMES[dtype], [(dtype, shape, data)]) == [(dtype, shape, data)]


@cache
def identity() -> Model:
    return opened("identity")


def _memory(dtype: int) -> str:
    return "uint16" if NAMES[dtype] == "bfloat16" else NAMES[dtype]


def test_errors_carry_tensorflows_code_and_words() -> None:
    ranker, shapes = opened("ranker"), opened("shapes")
    dense, ids = np.zeros((1, 13), np.float32), np.zeros((1, 8), np.int64)
    cases = [
        (
            ranker,
            "unchecked",
            {"dense": dense, "ids": ids - 1},
            "INVALID_ARGUMENT",
            "indices[0] = -1 is not in",
        ),
        (
            ranker,
            "unchecked",
            {"dense": dense, "ids": dense[:, :8]},
            "INVALID_ARGUMENT",
            "to be int64 but float",
        ),
        (
            ranker,
            "unchecked",
            {"dense": dense[:, :3], "ids": ids},
            "INVALID_ARGUMENT",
            "Matrix size-incompatible",
        ),
        (ranker, "unchecked", {"dense": dense, "ids": ids[0]}, "INVALID_ARGUMENT", ""),
        (shapes, "refuses_all", {"x": dense[0]}, "INVALID_ARGUMENT", "too small"),
    ]
    for model, signature, feeds, code, words in cases:
        with pytest.raises(RuntimeFailure) as failure:
            run(model, signature, feeds)
        assert failure.value.code == code
        assert words in failure.value.message
    # And none of them sticks.
    assert run(ranker, "unchecked", {"dense": dense, "ids": ids})


def test_an_error_names_its_node_whichever_executor_ran() -> None:
    for single_threaded in (False, True):
        config = b64encode(session_config(TensorFlow(), single_threaded=single_threaded)).decode()
        model = opened("shapes", session_config=config)
        with pytest.raises(RuntimeFailure, match=r"too small[\s\S]*\{\{node "):
            run(model, "refuses_all", {"x": np.zeros(13, np.float32)})


def test_the_signature_that_initializes_has_no_tensor_to_give() -> None:
    with pytest.raises(RuntimeFailure) as failure:
        opened("half_plus_two").run("__saved_model_init_op", [])
    assert failure.value.code == "OUT_OF_RANGE"
    assert failure.value.message == "Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0"


def test_models_that_cannot_be_opened(tmp_path: Path) -> None:
    saved_model = read(exported_models() / "half_plus_two" / "1")

    def failure(**changes: Any) -> RuntimeFailure:
        with pytest.raises(RuntimeFailure) as failed:
            runtime().open(ModelSpec(servable(saved_model, **changes)))
        return failed.value

    missing = failure(path=str(tmp_path))
    assert missing.code == "NOT_FOUND"
    assert str(tmp_path) in missing.message
    assert "gpu" in failure(tags=["gpu"]).message
    assert failure(session_config=b64encode(b"\xff").decode()).code == "INVALID_ARGUMENT"

    shutil.copytree(exported_models() / "half_plus_two" / "1", tmp_path / "cut")
    data = (tmp_path / "cut" / "saved_model.pb").read_bytes()
    (tmp_path / "cut" / "saved_model.pb").write_bytes(data[: len(data) // 2])
    assert failure(path=str(tmp_path / "cut")).message

    shutil.copytree(exported_models() / "ranker" / "1", tmp_path / "no_weights")
    (tmp_path / "no_weights" / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(RuntimeFailure):
        runtime().open(ModelSpec(servable(read(tmp_path / "no_weights"))))


def test_a_signature_that_names_what_is_not_in_the_graph_fails_alone() -> None:
    spec = servable(read(exported_models() / "half_plus_two" / "1"))
    wrong = {
        "name": "wrong",
        "inputs": [],
        "outputs": [{"alias": "y", "tensor": "no:0", "dtype": 1, "dims": None}],
    }
    model = runtime().open(ModelSpec({**spec, "signatures": [*spec["signatures"], wrong]}))
    with pytest.raises(
        RuntimeFailure, match="Tensor no:0, specified in either feed_devices or fetch_devices"
    ):
        model.run("wrong", [])
    assert run(model, "serving_default", {"x": np.zeros(1, np.float32)})[0].tolist() == [2.0]


def test_threads_run_one_model_at_once() -> None:
    model, case = opened("ranker"), expected("ranker")["serving_default"]
    with ThreadPoolExecutor(4) as pool:
        for (answer,) in pool.map(lambda _: run(model, "serving_default", case["in"]), range(40)):
            np.testing.assert_allclose(answer, case["out"]["score"], rtol=1e-5, atol=1e-6)


def test_inputs_may_go_while_outputs_share_their_memory() -> None:
    model = opened("identity")
    for _ in range(20):
        data = os.urandom(1 << 16)
        assert model.run("uint8", [(4, (1 << 16,), data)]) == [(4, (1 << 16,), data)]
        gc.collect()


# ---- XLA ----------------------------------------------------------------------------------


def with_twins(name: str, target: Path, **changes: Any) -> Model:
    source = exported_models() / name / "1"
    prepared = prepare(source, ["serve"], target)
    spec = servable(read(source), target, **changes)
    for signature in spec["signatures"]:
        twin = prepared.compiled_outputs.get(signature["name"])
        signature["compiled_outputs"] = list(twin) if twin else None
    return runtime().open(ModelSpec(spec))


@pytest.mark.parametrize("single_threaded", [False, True])
def test_a_twin_is_compiled_and_answers_alike(tmp_path: Path, single_threaded: bool) -> None:
    config = b64encode(session_config(TensorFlow(), single_threaded=single_threaded)).decode()
    model = with_twins("ranker", tmp_path / "p", session_config=config)
    case = expected("ranker")["serving_default"]
    for compiled in (False, True, False):
        (answer,) = run(model, "serving_default", case["in"], compiled=compiled)
        np.testing.assert_allclose(answer, case["out"]["score"], rtol=1e-4, atol=1e-5)
    # An id out of range tells the two apart: only TensorFlow's own kernel refuses it.
    case["in"]["ids"][0, 0] = -1
    (answer,) = run(model, "unchecked", case["in"], compiled=True)
    assert answer.shape == (33, 1)
    with pytest.raises(RuntimeFailure, match=r"indices\[0\] = -1 is not in"):
        run(model, "unchecked", case["in"])


def test_a_twin_sees_the_variables_of_the_plain_one(tmp_path: Path) -> None:
    """A counter that is raised by plain and compiled runs in turn: there is one variable."""
    model = with_twins("shapes", tmp_path / "p")
    x = {"x": np.zeros(1, np.float32)}
    counts = [
        run(model, "counter", x, compiled=compiled)[0].tolist() for compiled in (False, True, True, False)
    ]
    assert counts == [[1.0], [2.0], [3.0], [4.0]]


def test_what_xla_cannot_compile_fails_as_compiled_and_runs_as_plain(tmp_path: Path) -> None:
    model = with_twins("shapes", tmp_path / "p")
    words = {"word": np.array([b"two"], object)}
    with pytest.raises(RuntimeFailure):
        run(model, "lookup", words, compiled=True)
    assert run(model, "lookup", words)[0].tolist() == [1]


def test_a_prepared_model_has_its_assets_and_plain_errors(tmp_path: Path) -> None:
    model = with_twins("shapes", tmp_path / "p")
    for signature, case in expected("shapes").items():
        answers = run(model, signature, case["in"])
        for alias, answer in zip(sorted(case["out"]), answers, strict=True):
            if answer.dtype == object:
                assert list(answer.flat) == list(case["out"][alias].flat)
            else:
                np.testing.assert_allclose(answer, case["out"][alias], rtol=1e-5)


def test_cluster_mode_has_a_plain_session_beside(tmp_path: Path) -> None:
    """In a process of its own: whether clustering is eager is read from the environment once."""
    code = (
        "import sys; from pathlib import Path\n"
        "from integration.test_runtime_tensorflow import *\n"
        "plain = b64encode(session_config(TensorFlow(), single_threaded=True)).decode()\n"
        "both = b64encode(session_config(TensorFlow(), single_threaded=False, cluster=True)).decode()\n"
        "model = opened('ranker', session_config=both, plain_config=plain)\n"
        "case = expected('ranker')['unchecked']\n"
        "for compiled in (False, True):\n"
        "    (answer,) = run(model, 'unchecked', case['in'], compiled=compiled)\n"
        "    np.testing.assert_allclose(answer, case['out']['score'], rtol=1e-4, atol=1e-5)\n"
        "case['in']['ids'][0, 0] = -1\n"
        "run(model, 'unchecked', case['in'], compiled=True)  # XLA clamps\n"
        "try: run(model, 'unchecked', case['in'])\n"
        "except RuntimeFailure: print('plain refuses')"
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TF_XLA_FLAGS": "--tf_xla_enable_lazy_compilation=false",
    }
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert ran.stdout.strip() == "plain refuses", ran.stderr


def test_a_retrained_version_finds_what_an_earlier_one_compiled(tmp_path: Path) -> None:
    """TensorFlow's persistent cache counts function names: prepared models agree in them."""
    code = (
        "import sys; from pathlib import Path\n"
        "from integration.test_runtime_tensorflow import *\n"
        "model = with_twins(sys.argv[1], Path(sys.argv[2]) / sys.argv[1])\n"
        "case = expected(sys.argv[1])['serving_default']\n"
        "(answer,) = run(model, 'serving_default', case['in'], compiled=True)\n"
        "np.testing.assert_allclose(answer, case['out']['score'], rtol=1e-4, atol=1e-5)\n"
    )
    cache_dir = tmp_path / "cache"
    cache_dir.mkdir()
    flags = f"--tf_xla_persistent_cache_directory={cache_dir}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TF_XLA_FLAGS": flags}
    entries = []
    for name in ("ranker", "ranker_retrained"):
        command = [sys.executable, "-c", code, name, str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert ran.returncode == 0, ran.stderr
        entries.append(sorted(os.listdir(cache_dir)))
    assert len(entries[0]) == 1
    assert entries[1] == entries[0]


def test_swapping_models_in_one_process_does_not_grow(tmp_path: Path) -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    case = expected("ranker")["serving_default"]
    sizes = []
    for round_ in range(30):
        model = opened("ranker")
        run(model, "serving_default", case["in"])
        model.close()
        if round_ in (9, 29):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 8 << 20


def test_our_messages_are_tensorflows(tmp_path: Path) -> None:
    """Every message and field of protos/ has the name, number and type that TensorFlow's own has."""
    code = (
        "from google.protobuf import descriptor_pb2\n"
        "from pathlib import Path; import fastserve\n"
        "import tensorflow\n"
        "from tensorflow.core.example import example_pb2\n"
        "from tensorflow.core.protobuf import config_pb2, named_tensor_pb2, saved_model_pb2\n"
        "from google.protobuf import descriptor_pool\n"
        "pool = descriptor_pool.Default()\n"
        "data = Path(fastserve.__file__).with_name('protos.binpb').read_bytes()\n"
        "checked = 0\n"
        "def compare(message, name):\n"
        "    global checked\n"
        "    theirs = pool.FindMessageTypeByName(name)\n"
        "    if message.options.map_entry: return\n"
        "    for field in message.field:\n"
        "        other = theirs.fields_by_name[field.name]\n"
        "        same = other.number == field.number and other.is_repeated == (field.label == 3)\n"
        "        # bytes stands for a message that is not looked into, a number for an enum.\n"
        "        same &= (field.type, other.type) in ((12, 11), (5, 14)) or field.type == other.type\n"
        "        assert same, (name, field.name)\n"
        "        checked += 1\n"
        "    for inner in message.nested_type: compare(inner, f'{name}.{inner.name}')\n"
        "for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:\n"
        "    if file.package == 'tensorflow':\n"
        "        for message in file.message_type: compare(message, f'tensorflow.{message.name}')\n"
        "print(checked > 80)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "-1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert ran.stdout.strip() == "True", ran.stderr[-2000:]
