"""`fastserve export`: what Keras saved, served by a daemon, answers as Keras itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from daemon_process import Daemon
from exported_models import KERAS, exported_models
from predict_client import Client, request

from fastserve.cli import main

# Of each file: what the command is given beside it.
FILES: dict[str, tuple[str, ...]] = {
    "sequential.keras": (),
    "two_inputs.h5": ("--signature", "rank", "--output", "bid=bids"),
    "two_inputs_keras2.h5": (),
    "custom.keras": ("--custom", "keras_layers.py:Gate", "--version", "20"),
}


def export(*args: object) -> str:
    """Runs the command in this process, which has TensorFlow already; what it printed."""
    before = dict(os.environ)
    try:
        result = CliRunner(env={"COLUMNS": "160"}).invoke(main, ["export", *map(str, args)])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """By file, the base path that it was exported to, and what was printed."""
    root = tmp_path_factory.mktemp("exported")
    sources = exported_models(KERAS)
    made = {}
    for file, args in FILES.items():
        base_path = root / file.replace(".", "_")
        args = tuple(arg.replace("keras_layers.py", str(sources / "keras_layers.py")) for arg in args)
        made[file] = (base_path, export(sources / file, base_path, *args))
    return made


@pytest.fixture(scope="module")
def client(
    printed: dict[str, tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """Of a daemon that serves all of them."""
    text = '[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "state"\n[executor]\nthreads = 2\n'
    for file, (base_path, _) in printed.items():
        text += f'[[models]]\nname = "{file}"\nbase_path = "{base_path}"\n'
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), text, "--strict").wait_ready()
    client = Client(daemon.channel())
    yield client
    client.close()
    daemon.end()


def arrays(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and Keras' own predictions."""
    with np.load((exported_models(KERAS) / file).with_suffix(".npz")) as kept:
        inputs = {key[3:]: kept[key] for key in kept.files if key.startswith("in/")}
        outputs = {key[4:]: kept[key] for key in kept.files if key.startswith("out/")}
    return inputs, outputs


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("rows", [1, 7])
def test_answers_are_keras_own(client: Client, file: str, rows: int) -> None:
    inputs, expected = arrays(file)
    if file == "two_inputs.h5":
        expected["bids"] = expected.pop("bid")
    tensors = {name: tf.make_tensor_proto(value[:rows]) for name, value in inputs.items()}
    answer = client.outputs(request(file, tensors, signature="rank" if file == "two_inputs.h5" else ""))
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answer[name], value[:rows], rtol=1e-5, atol=1e-6)


def test_what_is_printed_says_what_was_made(printed: dict[str, tuple[Path, str]]) -> None:
    base_path, text = printed["two_inputs.h5"]
    assert f"{base_path}/1" in text and "a Keras 3 model" in text
    assert "predicts as the source does at 1, 3, 32 rows" in text
    rows = [
        [cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines() if "│" in line
    ]
    assert [row[:4] for row in rows] == [
        ["input", "ids", "int32", "[?, 3]"],
        ["input", "numbers", "float", "[?, 4]"],
        ["output", "bids", "float", "[?, 2]"],
        ["output", "score", "float", "[?, 1]"],
    ]
    assert "there is no serving_default" in text
    assert "a Keras 2 model" in printed["two_inputs_keras2.h5"][1]
    assert f"{printed['custom.keras'][0]}/20" in printed["custom.keras"][1]


def test_warm_up_requests_come_along(printed: dict[str, tuple[Path, str]]) -> None:
    base_path, text = printed["sequential.keras"]
    assert "3 warm-up requests" in text
    shown = CliRunner().invoke(main, ["warmup", "show", "--json", str(base_path / "1")])
    assert shown.exit_code == 0
    assert [line.count("serving_default") for line in shown.stdout.splitlines()] == [1, 1, 1]


def test_optimizer_and_seeds_stay_behind(printed: dict[str, tuple[Path, str]]) -> None:
    base_path, _ = printed["sequential.keras"]
    kept = tf.train.list_variables(str(base_path / "1" / "variables" / "variables"))
    # Two dense layers, and a normalisation with its moving averages.
    assert sorted(shape for name, shape in kept if name.endswith("VARIABLE_VALUE")) == sorted(
        [[5, 8], [8], [8], [8], [8], [8], [8, 2], [2]]
    )
