"""Writes Keras files for `fastserve export` to read: `python tests/export_keras_models.py DIR`.

Run by exported_models.py in a process of its own. Beside NAME.keras or NAME.h5 lies NAME.npz with inputs and
Keras' own predictions of them: "in/NAME" and "out/NAME", under the names that the export is to have.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_layers
import numpy as np
import tf_keras

ROWS = 7


def _save(
    model: Any, file: Path, inputs: Any, named: dict[str, np.ndarray[Any, Any]], outputs: list[str]
) -> None:
    """`inputs` as the model takes them, `named` as the export will."""
    predictions = model.predict(inputs, batch_size=ROWS, verbose=0)
    listed = predictions if isinstance(predictions, list) else [predictions]
    if isinstance(predictions, dict):
        listed = [predictions[name] for name in outputs]
    model.save(file)
    arrays = {f"in/{name}": value for name, value in named.items()}
    arrays |= {f"out/{name}": value for name, value in zip(outputs, listed, strict=True)}
    np.savez(file.with_suffix(".npz"), **arrays)


def sequential(target: Path, rng: np.random.Generator) -> None:
    model = keras.Sequential(
        [
            keras.layers.Input((5,), name="features"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=3),
            keras.layers.Dense(2, activation="softmax", name="classes"),
        ]
    )
    # An optimizer with slots, and moving averages that are not their first values.
    model.compile("adam", "mse")
    model.fit(rng.normal(size=(32, 5)), rng.random((32, 2)), verbose=0)
    x = rng.normal(size=(ROWS, 5)).astype(np.float32)
    _save(model, target / "sequential.keras", x, {"features": x}, ["classes"])


def two_inputs(target: Path, rng: np.random.Generator, package: Any, name: str) -> None:
    """Ids and numbers in, two outputs, of which one is a sum of layers."""
    layers = package.layers
    numbers = layers.Input((4,), name="numbers")
    ids = layers.Input((3,), dtype="int32", name="ids")
    embedded = layers.Flatten()(layers.Embedding(10, 2)(ids))
    hidden = layers.Dense(6, activation="tanh")(layers.Concatenate()([numbers, embedded]))
    score = layers.Dense(1, activation="sigmoid", name="score")(hidden)
    bid = layers.Add(name="bid")([layers.Dense(2)(hidden), layers.Dense(2)(numbers)])
    model = package.Model([numbers, ids], [score, bid])
    x, i = rng.normal(size=(ROWS, 4)).astype(np.float32), rng.integers(0, 10, (ROWS, 3)).astype(np.int32)
    _save(model, target / name, [x, i], {"numbers": x, "ids": i}, ["score", "bid"])


def custom(target: Path, rng: np.random.Generator) -> None:
    """A layer of the user's own, inputs and outputs as dicts, and words that are looked up in a table."""
    wide = keras.layers.Input((3,), name="wide_input")
    word = keras.layers.Input((1,), dtype="string", name="word_input")
    looked_up = keras.layers.StringLookup(vocabulary=["a", "b", "some words"])(word)
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(looked_up))
    hidden = keras_layers.Gate(4)(keras.layers.Concatenate()([wide, embedded]))
    model = keras.Model(
        {"wide": wide, "word": word}, {"gated": hidden, "score": keras.layers.Dense(1)(hidden)}
    )
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)
    words = np.array([["a"], ["b"], ["c"], ["some words"], [""], ["a"], ["b"]], dtype=object)
    inputs = {"wide": keras.ops.convert_to_tensor(x), "word": keras_layers.strings(words)}
    _save(model, target / "custom.keras", inputs, {"wide": x, "word": words.astype("S")}, ["gated", "score"])
    shutil.copy(keras_layers.__file__, target / "keras_layers.py")


@keras.saving.register_keras_serializable(package="nobody")
class Unregistered(keras.layers.Layer):
    """Nobody who reads the file has it."""

    def call(self, x: Any) -> Any:
        return x


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(7)
    sequential(target, rng)
    two_inputs(target, rng, keras, "two_inputs.h5")
    two_inputs(target, rng, tf_keras, "two_inputs_keras2.h5")
    custom(target, rng)
    keras.Sequential([keras.Input((2,)), Unregistered()]).save(target / "unregistered.keras")


if __name__ == "__main__":
    main()
