"""What a version's directory brings along: batching_params.pbtxt and assets.extra/saved_model_config.pb."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.config import Batching, Model
from fastserve.control.version_files import with_version_batching
from fastserve.errors import ModelError
from fastserve.protos import message
from fastserve.savedmodel.overrides import disables_meta_optimizer

NAME = "batching_params.pbtxt"


def model(**batching: object) -> Model:
    return Model(name="m", base_path="/m", batching=Batching(**batching))  # type: ignore[arg-type]


def test_a_versions_own_parameters_take_the_place_of_the_models(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("max_batch_size { value: 10 } num_batch_threads { value: 9 }")
    found, ignored = with_version_batching(
        model(version_file=NAME, num_batch_threads=2, batch_timeout_us=5, broadcast=("user",)), str(tmp_path)
    )
    batching = found.batching
    assert (batching.max_batch_size, batching.batch_timeout_us, batching.refuse_larger) == (10, 0, True)
    assert batching.allowed_batch_sizes == (1, 2, 4, 8, 10)
    # The pool is everyone's.
    assert batching.num_batch_threads == 2 and batching.version_file == NAME
    # What TensorFlow Serving does not know, its file does not say.
    assert batching.broadcast == ("user",)
    (note,) = ignored
    assert note.startswith("num_batch_threads has no effect")


def test_a_version_without_them_is_as_the_model_says(tmp_path: Path) -> None:
    asked = model(version_file=NAME, max_batch_size=7)
    assert with_version_batching(asked, str(tmp_path)) == (asked, [])


def test_they_are_left_alone_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("nonsense")
    asked = model()
    assert with_version_batching(asked, str(tmp_path)) == (asked, [])


def test_parameters_that_cannot_be_used_fail_the_version(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("max_batchsize { value: 10 }")
    with pytest.raises(ModelError) as caught:
        with_version_batching(model(version_file=NAME), str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/{NAME}:1: BatchingParameters has no field max_batchsize; did you mean max_batch_size?"
    )


def write_config(version: Path, data: bytes) -> None:
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "saved_model_config.pb").write_bytes(data)


def test_no_configuration_asks_for_nothing(tmp_path: Path) -> None:
    assert disables_meta_optimizer(str(tmp_path)) == (False, [])


def test_the_graph_stays_as_it_is_when_the_version_asks(tmp_path: Path) -> None:
    config = message("tensorflow.serving.SavedModelConfig")()
    config.session_overrides.disable_meta_optimizer = True
    write_config(tmp_path, config.SerializeToString())
    assert disables_meta_optimizer(str(tmp_path)) == (True, [])


def test_what_else_it_asks_for_is_named(tmp_path: Path) -> None:
    config = message("tensorflow.serving.SavedModelConfig")(critical=True, tfrt_runtime_config=b"")
    config.session_overrides.batch_op_rewriter_config = b""
    write_config(tmp_path, config.SerializeToString())
    assert disables_meta_optimizer(str(tmp_path)) == (
        False,
        ["session_overrides.batch_op_rewriter_config", "tfrt_runtime_config", "critical"],
    )


def test_a_damaged_configuration_fails_the_version(tmp_path: Path) -> None:
    write_config(tmp_path, b"\xff\xff")
    with pytest.raises(ModelError, match=r"^Unable to parse SavedModelConfig: .*/saved_model_config\.pb$"):
        disables_meta_optimizer(str(tmp_path))
