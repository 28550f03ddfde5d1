"""ModelSpec, Runtime, Inputs and Model as Python sees them, over the null runtime."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Inputs, Model, Runtime, RuntimeFailure, dtype_name, dtype_size

FLOAT, INT32, STRING, INT64, RESOURCE = 1, 3, 7, 9, 20


def port(alias: str, dtype: int = FLOAT, dims: list[int] | None = None) -> dict[str, Any]:
    return {"alias": alias, "tensor": f"{alias}:0", "dtype": dtype, "dims": dims}


def servable(path: str = "/m/1", **changes: Any) -> dict[str, Any]:
    signature = {
        "name": "serving_default",
        "inputs": [port("a", FLOAT, [-1, 2]), port("b", STRING, [-1])],
        "outputs": [port("x", FLOAT), port("y", STRING), port("z", STRING)],
        "compiled_outputs": None,
    }
    one = {"name": "one", "inputs": [port("a")], "outputs": [port("x")]}
    return {
        "model": "m",
        "version": 3,
        "path": path,
        "runtime": "null",
        "tags": ["serve"],
        "session_config": "",
        "plain_config": None,
        "signatures": [signature, one],
        **changes,
    }


def floats(*values: float) -> bytes:
    return struct.pack(f"{len(values)}f", *values)


def opened(options: str = "") -> Model:
    return Runtime("null").open(ModelSpec(servable(f"null:{options}")))


# ---- ModelSpec ----------------------------------------------------------------------------


def test_a_spec_knows_who_it_is() -> None:
    spec = ModelSpec(servable())
    assert (spec.model, spec.version, spec.runtime) == ("m", 3, "null")
    assert spec.names == ("serving_default", "one")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"path": "/m\0/1"}, "NUL character"),
        ({"signatures": [{"name": "s", "inputs": [port("b"), port("a")], "outputs": []}]}, "order of their"),
        ({"signatures": [{"name": "s", "inputs": [], "outputs": [port("b"), port("a")]}]}, "order of their"),
        ({"signatures": [{"name": "s", "inputs": [], "outputs": [port("a", dims=[1] * 255)]}]}, "255 dim"),
        (
            {"signatures": [{"name": "s", "inputs": [], "outputs": [port("a")], "compiled_outputs": []}]},
            "1 outputs and 0 compiled",
        ),
        ({"signatures": [{"name": "s", "inputs": [], "outputs": []}] * 2}, "not distinct"),
        ({"session_config": "not base64!"}, "base64"),
        ({"version": 1 << 64}, "too (big|large)"),
        ({"model": None, "tags": [3]}, "str"),
    ],
)
def test_what_is_no_servable_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, OverflowError, TypeError), match=error):
        ModelSpec(servable(**changes))


@pytest.mark.parametrize("key", ["model", "version", "path", "tags", "signatures", "runtime"])
def test_what_is_missing_is_named(key: str) -> None:
    spec = servable()
    del spec[key]
    with pytest.raises(KeyError, match=key):
        ModelSpec(spec)


def test_a_spec_is_made_once_and_its_parts_are_its_own() -> None:
    source = servable(session_config=b64encode(b"\x10\x01").decode(), plain_config="")
    spec = ModelSpec(source)
    with pytest.raises(RuntimeError, match="once"):
        spec.__init__(source)  # type: ignore[misc]
    source.clear()
    gc.collect()
    assert len(Runtime("null").open(spec).run("one", [(FLOAT, (1,), floats(2))])) == 1


# ---- Runtime ------------------------------------------------------------------------------


def test_names_and_sizes_of_types() -> None:
    assert [dtype_name(number) for number in (1, 7, 19, 99)] == ["float", "string", "half", "unknown"]
    assert [dtype_size(number) for number in (1, 9, 18, STRING, RESOURCE, 99)] == [4, 8, 16, 0, 0, 0]


def test_what_cannot_be_opened_says_why() -> None:
    with pytest.raises(ValueError, match="there are 'tensorflow', 'litert' and 'null', and plug-ins"):
        Runtime("torch")
    with pytest.raises(RuntimeFailure, match="no option 'speed=high'") as failure:
        Runtime("null", options="speed=high")
    assert failure.value.code == "INVALID_ARGUMENT"
    with pytest.raises(RuntimeFailure, match="/nowhere/libtensorflow_framework") as failure:
        Runtime("tensorflow", library_dir="/nowhere")
    assert failure.value.code == "FAILED_PRECONDITION"
    with pytest.raises(RuntimeFailure, match="opening failed as configured"):
        opened("fail_open=1")


def test_a_runtime_says_what_it_is() -> None:
    runtime = Runtime("null")
    assert (runtime.name, runtime.version) == ("null", "")
    with pytest.raises(RuntimeError, match="once"):
        runtime.__init__("null")  # type: ignore[misc]


def test_loading_the_library_leaves_stderr_as_it_was() -> None:
    code = (
        "import os, sys\n"
        "from fastserve._native.runtime import Runtime, RuntimeFailure\n"
        "before = os.fstat(2).st_ino\n"
        "try: Runtime('tensorflow', library_dir='/nowhere')\n"
        "except RuntimeFailure: pass\n"
        "assert os.fstat(2).st_ino == before\n"
        "assert len(os.listdir('/proc/self/fd')) == 4, os.listdir('/proc/self/fd')\n"
        "os.write(2, b'still here')"
    )
    env = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, timeout=60)
    assert ran.stderr == b"still here"


# ---- running ------------------------------------------------------------------------------


def test_tensors_go_in_and_come_out() -> None:
    outputs = opened().run(
        "serving_default",
        [(FLOAT, (2, 2), floats(0, 2, -4, 100)), (STRING, (2,), [b"", b"a\0b"])],
    )
    assert outputs == [
        (FLOAT, (2, 2), floats(2, 3, 0, 52)),
        (STRING, (2,), [b"", b"a\0b"]),
        (STRING, (2,), [b"", b"a\0b"]),
    ]


def test_any_buffer_will_do() -> None:
    model = opened()
    data = bytearray(floats(2, 4))
    for buffer in (data, memoryview(data), memoryview(data).cast("f", (1, 2))):
        assert model.run("one", [(FLOAT, [1, 2], buffer)]) == [(FLOAT, (1, 2), floats(3, 4))]
    assert model.run("one", [(FLOAT, (), floats(2))]) == [(FLOAT, (), floats(3))]
    assert model.run("one", [(FLOAT, (0, 5), b"")]) == [(FLOAT, (0, 5), b"")]


def test_inputs_are_made_once_and_run_often() -> None:
    model, inputs = opened(), Inputs([(FLOAT, (1,), floats(2))])
    assert inputs.count == 1
    first = model.run("one", inputs)
    assert model.run("one", inputs, compiled=True) == first == [(FLOAT, (1,), floats(3))]
    with pytest.raises(RuntimeError, match="once"):
        inputs.__init__([])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        ((FLOAT, (2,), b"1234567"), "takes 8 bytes, not 7"),
        ((FLOAT, (-1,), b""), "no tensor has the shape"),
        ((FLOAT, (1 << 30, 1 << 30, 1 << 30), b""), "no tensor has the shape"),
        ((FLOAT, (1,) * 255, b"1234"), "at most 254"),
        ((RESOURCE, (), b""), "cannot be fed"),
        ((STRING, (2,), [b"a"]), "holds 2 strings, not 1"),
        ((99, (), b""), "type unknown cannot be fed"),
    ],
)
def test_tensors_that_are_none_are_refused(tensor: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Inputs([tensor])


def test_wrong_signatures_and_counts_are_refused() -> None:
    model = opened()
    with pytest.raises(ValueError):
        model.run("absent", [])
    with pytest.raises(ValueError, match="'serving_default' takes 2 inputs, not 1"):
        model.run("serving_default", [(FLOAT, (1,), floats(1))])
    with pytest.raises(TypeError, match=r"opened by Runtime\.open"):
        Model()


def test_a_failed_run_has_a_code_and_a_message() -> None:
    model = opened("fail_nan=1")
    with pytest.raises(RuntimeFailure) as failure:
        model.run("one", [(FLOAT, (1,), floats(float("nan")))])
    assert (failure.value.code, failure.value.message) == ("INVALID_ARGUMENT", "input 'a' has a NaN")
    assert str(failure.value) == "INVALID_ARGUMENT: input 'a' has a NaN"
    with pytest.raises(RuntimeFailure):
        model.time("one", [(FLOAT, (1,), floats(float("nan")))], repeats=3)
    assert model.run("one", [(FLOAT, (1,), floats(0))])


def test_the_compiled_variant_reaches_the_runtime() -> None:
    model = opened("compiled_rows=1:4")
    inputs = [(FLOAT, (2,), floats(1, 2))]
    assert model.run("one", inputs)
    with pytest.raises(RuntimeFailure, match="2 rows were not compiled"):
        model.run("one", inputs, compiled=True)


def test_times_are_of_the_runs_alone() -> None:
    took = opened("run_us=3000").time("one", [(FLOAT, (1,), floats(1))], repeats=3)
    assert len(took) == 3
    assert all(3000 <= us < 1_000_000 for us in took)
    assert opened().time("one", [(FLOAT, (1,), floats(1))], repeats=0) == []


def test_runs_release_the_gil() -> None:
    model = opened("run_us=300000")
    ran = threading.Thread(target=model.run, args=("one", [(FLOAT, (1,), floats(1))]))
    ran.start()
    turns, begin = 0, time.monotonic()
    while ran.is_alive() and time.monotonic() - begin < 10:
        turns += 1
        time.sleep(0.001)
    ran.join()
    assert turns > 20


def test_threads_share_a_model_and_their_inputs() -> None:
    model, inputs = opened(), Inputs([(FLOAT, (3,), floats(0, 2, 4))])
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: model.run("one", inputs), range(200)))
    assert answers == [[(FLOAT, (3,), floats(2, 3, 4))]] * 200


# ---- closing ------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_running_after_is_not() -> None:
    model = opened()
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model.run("one", [(FLOAT, (1,), floats(1))])


def test_a_model_is_not_closed_under_a_run() -> None:
    model = opened("run_us=300000")
    ran = threading.Thread(target=model.run, args=("one", [(FLOAT, (1,), floats(1))]))
    ran.start()
    time.sleep(0.1)
    with pytest.raises(RuntimeError, match="running"):
        model.close()
    ran.join()
    model.close()


def test_a_model_keeps_its_runtime_and_its_spec() -> None:
    model = opened("op=echo")
    gc.collect()
    assert model.runtime.name == "null"
    assert model.spec.model == "m"
    assert model.run("one", [(FLOAT, (1,), floats(7))]) == [(FLOAT, (1,), floats(7))]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, fastserve._native.runtime, fastserve._native.model_spec\n"
        "heavy = {'numpy', 'tensorflow', 'google.protobuf', 'msgspec', 'click', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
