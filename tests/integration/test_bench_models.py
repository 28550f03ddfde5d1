"""bench/models, exported small: what a signature promises, and answers that depend on what is asked.

TensorFlow runs the exports; the row order of a request must not matter to a row's answer, since servers
batch them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve import savedmodel

tf = pytest.importorskip("tensorflow")

MODELS = Path(__file__).parents[2] / "bench" / "models"
NAMES = ("half_plus_two", "dcn", "wide_deep", "din", "mmoe", "two_towers", "wide_deep_naive")

# All of them in one process, for importing TensorFlow takes seconds.
EXPORT = """
import pathlib, runpy, sys
models, out, *targets = sys.argv[1:]
sys.path.insert(0, models)
for target in targets:
    sys.argv = [target, str(pathlib.Path(out, target)), "--small"]
    name = pathlib.Path(target).name + ".py"
    runpy.run_path(str(pathlib.Path(models, name)), run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and two of them once more in `again`."""
    folder = tmp_path_factory.mktemp("models")
    command = [
        sys.executable,
        "-c",
        EXPORT,
        str(MODELS),
        str(folder),
        *NAMES,
        "again/dcn",
        "again/mmoe",
        "switch_small",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def rows_of(folder: Path, count: int) -> dict[str, Any]:
    with np.load(folder / "requests.npz") as recorded:
        return {name: recorded[name][:count] for name in recorded.files}


def run(folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    model = tf.saved_model.load(str(folder / "1"))
    answers = model.signatures["serving_default"](**{k: tf.constant(v) for k, v in inputs.items()})
    return {name: value.numpy() for name, value in answers.items()}


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_unknown_first_dimension_of_everything(exported: Path, name: str) -> None:
    signatures = savedmodel.read(exported / name / "1").signatures
    signature = next(one for one in signatures if one.name == "serving_default")
    ports = [*signature.inputs, *signature.outputs]
    assert all(port.dims is not None and port.dims[0] == -1 for port in ports)
    recorded = rows_of(exported / name, 1 << 20)
    assert set(recorded) == {port.alias for port in signature.inputs}
    assert {len(values) for values in recorded.values()} <= {200, 250, 256}
    for port in signature.inputs:
        assert recorded[port.alias].dtype == tf.as_dtype(port.dtype).as_numpy_dtype
        sizes = zip(recorded[port.alias].shape, port.dims or (), strict=True)
        assert all(known in (-1, size) for size, known in sizes)


@pytest.mark.parametrize("name", NAMES)
def test_answers_vary_with_the_rows_and_not_with_their_company(exported: Path, name: str) -> None:
    inputs = rows_of(exported / name, 100)
    together = run(exported / name, inputs)
    alone = run(exported / name, {k: v[7:8] for k, v in inputs.items()})
    for output, values in together.items():
        assert len(values) == 100 and np.isfinite(values).all()
        assert len(np.unique(values)) > 50 and values.std() > 1e-2
        np.testing.assert_allclose(values[7:8], alone[output], rtol=1e-4, atol=1e-5)


def test_four_tasks_answer_differently(exported: Path) -> None:
    answers = run(exported / "mmoe", rows_of(exported / "mmoe", 50))
    assert sorted(answers) == ["cart", "click", "order", "spend"]
    assert len({values.tobytes() for values in answers.values()}) == 4


@pytest.mark.parametrize("name", ["dcn", "din"])
def test_every_categorical_input_counts(exported: Path, name: str) -> None:
    """Not the dense features alone, as with weights too small to see."""
    inputs = rows_of(exported / name, 20)
    before = run(exported / name, inputs)["score"]
    for alias, values in inputs.items():
        if values.dtype == np.int64:
            changed = np.where(values == 0, 0, values + 1)  # padding stays padding
            after = run(exported / name, inputs | {alias: changed})["score"]
            assert np.abs(after - before).max() > 1e-3, alias


def test_din_takes_histories_of_any_length_and_padding_changes_nothing(exported: Path) -> None:
    inputs = rows_of(exported / "din", 50)
    history = ("history_items", "history_categories")
    longest = 1 + int((inputs["history_items"] != 0).sum(axis=1).max())
    assert longest < inputs["history_items"].shape[1]
    assert not inputs["history_items"][:, 0].any()  # what servers pad with
    padded = run(exported / "din", inputs)["score"]
    cut = run(exported / "din", inputs | {k: inputs[k][:, :longest] for k in history})["score"]
    np.testing.assert_allclose(cut, padded, rtol=1e-4, atol=1e-5)
    shorter = run(exported / "din", inputs | {k: inputs[k][:, :20] for k in history})["score"]
    assert np.abs(shorter - padded).max() > 1e-3


def test_a_din_request_is_one_user(exported: Path) -> None:
    inputs = rows_of(exported / "din", 100)
    for alias in ("history_items", "history_categories", "user"):
        assert (inputs[alias][:50] == inputs[alias][0]).all()
        assert (inputs[alias][50:] != inputs[alias][0]).any()
    assert len(np.unique(inputs["item"][:50])) > 10


@pytest.mark.parametrize("name", ["dcn", "mmoe"])
def test_an_export_is_the_same_each_time(exported: Path, name: str) -> None:
    folders = exported / name, exported / "again" / name
    assert len({(folder / "requests.npz").read_bytes() for folder in folders}) == 1
    first, second = (run(folder, rows_of(folder, 20)) for folder in folders)
    for output, values in first.items():
        np.testing.assert_array_equal(values, second[output])


def test_versions_to_switch_between_differ_in_their_weights_only(exported: Path) -> None:
    folder = exported / "switch_small"
    inputs = rows_of(folder, 8)
    recorded = np.load(folder / "answers.npz")["score"]
    assert recorded.shape == (3, 256, 1)
    for version in (1, 2, 3):
        model = tf.saved_model.load(str(folder / str(version)))
        answers = model.signatures["serving_default"](**{k: tf.constant(v) for k, v in inputs.items()})
        np.testing.assert_allclose(answers["score"], recorded[version - 1][:8], rtol=1e-4)
    apart = np.abs(recorded - np.roll(recorded, -1, axis=0)) > 1e-2
    assert apart.mean() > 0.9
