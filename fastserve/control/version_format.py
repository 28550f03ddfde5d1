"""Which file of a version is the model: saved_model.pb, or model.tflite.

A pure function of the names that are there, for sources and for whoever asks for a trial. As TensorFlow
Serving with --prefer_tflite_model, and a version that has model.tflite alone is served by it unasked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, TypeAlias

from fastserve.config import Model
from fastserve.tflite import MODEL as TFLITE

SAVED_MODEL = "saved_model.pb"
# What needs no plug-in to be prepared.
BUILT_IN_PLATFORMS = ("tensorflow", "tflite")

# model.tflite counts when it is alone, when it is there, or as the only thing that does.
Rule: TypeAlias = Literal["alone", "preferred", "only"]


def rule_of(model: Model) -> Rule:
    if model.platform == "tflite":
        return "only"
    return "preferred" if model.prefer_tflite else "alone"


def is_tflite(rule: Rule, has: Callable[[str], bool]) -> bool:
    """Whether a version is served from model.tflite. `has`: whether it has a file of that name."""
    if rule == "only":
        return True
    return has(TFLITE) and (rule == "preferred" or not has(SAVED_MODEL))


def built_in_runtime(model: Model, path: str) -> str:
    """The runtime of the version in directory `path`, unless its loader says otherwise."""
    chosen = is_tflite(rule_of(model), lambda name: os.path.exists(os.path.join(path, name)))
    return "litert" if chosen else "tensorflow"
