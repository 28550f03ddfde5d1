"""TFLite models: --prefer_tflite_model and --num_tflite_pools, or the same of a platform's configuration."""

from __future__ import annotations

from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags

_MAX_INTERPRETERS = 64


def add_tflite(draft: Draft, flags: Flags) -> None:
    """[litert], and of every model what is served where a version has both."""
    if flags.is_on("prefer_tflite_model"):
        prefer_tflite(draft, "--prefer_tflite_model")
    if "num_tflite_pools" in flags.given:
        set_interpreters(draft, flags.number("num_tflite_pools"), "--num_tflite_pools")


def prefer_tflite(draft: Draft, why: str) -> None:
    """model.tflite, with the names that TensorFlow Serving gives to its inputs and outputs."""
    draft.set_every_model("", "prefer_tflite", True, why)
    draft.set_every_model("", "tflite_aliases", "tensors", why)


def set_interpreters(draft: Draft, pools: int, why: str) -> None:
    """[litert] interpreters, which have no number within a pool: each is a pool of its own."""
    if pools < 1:
        draft.problem(f"{why}={pools}: expected 1 or more")
    if pools > _MAX_INTERPRETERS:
        draft.note(f"{why}: {pools} pools: {_MAX_INTERPRETERS} interpreters are made, the most there are")
    draft.set("litert", "interpreters", max(1, min(pools, _MAX_INTERPRETERS)), why)
