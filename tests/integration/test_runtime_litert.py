"""The LiteRT runtime against TensorFlow: its numbers for models that its converter made.

The models and the expected answers are TensorFlow's own (export_tflite_models.py); this process imports
neither.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from exported_models import TFLITE, exported_models
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Model, Runtime, RuntimeFailure

from fastserve import tflite
from fastserve.config import LiteRT
from fastserve.control.child_output import severity
from fastserve.environment import litert_dir
from fastserve.errors import StartError
from fastserve.offline.spec import signature_spec
from fastserve.offline.tensors import Tensor, from_native
from fastserve.savedmodel import Signature

DTYPES = (
    "float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "bool", "complex64",
)  # fmt: skip

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime("litert", library_dir=litert_dir(LiteRT()), interpreters=4)


def path_of(name: str) -> Path:
    return exported_models(TFLITE) / name


class Opened:
    """A model of the exporter's, and what TensorFlow answers."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        directory = path_of(name)
        self.signatures = {s.name: s for s in tflite.read(directory / "1").signatures}
        self.expected = dict(np.load(directory / "expected.npz"))
        spec = {
            "model": name,
            "version": 1,
            "path": str(directory / "1"),
            "runtime": "litert",
            "tags": [],
            "session_config": "",
            "signatures": [signature_spec(s, None) for s in self.signatures.values()],
        }
        self.model: Model = runtime.open(ModelSpec(spec))

    def run(self, signature: Signature, inputs: dict[str, Array]) -> dict[str, Array]:
        fed = [Tensor(port.dtype, inputs[port.alias]).native() for port in signature.inputs]
        answers = [from_native(output).array for output in self.model.run(signature.name, fed)]
        return {port.alias: array for port, array in zip(signature.outputs, answers, strict=True)}

    def feed(self, name: str) -> dict[str, Array]:
        prefix = f"{name}/in/"
        return {
            key.removeprefix(prefix): value for key, value in self.expected.items() if key.startswith(prefix)
        }

    def check(self, name: str, rows: slice | Array | None = None) -> None:
        """The answers for some rows of what the model is known to take are TensorFlow's."""
        signature, chosen = self.signatures[name], slice(None) if rows is None else rows
        got = self.run(signature, {alias: value[chosen] for alias, value in self.feed(name).items()})
        for alias, array in got.items():
            wanted = self.expected[f"{name}/out/{alias}"][chosen]
            assert array.dtype == wanted.dtype and array.shape == wanted.shape, alias
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["half_plus_two", "ranker", "centred", "passing"])
def test_answers_are_tensorflows(runtime: Runtime, name: str) -> None:
    opened = Opened(runtime, name)
    for signature in opened.signatures:
        opened.check(signature)
    opened.model.close()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_goes_through(runtime: Runtime, name: str) -> None:
    Opened(runtime, f"dtype_{name}").check("serving_default")


def test_any_number_of_rows_in_any_order(runtime: Runtime) -> None:
    opened = Opened(runtime, "ranker")
    rng = np.random.default_rng(1)
    for rows in (1, 7, 1, 64, 3, 512, 2, 512, 1):
        opened.check("serving_default", rng.integers(0, 5, rows))
        opened.check("embed", rng.integers(0, 5, rows))


def test_threads_share_a_model(runtime: Runtime) -> None:
    """Eight threads, four interpreters, batches of all sizes: nobody gets another's answers."""
    opened = Opened(runtime, "ranker")
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                opened.check("serving_default", rng.integers(0, 5, int(rng.integers(1, 40))))
        except BaseException as error:  # for the test to see
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_outputs_are_the_callers(runtime: Runtime) -> None:
    """What a run has answered stays, whatever the next one does. Run without copies in between."""
    opened = Opened(runtime, "half_plus_two")
    (signature,) = opened.signatures.values()
    answers = [opened.run(signature, {"x": np.full(1000, i, np.float32)})["y"] for i in range(20)]
    for i, answer in enumerate(answers):
        assert (answer == 0.5 * i + 2).all()


