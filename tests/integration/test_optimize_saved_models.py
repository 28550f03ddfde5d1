"""SavedModels taken apart and put together: signatures, tables, assets and extras as they were, for every
loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime
from optimize_graphs import export_v1, in_session, loaded, repackaged

from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir
from fastserve.offline.session import session_config
from fastserve.offline.spec import signature_spec
from fastserve.offline.tensors import Tensor, from_native
from fastserve.savedmodel import prepare, read
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing.source import read_source

RNG = np.random.default_rng(2)
DTYPES = {1: np.float32, 3: np.int32, 7: object, 9: np.int64}


def natively(path: Path, inputs: dict[str, Any], signature: str = "serving_default") -> dict[str, Any]:
    """By the daemon's runtime."""
    settings = TensorFlow()
    described = read(path).signature(signature)
    assert described is not None
    import base64

    spec = {
        "model": "m",
        "version": 1,
        "path": str(path),
        "runtime": "tensorflow",
        "tags": ["serve"],
        "session_config": base64.b64encode(session_config(settings, single_threaded=True)).decode(),
        "plain_config": None,
        "signatures": [signature_spec(described, None)],
    }
    model = Runtime("tensorflow", library_dir=tensorflow_dir(settings)).open(ModelSpec(spec))
    fed = [
        Tensor(port.dtype, inputs[port.alias].astype(DTYPES[port.dtype])).native()
        for port in described.inputs
    ]
    answers = [from_native(output).array for output in model.run(signature, fed)]
    model.close()
    return dict(zip([port.alias for port in described.outputs], answers, strict=True))


def assert_equal(
    source: Path, target: Path, inputs: dict[str, Any], signature: str = "serving_default"
) -> None:
    right = in_session(source, inputs, signature)
    for load in (loaded, in_session, natively):
        made = load(target, inputs, signature)
        assert made.keys() == right.keys()
        for alias, value in right.items():
            if value.dtype == object:
                assert made[alias].tolist() == value.tolist()
            else:
                np.testing.assert_allclose(made[alias], value, rtol=1e-5, atol=1e-6)


def described(path: Path) -> list[Any]:
    """Signatures without the names of tensors."""
    return [
        (
            s.name,
            s.method_name,
            *[[(p.alias, p.dtype, p.dims, p.default) for p in ports] for ports in (s.inputs, s.outputs)],
        )
        for s in read(path).signatures
        if not s.name.startswith("__saved_model")
    ]


