"""[tensorflow] op_libraries: a model with an op that is in a library of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from core_driver import PREDICT, Core, Refused, predict_reply, predict_request
from integration.test_trial import tried

from fastserve.config import TensorFlow
from fastserve.environment import check_op_libraries, tensorflow_dir
from fastserve.errors import StartError

SOURCE = Path(__file__).resolve().parents[1] / "op_library.cc"
SAVE = """
import sys, tensorflow as tf
triple = tf.load_op_library(sys.argv[1]).triple_for_test

class Triple(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        return {"y": tf.ensure_shape(triple(x), [None]) + 1.0}

module = Triple()
tf.saved_model.save(module, sys.argv[2], signatures={"serving_default": module.serve})
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built as its users build theirs."""
    path = tmp_path_factory.mktemp("ops") / "libtriple.so"
    installed = tensorflow_dir(TensorFlow())
    subprocess.run(
        [
            *(
                "g++",
                "-shared",
                "-fPIC",
                "-std=c++17",
                f"-I{installed}/include",
                str(SOURCE),
                "-o",
                str(path),
            ),
            *(f"-L{installed}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"),
        ],
        check=True,
        timeout=300,
    )
    return path


@pytest.fixture(scope="module")
def version(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with the op in it: 3 x + 1."""
    path = tmp_path_factory.mktemp("triple") / "1"
    command = [sys.executable, "-c", SAVE, str(library), str(path)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return path


def test_a_model_with_a_custom_op_is_tried_and_served(library: Path, version: Path, tmp_path: Path) -> None:
    found = tried(version, tmp_path / "p", tensorflow={"op_libraries": [str(library)]})
    assert found.signature()["batched"], found.signature()["why"]
    settings = {"library_dir": tensorflow_dir(TensorFlow()), "op_libraries": [str(library)]}
    with Core(tensorflow=settings) as core:
        core.serve(found.servable)
        with grpc.insecure_channel(core.address) as channel:
            reply = channel.unary_unary(PREDICT)(
                predict_request("m", b"\0\0\0\x41\0\0\x80\x3f", [2]), timeout=30
            )
            assert predict_reply(reply) == [25.0, 4.0]


def test_without_its_library_the_version_is_refused(version: Path, tmp_path: Path) -> None:
    answer = tried(version, tmp_path / "p").answer
    assert not answer["ok"] and "Op type not registered 'TripleForTest'" in answer["error"]


def test_a_library_that_is_none_is_named_with_tensorflows_reason(version: Path, tmp_path: Path) -> None:
    text, absent = tmp_path / "text.so", tmp_path / "absent.so"
    text.write_text("no library, but long enough to be one" * 9)
    for path, why in [(text, "invalid ELF header"), (absent, "No such file or directory")]:
        answer = tried(version, tmp_path / "p", tensorflow={"op_libraries": [str(path)]}).answer
        assert not answer["ok"]
        assert f"the op library {path} cannot be loaded: " in answer["error"] and why in answer["error"]
    servable = {"model": "m", "version": 1, "path": str(version), "runtime": "tensorflow", "tags": ["serve"]}
    settings = {"library_dir": tensorflow_dir(TensorFlow()), "op_libraries": [str(text)]}
    with Core(tensorflow=settings) as core:
        for _ in range(2):
            with pytest.raises(
                Refused, match=f"the op library {text} cannot be loaded: .*invalid ELF header"
            ):
                core.call("load", servable={**servable, "signatures": []})


def test_a_start_looks_for_the_files(library: Path, tmp_path: Path) -> None:
    check_op_libraries(TensorFlow(op_libraries=(str(library),)))
    with pytest.raises(StartError, match=rf"op_libraries: {tmp_path}/none.so: no such file that can be read"):
        check_op_libraries(TensorFlow(op_libraries=(str(library), f"{tmp_path}/none.so")))
