"""Layers of a user's own, which a Keras file names and does not bring along."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tests")
class Gate(keras.layers.Layer):
    """A dense layer times the sigmoid of another."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: Any) -> None:
        self.value = self.add_weight(shape=(shape[-1], self.units), name="value")
        self.gate = self.add_weight(shape=(shape[-1], self.units), name="gate")

    def call(self, x: Any) -> Any:
        return (x @ self.value) * tf.sigmoid(x @ self.gate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def strings(array: Any) -> Any:
    """As Keras takes them."""
    return tf.constant(array)
