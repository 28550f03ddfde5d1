"""`fastserve optimize` as a whole: a faster version with the same answers, or none; and nothing
half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optimize_graphs import saved

from fastserve.savedmodel import read
from fastserve.workshop.optimizing.command import NothingGained, Task, run
from fastserve.workshop.optimizing.values import Outcome

RNG = np.random.default_rng(6)
DEPTH = 2000
TIMEOUT_S = 120
IDS = tf.TensorSpec([None, 4], tf.int64, name="ids")
NUMBERS = tf.TensorSpec([None, 8], tf.float32, name="numbers")


def quiet(text: str) -> None:
    assert text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of a model that is slow for no reason."""
    tables = [tf.Variable(RNG.standard_normal((DEPTH, 32)).astype(np.float32)) for _ in range(4)]
    dense = tf.Variable(RNG.standard_normal((4 * 32 + 8, 8)).astype(np.float32) * 0.1)

    def function(ids: Any, numbers: Any) -> Any:
        found = [tf.matmul(tf.one_hot(ids[:, i], DEPTH), table) for i, table in enumerate(tables)]
        return {"score": tf.sigmoid(tf.matmul(tf.concat([*found, numbers], 1), dense))}

    base = tmp_path_factory.mktemp("model")
    saved(base / "3", function, IDS, NUMBERS, tables=tables, dense=dense)
    return base


@pytest.fixture(scope="module")
def rows(model: Path) -> Path:
    file = model / "rows.npz"
    np.savez(
        file,
        ids=RNG.integers(-2, DEPTH + 2, (300, 4)),
        numbers=RNG.standard_normal((300, 8)).astype(np.float32),
    )
    return file


