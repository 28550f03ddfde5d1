"""HandleReloadConfigRequest's models: what they keep, and what new ones are made from."""

from __future__ import annotations

from typing import Any

from fastserve.config import Batching, Model, Warmup
from fastserve.control.reload_request import models_of
from fastserve.protos import message


def config(name: str, base_path: str, **more: Any) -> Any:
    return message("tensorflow.serving.ModelConfig")(
        name=name, base_path=base_path, model_platform="tensorflow", **more
    )


def test_a_model_that_is_served_keeps_its_settings() -> None:
    before = Model(name="m", base_path="/old", xla="full", batching=Batching(max_batch_size=3))
    (model,) = models_of([config("m", "/new", version_labels={"stable": 4})], {"m": before}, "/logs")
    assert (model.base_path, model.xla, model.batching, model.labels) == (
        "/new",
        "full",
        before.batching,
        {"stable": 4},
    )


def test_a_new_model_is_like_the_one_that_is_given() -> None:
    like = Model(name="any", base_path="/", batching=Batching(max_batch_size=3), warmup=Warmup(records=False))
    (model,) = models_of([config("m", "/m")], {}, "/logs", like)
    assert (model.name, model.base_path, model.batching, model.warmup) == (
        "m",
        "/m",
        like.batching,
        like.warmup,
    )


def test_a_new_model_has_the_defaults_otherwise() -> None:
    (model,) = models_of([config("m", "/m", model_type=0)], {}, "/logs")
    assert model.batching.max_batch_size == 512 and model.batching.allowed_batch_sizes[:3] == (1, 2, 4)


def test_a_platform_may_have_its_older_name() -> None:
    asked = config("m", "/m", model_type=1)
    asked.model_platform = ""
    (model,) = models_of([asked], {}, "/logs")
    assert model.platform == "tensorflow"
