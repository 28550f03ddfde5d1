"""`fastserve export` on sources that are awkward, and on those that it refuses. TensorFlow and Keras are the
oracles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from exported_models import KERAS, exported_models

from fastserve.cli import main
from fastserve.offline.records import read_requests
from fastserve.savedmodel import read
from fastserve.savedmodel.read import find_meta_graph, load

SOURCES = Path(__file__).resolve().parent.parent / "export_sources.py"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The command settles its process's environment, which here is everybody's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def export(source: object, out: Path, *args: object) -> Result:
    """A function of export_sources.py by its name, or any other source."""
    if isinstance(source, str) and source.isidentifier():
        source = f"{SOURCES}:{source}"
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, ["export", str(source), str(out), *map(str, args)])


def exported(source: object, out: Path, *args: object) -> Any:
    """What TensorFlow loads of the version that was made."""
    result = export(source, out, *args)
    assert result.exit_code == 0, result.output + repr(result.exception)
    (version,) = out.iterdir()
    return tf.saved_model.load(str(version))


def shapes(out: Path, signature: str = "serving_default") -> dict[str, str]:
    (version,) = out.iterdir()
    found = read(version).signature(signature)
    assert found is not None
    return {port.alias: port.shape for port in (*found.inputs, *found.outputs)}


# ---- what is exported ------------------------------------------------------------------------------------


def test_a_module_with_a_table_and_two_signatures(tmp_path: Path) -> None:
    made = exported("words", tmp_path, "--input", "numbers=x", "--output", "output_0=total")
    assert sorted(made.signatures) == ["serving_default", "total"]
    answer = made.signatures["serving_default"](
        word=tf.constant(["b", "c"]), x=tf.constant([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    )
    assert answer["id"].numpy().tolist() == [20, -1]
    assert answer["scaled"].numpy().tolist() == [[2.0, 3.0, 4.0], [4.0, 6.0, 8.0]]
    assert shapes(tmp_path, "total") == {"x": "[?, 3]", "total": "[?]"}
    requests = read_requests(tmp_path / "1", read(tmp_path / "1"))
    assert [(warmup.signature.name, len(warmup.inputs[0].array)) for warmup in requests] == [
        (name, rows) for rows in (1, 3, 32) for name in ("serving_default", "total")
    ]


def test_a_table_that_only_the_function_knows(tmp_path: Path) -> None:
    made = exported("closed_over", tmp_path, "--no-warmup")
    assert made.signatures["serving_default"](key=tf.constant([2, 9]))["value"].numpy().tolist() == [6, 0]
    assert not (tmp_path / "1" / "assets.extra").exists()


def test_a_saved_model_is_exported_again_under_other_names(tmp_path: Path) -> None:
    exported("words", tmp_path / "old")
    version = tmp_path / "old" / "1"
    (version / "assets.extra" / "saved_model_config.pb").touch()
    saved_model = load(version)
    total = find_meta_graph(saved_model, version, ["serve"]).signature_def["total"]
    total.method_name = "tensorflow/serving/regress"
    total.defaults["numbers"] = tf.make_tensor_proto([[1.0, 2.0, 3.0]]).SerializeToString()
    (version / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    made = exported(
        *(tmp_path / "old", tmp_path / "new", "--signature", "total=serving_default"),
        *("--input", "numbers=x", "--output", "output_0=total"),
    )
    assert list(made.signatures) == ["serving_default"]
    assert shapes(tmp_path / "new") == {"x": "[?, 3]", "total": "[?]"}
    assert made.signatures["serving_default"](x=tf.ones([2, 3]))["total"].numpy().tolist() == [9.0, 9.0]
    # What belongs to the signature, and to the version, is still there.
    signature = read(tmp_path / "new" / "1").signature("serving_default")
    assert signature is not None and signature.method_name == "tensorflow/serving/regress"
    assert signature.inputs[0].default == total.defaults["numbers"]
    assert (tmp_path / "new" / "1" / "assets.extra" / "saved_model_config.pb").exists()


def test_a_fixed_batch_that_nothing_needs_is_lifted(tmp_path: Path) -> None:
    made = exported("takes_one", tmp_path)
    assert shapes(tmp_path) == {"x": "[?, 3]", "y": "[?, 3]", "last": "[?]"}
    assert made.signatures["serving_default"](x=tf.ones([2, 3]))["y"].numpy().tolist() == [[2.0] * 3] * 2


def test_a_fixed_batch_of_a_saved_model_is_lifted(tmp_path: Path) -> None:
    class Fixed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable([[1.0], [2.0], [3.0]])

        @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32, "x")])
        def serve(self, x: Any) -> Any:
            return {"y": x * 0.0 + x[:1] + self.weights[0]}

    model = Fixed()
    tf.saved_model.save(model, str(tmp_path / "old"), signatures={"serving_default": model.serve})
    # The first row is every row's.
    result = export(tmp_path / "old", tmp_path / "new")
    assert result.exit_code == 1
    assert "fixed batch of 1, which is built into it" in " ".join(result.stderr.split())
    assert not list((tmp_path / "new").iterdir())

    class Plain(Fixed):
        @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32, "x")])
        def serve(self, x: Any) -> Any:
            return {"y": tf.nn.relu(x @ self.weights)}

    plain = Plain()
    tf.saved_model.save(plain, str(tmp_path / "plain"), signatures={"serving_default": plain.serve})
    made = exported(tmp_path / "plain", tmp_path / "lifted")
    assert shapes(tmp_path / "lifted") == {"x": "[?, 3]", "y": "[?, 1]"}
    assert made.signatures["serving_default"](x=tf.ones([2, 3]))["y"].numpy().tolist() == [[6.0], [6.0]]


def test_a_batch_size_of_keras_is_lifted(tmp_path: Path) -> None:
    result = export("fixed_keras", tmp_path)
    assert result.exit_code == 0, result.output
    assert "takes any number of rows; the source takes 4 at a time" in result.stdout
    assert shapes(tmp_path) == {"x": "[?, 3]", "y": "[?, 2]"}


def test_a_fixed_batch_is_kept_when_told_to(tmp_path: Path) -> None:
    made = exported("is_made_for_one", tmp_path, "--allow-fixed-batch")
    assert shapes(tmp_path) == {"x": "[1, 3]", "y": "[1, 3]"}
    assert made.signatures["serving_default"](x=tf.ones([1, 3]))["y"].numpy().tolist() == [[2.0] * 3]


def test_a_subclassed_model_with_the_dtype_it_is_given(tmp_path: Path) -> None:
    made = exported("subclassed", tmp_path, "--dtype", "ids=int64", "--input", "ids=items")
    assert shapes(tmp_path) == {"items": "[?, 4]", "score": "[?, 1]", "drawn": "[?, 2]"}
    answer = made.signatures["serving_default"](items=tf.zeros([3, 4], tf.int64))
    assert answer["score"].shape == [3, 1]


def test_a_subclassed_model_with_two_arguments(tmp_path: Path) -> None:
    made = exported("two_arguments", tmp_path, "--output", "output_1=of_right")
    assert shapes(tmp_path) == {
        "left": "[?, 3]",
        "right": "[?, 3]",
        "output_0": "[?, 2]",
        "of_right": "[?, 2]",
    }
    answer = made.signatures["serving_default"](left=tf.zeros([1, 3]), right=tf.ones([1, 3]))
    assert not answer["output_0"].numpy().any() and answer["of_right"].numpy().any()


def test_rows_of_the_users_own_are_compared_and_come_along(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(101, 122, dtype=np.float64).reshape(7, 3))
    result = export("picky", tmp_path / "out", "--samples", tmp_path / "rows.npz", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert "predicts as the source does at 3, 4 rows" in result.stdout
    requests = read_requests(tmp_path / "out" / "1", read(tmp_path / "out" / "1"))
    assert [len(warmup.inputs[0].array) for warmup in requests] == [4, 3]
    assert requests[1].inputs[0].array[-1].tolist() == [119.0, 120.0, 121.0]


def test_no_request_has_more_rows_than_the_largest_batch_and_no_version_too_many(tmp_path: Path) -> None:
    """Rows for one signature, made-up values for the other."""
    rows = 1001
    np.savez(tmp_path / "rows.npz", word=np.array(["a", "b", "c"])[np.arange(rows) % 3], x=np.ones((rows, 3)))
    result = export("words", tmp_path / "out", "--samples", tmp_path / "rows.npz", "--batch-size", 1)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "predicts as the source does at 1 rows" in result.stdout
    assert "1000 warm-up requests" in result.stdout
    version = tmp_path / "out" / "1"
    requests = read_requests(version, read(version))
    assert len(requests) == 1000 and requests[1].signature.name == "total" and requests[1].made_up
    assert {warmup.made_up for warmup in requests if warmup.signature.name == "serving_default"} == {False}


def test_every_row_is_compared(tmp_path: Path) -> None:
    """The last one, too, which no single batch of these sizes would reach."""
    np.savez(tmp_path / "rows.npz", x=np.array([[200.0] * 3] * 6 + [[1.0] * 3]))
    result = export("picky", tmp_path / "out", "--samples", tmp_path / "rows.npz", "--batch-size", 2)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "the source itself fails at 1 rows" in said and "or others with --samples" in said


def test_samples_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    exported("words", tmp_path / "old")
    version = tmp_path / "old" / "1"
    saved_model = load(version)
    signature = find_meta_graph(saved_model, version, ["serve"]).signature_def["serving_default"]
    signature.defaults["x"] = tf.make_tensor_proto([[1.0, 2.0, 3.0]]).SerializeToString()
    (version / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    np.savez(tmp_path / "rows.npz", word=np.array(["a", "b", "c", "a", "b"]))
    result = export(version, tmp_path / "new", "--samples", tmp_path / "rows.npz", "--batch-size", 2)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "predicts as the source does at 1, 2 rows" in result.stdout
    new = tmp_path / "new" / "1"
    requests = [w for w in read_requests(new, read(new)) if w.signature.name == "serving_default"]
    assert [len(warmup.inputs[0].array) for warmup in requests] == [2, 2, 1]
    assert {tuple(warmup.inputs[1].array.flat) for warmup in requests} == {(1.0, 2.0, 3.0)}


def test_samples_of_a_fixed_batch_are_cut_to_its_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(30.0).reshape(10, 3))
    result = export(
        "fixed_keras", tmp_path / "out", "--allow-fixed-batch", "--samples", tmp_path / "rows.npz"
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "predicts as the source does at 4 rows" in result.stdout
    requests = read_requests(tmp_path / "out" / "1", read(tmp_path / "out" / "1"))
    first = [warmup.inputs[0].array[:, 0].tolist() for warmup in requests]
    assert first == [[0.0, 3.0, 6.0, 9.0], [12.0, 15.0, 18.0, 21.0], [24.0, 27.0, 0.0, 3.0]]


def test_beside_an_input_with_rows_a_fixed_dimension_is_kept(tmp_path: Path) -> None:
    result = export("with_temperature", tmp_path)
    assert result.exit_code == 0, result.output
    assert "predicts as the source does at 1, 3, 32 rows" in result.stdout
    assert "the source takes" not in result.stdout
    assert shapes(tmp_path) == {"temperature": "[1]", "x": "[?, 3]", "y": "[?, 3]"}


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "args", "why"),
    [
        ("python_function", (), r"calls back into Python.*PyFunc\w* \(node of_numpy\).*take it as an input"),
        ("python_branch", (), r"calls back into Python.*EagerPyFunc"),
        ("numpy_layer", (), r"cannot be traced into a graph.*numpy.*TensorFlow's ops"),
        ("is_made_for_one", (), r"fixed batch of 1, (but|and).*--allow-fixed-batch"),
        ("first_row_for_all", (), r"at 3 rows the export.*output 'y'.*fixed batch of 1.*--allow-fixed-batch"),
        ("averages", (), r"any number of rows, but output 'mean' is a single value"),
        ("draws", (), r"vary from call to call.*--no-compare"),
        ("picky", (), r"the source itself refuses made-up inputs.*too small.*--samples"),
        ("ragged", (), r"output 'y' is a RaggedTensor.*to_tensor"),
        ("hidden_table", (), r"a table or another resource that hangs on nothing.*an attribute"),
        ("empty_table", (), r"fails at 1 rows where the source does not.*not initialized.*an attribute"),
        ("stateful", (), r"layer 'lstm\w*' is stateful.*stateful=False"),
        ("sparse", (), r"input 'counts' is sparse.*dense"),
        ("never_called", (), r"Subclassed has not been built.*call it once"),
        ("forgetful", (), r"Forgetful.call takes right, .*build\(self, left_shape, right_shape\)"),
        ("subclassed", ("--dtype", "idz=int64"), r"no such input; there are: ids"),
        ("nothing", (), r"returned an int; expected a Keras model"),
        ("fails", (), r"fails\(\) failed: OSError: weights.h5: no such file"),
        ("no_such", (), r"has no 'no_such'; it has .*averages"),
        ("closed_over", ("--input", "kex=k"), r"--input kex=k: there is no 'kex'; there are 'key'"),
        ("closed_over", ("--input", "key"), r"--input key: expected OLD=NEW"),
        ("closed_over", ("--input", "key=2nd"), r"'2nd' is no name"),
        ("words", ("--input", "word=x"), r"'word' and 'x' would both be called 'x'"),
        ("words", ("--signature", "all"), r"no signature 'all'; it has 'serving_default', 'total'"),
        ("words", ("--signature", "total=a", "--signature", "serving_default=a"), r"cannot both be 'a'"),
    ],
)
def test_is_refused_with_the_reason(tmp_path: Path, source: str, args: tuple[str, ...], why: str) -> None:
    result = export(source, tmp_path / "out", *args)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert re.search(why, said), said
    assert "Traceback" not in said
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/nowhere/model.keras", r"no such file; SOURCE is a .keras"),
        (str(SOURCES), r"which function of it\?"),
        ("no_such_module_here:build", r"no module 'no_such_module_here'"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, source: str, why: str) -> None:
    result = export(source, tmp_path / "out")
    assert result.exit_code == 1
    assert re.search(why, " ".join(result.stderr.split())), result.stderr


def test_a_saved_model_of_tensorflow_1(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, {"y": x * 2.0})
    result = export(tmp_path / "1", tmp_path / "out")
    assert result.exit_code == 1 and "written by TensorFlow 1" in result.stderr


def test_a_version_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "precious").touch()
    result = export("closed_over", tmp_path, "--version", 3)
    assert result.exit_code == 1 and "is there already" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["3", "precious"]


def test_keras_files_that_cannot_be_read(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2.0, name="twice")])
    model.save(tmp_path / "lambda.keras")
    model.save(tmp_path / "lambda.h5")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save_weights(tmp_path / "a.weights.h5")
    (tmp_path / "text.keras").write_text("a text")
    unregistered = exported_models(KERAS) / "unregistered.keras"
    for source, why in [
        (tmp_path / "lambda.keras", "layer 'twice' is made of a Python lambda.*--trust-lambda"),
        (tmp_path / "lambda.h5", "layer 'twice' is made of a Python lambda.*--trust-lambda"),
        (tmp_path / "a.weights.h5", "holds weights and no model"),
        (tmp_path / "text.keras", "not a zip, nor HDF5"),
        (unregistered, "Could not locate class 'Unregistered'; give the module.*--custom MODULE"),
    ]:
        result = export(source, tmp_path / "out")
        said = " ".join(result.stderr.split())
        assert result.exit_code == 1 and re.search(why, said), said
    made = exported(tmp_path / "lambda.keras", tmp_path / "trusted", "--trust-lambda")
    (name,) = made.signatures["serving_default"].structured_input_signature[1]
    assert made.signatures["serving_default"](**{name: tf.ones([1, 2])})["twice"].numpy().tolist() == [[2, 2]]