@pytest.fixture(scope="module")
def made(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("out")
    (out / "7").mkdir()
    return run(Task(model, out, rows=rows, seconds=0.2), quiet)


def answers(path: Path, rows: Path) -> Any:
    loaded = tf.saved_model.load(str(path))
    with np.load(rows) as arrays:
        return loaded.signatures["serving_default"](**{k: tf.constant(arrays[k]) for k in arrays.files})[
            "score"
        ].numpy()


def test_it_is_faster_and_answers_as_before(made: Outcome, model: Path, rows: Path) -> None:
    assert made.path is not None and made.path.name == "8"  # after the highest that was there
    np.testing.assert_allclose(answers(made.path, rows), answers(model / "3", rows), atol=1e-5)
    assert [total.rows for total in made.total] == [100, 400]
    assert all(total.low > 3.0 for total in made.total) and made.difference < 1e-5
    assert not list(made.path.glob(".*"))


def test_each_pass_says_what_it_gave(made: Outcome) -> None:
    results = {result.name: result for result in made.passes}
    assert (
        results["onehot"].kept and results["onehot"].changes == 4 and (results["onehot"].speedup or 0) > 2.0
    )
    assert results["columns"].why == results["user"].why == "found nothing to change"
    assert not {"bfloat16", "float16"} & results.keys()
    assert made.inputs == f"300 rows of {made.model / 'rows.npz'}" and made.made_up == ()


def test_signatures_are_equal(made: Outcome, model: Path) -> None:
    assert made.path is not None
    one, other = (read(path).signature("serving_default") for path in (model / "3", made.path))
    assert one is not None and other is not None
    for ports in ("inputs", "outputs"):
        pairs = zip(getattr(one, ports), getattr(other, ports), strict=True)
        assert all((a.alias, a.dtype, a.dims) == (b.alias, b.dtype, b.dims) for a, b in pairs)


def test_nothing_gained_is_nothing_written(tmp_path: Path, rows: Path) -> None:
    base = saved(tmp_path / "model", lambda ids, numbers: numbers, IDS, NUMBERS)
    with pytest.raises(NothingGained) as raised:
        run(Task(base, tmp_path / "out", only=("onehot", "gathers"), rows=rows, seconds=0.1), quiet)
    assert [result.changes for result in raised.value.outcome.passes] == [0, 0]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_pass_beyond_the_tolerance_is_dropped(model: Path, rows: Path, tmp_path: Path) -> None:
    wide = RNG.standard_normal((8, 4096)).astype(np.float32)

    def function(ids: Any, numbers: Any) -> Any:
        return tf.reduce_sum(tf.matmul(tf.matmul(numbers, wide), wide, transpose_b=True), 1)

    base = saved(tmp_path / "model", function, IDS, NUMBERS)
    with pytest.raises(NothingGained) as raised:
        run(Task(base, tmp_path / "out", only=("bfloat16",), rows=rows, seconds=0.1), quiet)
    (result,) = raised.value.outcome.passes
    assert result.changes == 2 and not result.kept and "is off by" in result.why
    assert result.difference is not None and result.difference > 1e-5


def test_half_types_are_not_judged_on_made_up_rows(tmp_path: Path) -> None:
    wide = RNG.standard_normal((8, 4096)).astype(np.float32)
    base = saved(tmp_path / "model", lambda ids, numbers: tf.matmul(numbers, wide), IDS, NUMBERS)
    with pytest.raises(NothingGained) as raised:
        run(Task(base, tmp_path / "out", only=("prune", "bfloat16"), tolerance=1e9, seconds=0.1), quiet)
    result = raised.value.outcome.passes[-1]
    assert (result.name, result.changes, result.kept) == ("bfloat16", 0, False)
    assert result.why == "made-up inputs do not show how far answers are off"


def test_the_warm_up_file_is_what_it_is_compared_with(model: Path, rows: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "3", tmp_path / "3")
    warm = ["warmup", "make", str(tmp_path / "3"), "--rows", str(rows), "--batch-size", "50"]
    subprocess.run([sys.executable, "-m", "fastserve", *warm], check=True, timeout=TIMEOUT_S)
    outcome = run(Task(tmp_path, tmp_path / "out", only=("prune", "onehot"), seconds=0.1), quiet)
    assert outcome.inputs == "6 requests of its warm-up file" and outcome.path is not None
    name = "assets.extra/tf_serving_warmup_requests"
    assert (outcome.path / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    again = Task(
        tmp_path / "3", tmp_path / "again", only=("onehot",), requests=(outcome.path / name,), seconds=0.1
    )
    assert run(again, quiet).inputs == "6 recorded requests"


def test_a_warm_up_file_of_made_up_values_proves_nothing(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "3", tmp_path / "3")
    warm = ["warmup", "make", str(tmp_path / "3")]
    subprocess.run([sys.executable, "-m", "fastserve", *warm], check=True, timeout=TIMEOUT_S)
    outcome = run(Task(tmp_path, tmp_path / "out", only=("onehot",), seconds=0.1), quiet)
    assert outcome.inputs == "made-up inputs" and outcome.made_up == ("serving_default",)


# ---- interrupted -----------------------------------------------------------------------------------


class _Interrupt(Exception):
    pass


def test_interrupted_at_any_step_nothing_is_left(model: Path, rows: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    run(
        Task(model, tmp_path / "whole", only=("onehot",), rows=rows, seconds=0.1),
        steps.append,
    )
    assert len(steps) == 5
    for last in range(len(steps)):

        def stop(text: str, last: int = last) -> None:
            if text == steps[last]:
                raise _Interrupt

        out = tmp_path / str(last)
        with pytest.raises(_Interrupt):
            run(Task(model, out, only=("onehot",), rows=rows, seconds=0.1), stop)
        assert not out.exists() or list(out.iterdir()) == []


def started(model: Path, rows: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastserve", "optimize", str(model), str(out), "--rows", str(rows)]
    command += ["--seconds", "0.1", "--only", "onehot", "--json", "-"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("step", "number"),
    [("trying onehot", signal.SIGKILL), ("comparing with the original", signal.SIGTERM)],
)
def test_killed_it_leaves_no_version(model: Path, rows: Path, tmp_path: Path, step: str, number: int) -> None:
    out = tmp_path / "out"
    with started(model, rows, out) as process:
        assert process.stderr is not None
        assert any(step in line for line in process.stderr)
        os.kill(process.pid, number)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    left = list(out.iterdir())
    assert all(not path.name.isdigit() for path in left)
    assert not left or number == signal.SIGKILL
    with started(model, rows, out) as process:
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert [path.name for path in out.iterdir()] == ["1"]  # what was left is gone, too
    assert json.loads(printed)["written"] == str(out / "1")