def test_a_batch_of_one_takes_more_and_has_the_tensors_names(runtime: Runtime) -> None:
    opened = Opened(runtime, "picture")
    (signature,) = opened.signatures.values()
    assert signature.name == "serving_default" and signature.inputs[0].dims == (1, 16, 16, 3)
    images, classes = opened.expected["images"], opened.expected["classes"]
    (port,) = signature.outputs
    for rows in (1, 5, 2):
        got = opened.run(signature, {signature.inputs[0].alias: images[:rows]})[port.alias]
        np.testing.assert_allclose(got, classes[:rows], rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_say_why(runtime: Runtime) -> None:
    opened = Opened(runtime, "ranker")
    signature = opened.signatures["serving_default"]
    good = opened.feed("serving_default")

    def refused(**inputs: Array) -> RuntimeFailure:
        with pytest.raises(RuntimeFailure) as caught:
            opened.run(signature, {**good, **inputs})
        return caught.value

    assert refused(dense=np.zeros((0, 13), np.float32)).message == (
        "input 'dense' has a dimension of size 0, and TFLite needs 1 or more"
    )
    # Where shapes depend on values it is the run that finds out.
    assert refused(dense=np.zeros((5, 14), np.float32)).message.startswith(
        "Failed to invoke TfLite interpreter: "
    )
    assert refused(dense=np.zeros((1,) * 9, np.float32)).message.startswith("input 'dense' has 9 dimensions")
    opened.check("serving_default")  # a failure does not stick
    picture = Opened(runtime, "picture")
    (signature,) = picture.signatures.values()
    with pytest.raises(RuntimeFailure) as caught:
        picture.run(signature, {signature.inputs[0].alias: np.zeros((1, 16, 16, 4), np.float32)})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.message.startswith("the model does not take inputs of these shapes: ")


def test_values_that_cannot_be_say_why(runtime: Runtime) -> None:
    opened = Opened(runtime, "ranker")
    with pytest.raises(RuntimeFailure) as caught:
        opened.run(opened.signatures["embed"], {"sparse": np.full((1, 4), 1 << 20)})
    assert caught.value.code == "INTERNAL"
    assert caught.value.message.startswith("Failed to invoke TfLite interpreter: ")
    assert "gather" in caught.value.message.lower()
    opened.check("embed")


def test_an_output_that_has_another_shape_each_time_is_no_answer(runtime: Runtime) -> None:
    opened = Opened(runtime, "positive")
    (signature,) = opened.signatures.values()
    rng = np.random.default_rng(2)
    answered = 0
    for _ in range(20):
        x = rng.uniform(0, 6, (4, 3)).astype(np.float32)
        try:
            np.testing.assert_array_equal(opened.run(signature, {"x": x})["y"], x[x > 3])
            answered += 1
        except RuntimeFailure as failure:
            assert failure.code == "UNIMPLEMENTED"
    assert answered < 3


def test_an_output_that_litert_does_not_give_is_no_answer(runtime: Runtime) -> None:
    opened = Opened(runtime, "shaped")
    (signature,) = opened.signatures.values()
    with pytest.raises(RuntimeFailure) as caught:
        opened.run(signature, opened.feed("serving_default"))
    assert caught.value.code == "UNIMPLEMENTED"
    assert "output 'y' has" in caught.value.message


def test_strings_are_refused_when_they_are_read() -> None:
    with pytest.raises(
        tflite.TFLiteError, match="'x' is a tensor of type string, which LiteRT's C API gives no"
    ):
        tflite.read(path_of("strings") / "1")


def test_a_library_that_is_not_there_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match=r"\[litert\] library_dir = .*: there is no libLiteRt.so"):
        litert_dir(LiteRT(library_dir=str(tmp_path)))
    monkeypatch.setattr("fastserve.environment.installed_litert", lambda: "")
    with pytest.raises(StartError, match=r"pip install 'fastserve\[tflite\]'"):
        litert_dir(LiteRT())
    with pytest.raises(RuntimeFailure, match="cannot open LiteRT's library"):
        Runtime("litert", library_dir=str(tmp_path))


def test_little_is_written_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    opened = Opened(Runtime("litert", library_dir=litert_dir(LiteRT())), "ranker")
    for rows in (1, 5, 2):
        opened.check("serving_default", slice(0, rows))
    opened.model.close()
    # What it says once a process, of which users see nothing (child_output).
    written = capfd.readouterr().err.splitlines()
    assert all(severity(line) == "I" for line in written) and len(written) < 2