class Words(tf.Module):  # type: ignore[misc]
    """Vocabularies from a file and from constants, a table that is filled and saved, and two signatures."""

    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        vocabulary.write_text("oslo\nbergen\nmoss\n")
        self.from_file = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                str(vocabulary),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            ),
            num_oov_buckets=2,
        )
        self.constants = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer([b"oslo", b"moss"], np.array([10, 20], np.int64)), -1
        )
        self.filled = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
        self.filled.insert(tf.constant([b"bergen"]), tf.constant([7], tf.int64))
        self.weights = tf.Variable(RNG.standard_normal((5, 3)).astype(np.float32))
        self.unused = tf.Variable(np.zeros(100_000, np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def embed(self, word):  # type: ignore[no-untyped-def]
        return {
            "embedding": tf.gather(self.weights, self.from_file.lookup(word)),
            "word": tf.strings.upper(word),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def number(self, word):  # type: ignore[no-untyped-def]
        return {"number": self.constants.lookup(word) + self.filled.lookup(word)}


WORDS = {"word": np.array([b"oslo", b"bergen", b"moss", b"nowhere"], object)}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    module = Words(folder / "vocabulary")
    tf.saved_model.save(
        module, str(folder / "model"), signatures={"serving_default": module.embed, "number": module.number}
    )
    (folder / "model" / "assets.extra").mkdir()
    (folder / "model" / "assets.extra" / "labels.txt").write_text("a\nb\n")
    (folder / "vocabulary").unlink()  # the model's own copy must do
    return folder / "model"


def test_tables_assets_and_extras_are_carried_over(words: Path, tmp_path: Path) -> None:
    made = repackaged(words, tmp_path / "made")
    assert described(made) == described(words)
    assert_equal(words, made, WORDS)
    assert_equal(words, made, WORDS, "number")
    assert (made / "assets" / "vocabulary").read_text() == "oslo\nbergen\nmoss\n"
    assert (made / "assets.extra" / "labels.txt").read_text() == "a\nb\n"


def test_variables_that_nobody_reads_are_left_out(tmp_path: Path) -> None:
    module = tf.Module()
    module.used, module.unused = tf.Variable(tf.ones([600, 600])), tf.Variable(tf.ones([1000, 1000]))
    module.f = tf.function(
        lambda x: tf.matmul(x, module.used),
        input_signature=[tf.TensorSpec([None, 600], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.f)
    made = repackaged(tmp_path / "model", tmp_path / "made")
    there = tf.train.list_variables(str(made / "variables" / "variables"))
    assert [shape for _, shape in there] == [[600, 600]]
    assert_equal(tmp_path / "model", made, {"x": np.ones((2, 600), np.float32)})


def test_a_model_without_variables(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.f)
    made = repackaged(tmp_path / "model", tmp_path / "made")
    assert_equal(tmp_path / "model", made, {"x": np.array([1.0, 2.5], np.float32)})


def test_one_signature_alone(words: Path, tmp_path: Path) -> None:
    made = repackaged(words, tmp_path / "made", signatures=("number",))
    assert [name for name, *_ in described(made)] == ["number"]
    assert_equal(words, made, WORDS, "number")


def test_defaults_of_inputs_stay(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x, scale: x * scale,
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([], tf.float32, name="scale"),
        ],
    )
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.f)
    file = tmp_path / "model" / "saved_model.pb"
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    default = tf.make_tensor_proto(np.float32(3.0))
    saved_model.meta_graphs[0].signature_def["serving_default"].defaults["scale"].CopyFrom(default)
    file.write_bytes(saved_model.SerializeToString())
    made = repackaged(tmp_path / "model", tmp_path / "made")
    assert described(made) == described(tmp_path / "model")
    assert any(port[3] is not None for port in described(made)[0][2])


def test_xla_finds_the_signatures_function(tmp_path: Path) -> None:
    """The result has one function for each signature, as an export of TensorFlow 2 has."""
    module = tf.Module()
    module.w = tf.Variable(tf.ones([4, 4]))
    module.f = tf.function(
        lambda x: tf.matmul(x, module.w), input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.f)
    made = repackaged(tmp_path / "model", tmp_path / "made")
    prepared = prepare(made, ("serve",), tmp_path / "prepared")
    assert "serving_default" in prepared.compiled_outputs and not prepared.refused


def test_the_result_can_be_optimized_again(words: Path, tmp_path: Path) -> None:
    once = repackaged(words, tmp_path / "once")
    twice = repackaged(once, tmp_path / "twice")
    assert described(twice) == described(words)
    assert_equal(words, twice, WORDS, "number")


# ---- TensorFlow 1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", [True, False])
def test_an_export_of_tensorflow_1(tmp_path: Path, resource: bool) -> None:
    def build() -> Any:
        x = tf.compat.v1.placeholder(tf.int64, [None], "x")
        table = tf.compat.v1.get_variable("table", [6, 3], initializer=tf.random_normal_initializer())
        large = tf.compat.v1.get_variable("large", [3, 700], initializer=tf.random_normal_initializer())
        keys = tf.constant([1, 2, 3], tf.int64)
        found = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, keys + 2), 0).lookup(x)
        return {"x": x}, {
            "y": tf.matmul(tf.one_hot(found, 6), table),
            "z": tf.matmul(tf.gather(table, found), large),
        }

    model = export_v1(tmp_path / "model", build, resource=resource)
    made = repackaged(model, tmp_path / "made", freeze_bytes=1000)
    assert described(made) == described(model)
    assert_equal(model, made, {"x": np.array([1, 2, 3, 9])})


def of_a_default() -> Any:
    return tf.compat.v1.placeholder_with_default(tf.constant([7.0, 8.0]), [None], "x")


def computed() -> Any:
    return tf.strings.to_number(tf.compat.v1.placeholder(tf.string, [None], "text"), name="x")


def called() -> Any:
    """A function's first output, of which the graph says no dtype."""
    text = tf.compat.v1.placeholder(tf.string, [None], "text")
    return tf.function(tf.strings.to_number, input_signature=[tf.TensorSpec([None], tf.string)])(text)


@pytest.mark.parametrize("x", [of_a_default, computed, called])
def test_an_input_that_the_graph_computes(tmp_path: Path, x: Any) -> None:
    """TensorFlow 1 feeds any tensor."""

    def build() -> Any:
        fed = x()
        kept = tf.compat.v1.placeholder_with_default(tf.constant(0.5), [], "kept")
        weights = tf.compat.v1.get_variable("weights", [3], initializer=tf.random_normal_initializer())
        return {"x": fed}, {"y": (fed[:, None] + 1.0) * weights * kept}

    model = export_v1(tmp_path / "model", build)
    made = repackaged(model, tmp_path / "made")
    assert described(made) == described(model)
    assert_equal(model, made, {"x": np.array([1.0, 2.0, 3.0], np.float32)})


def test_an_input_that_is_one_of_several_outputs_is_refused(tmp_path: Path) -> None:
    def build() -> Any:
        whole = tf.compat.v1.placeholder(tf.float32, [None, 4], "whole")
        first, second = tf.split(whole, 2, axis=1)
        return {"second": second}, {"y": first + second}

    model = export_v1(tmp_path / "model", build)
    with pytest.raises(WorkshopError, match="one of the outputs of split"):
        read_source(model, ("serve",), ())


def test_a_version_with_control_flow_of_tensorflow_1_is_refused(tmp_path: Path) -> None:
    def build() -> Any:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = tf.compat.v1.placeholder(tf.float32, [], "x")
            return {"x": x}, {"y": tf.compat.v1.cond(x > 0.0, lambda: x, lambda: -x)}
        finally:
            tf.compat.v1.enable_control_flow_v2()

    model = export_v1(tmp_path / "model", build, resource=True)
    with pytest.raises(WorkshopError, match="TensorFlow 1's control flow"):
        read_source(model, ("serve",), ())


def test_python_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: tf.numpy_function(lambda a: a, [x], tf.float32),
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.f)
    with pytest.raises(WorkshopError, match="runs Python"):
        read_source(tmp_path / "model", ("serve",), ())


def test_a_signature_that_is_not_there(words: Path) -> None:
    with pytest.raises(WorkshopError, match="has no signature other; there are: number, serving_default"):
        read_source(words, ("serve",), ("other",))
