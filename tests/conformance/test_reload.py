"""HandleReloadConfigRequest: what changes, and that what is refused changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.case import Case, ask, check, floats, inputs, named, outputs, spec
from daemon_process import Daemon

OK = "status { }"
HALF = "half_plus_two"
ONE = inputs(x=floats(1))


def model(name: str, base_path: str | None = None, rest: str = 'model_platform: "tensorflow"') -> str:
    """A ModelConfig; MODELS stands for the directory with the models."""
    path = f"MODELS/{name}" if base_path is None else base_path
    return f'config {{ name: "{name}" base_path: "{path}" {rest} }} '


def models_are(*models: str) -> str:
    return f"config {{ model_config_list {{ {''.join(models)} }} }}"


def labels(**versions: int) -> str:
    each = " ".join(
        f'version_labels {{ key: "{label}" value: {version} }}' for label, version in versions.items()
    )
    return f'model_platform: "tensorflow" model_version_policy {{ all {{ }} }} {each}'


def reload(name: str, request: str, code: str = "OK", message: str = "") -> Case:
    return Case(name, "HandleReloadConfigRequest", request, code, message, OK)


SERVED = model(HALF) + model("versions", rest=labels(stable=1))

NO_LIST = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
    "Only ModelConfigList is currently supported"
)
REFUSED = [
    reload(
        "nothing",
        "",
        "INVALID_ARGUMENT",
        NO_LIST,
    ),
    reload(
        "no list",
        "config { }",
        "INVALID_ARGUMENT",
        NO_LIST,
    ),
    reload(
        "a configuration of one's own",
        "config { custom_model_config { } }",
        "INVALID_ARGUMENT",
        NO_LIST,
    ),
    reload(
        "a model twice",
        models_are(model("many"), model(HALF), model("many")),
        "INVALID_ARGUMENT",
        "Illegal to list model many multiple times in config list",
    ),
    reload(
        "a relative path",
        models_are(SERVED, model("many", "many")),
        "INVALID_ARGUMENT",
        "Expected model many to have an absolute path or URI; got base_path()=many",
    ),
    reload(
        "no path",
        models_are(SERVED, model("many", "")),
        "INVALID_ARGUMENT",
        "Expected model many to have an absolute path or URI; got base_path()=",
    ),
    reload(
        "no platform",
        models_are(SERVED, model("many", rest="")),
        "INVALID_ARGUMENT",
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        "ModelServerConfig::model_platform, model name is many",
    ),
    reload(
        "type and platform",
        models_are(SERVED, model("many", rest='model_type: TENSORFLOW model_platform: "tensorflow"')),
        "INVALID_ARGUMENT",
        "Illegal setting both ModelServerConfig::model_type (deprecated) and "
        "ModelServerConfig::model_platform, model name is many",
    ),
    reload(
        "a platform that there is not",
        models_are(SERVED, model("many", rest='model_platform: "caffe"')),
        "INVALID_ARGUMENT",
        "Model many requests unsupported platform caffe",
    ),
    reload(
        "another platform",
        models_are(model(HALF, rest='model_platform: "caffe"')),
        "INVALID_ARGUMENT",
        f"Illegal to change a model's platform. For model {HALF} platform was tensorflow and new platform "
        "requested is caffe",
    ),
    reload(
        "a label for a version that is not there",
        models_are(model(HALF, rest=labels(stable=9)), model("versions")),
        "FAILED_PRECONDITION",
        f"Request to assign label to version 9 of model {HALF}, which is not currently "
        "available for inference",
    ),
]


@pytest.fixture(scope="module")
def daemon(serve: Any) -> Daemon:
    """Of this module's own: half_plus_two and both versions of `versions`."""
    versions = 'labels = { stable = 1 }\nversions = { policy = "all" }'
    served: Daemon = serve({HALF: "", "versions": versions})
    return served


@pytest.fixture(scope="module")
def reloaded(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon.channel() as channel:
        yield channel


def placed(case: Case, models: Path) -> Case:
    return Case(
        case.name,
        case.method,
        case.request.replace("MODELS", str(models)),
        case.code,
        case.message,
        case.reply,
    )


def versions_of(channel: grpc.Channel, name: str) -> list[int]:
    answer = ask(channel, "GetModelStatus", spec(name))
    reply: Any = answer.reply
    return [one.version for one in reply.model_version_status if one.state == 30] if reply else []


@pytest.mark.parametrize(**named(REFUSED))
def test_refused(reloaded: grpc.Channel, models: Path, case: Case) -> None:
    check(reloaded, placed(case, models))
    assert versions_of(reloaded, HALF) == [123]
    assert versions_of(reloaded, "versions") == [2, 1]
    assert versions_of(reloaded, "many") == []
    for label, answered in (("stable", "OK"), ("canary", "INVALID_ARGUMENT")):
        assert ask(reloaded, "Predict", spec("versions", label=label) + ONE).code == answered


def test_the_same_again(reloaded: grpc.Channel, models: Path) -> None:
    for _ in range(2):
        check(reloaded, placed(reload("the same", models_are(SERVED)), models))
    assert versions_of(reloaded, HALF) == [123] and versions_of(reloaded, "versions") == [2, 1]


def test_models_that_come_and_go(daemon: Daemon, reloaded: grpc.Channel, models: Path) -> None:
    """What is new is there when the call is answered."""
    more = models_are(SERVED, model("many"), model("other", "MODELS/vocabulary"))
    check(reloaded, placed(reload("two more", more), models))
    assert versions_of(reloaded, "many") == [1] and versions_of(reloaded, "other") == [1]
    answer = ask(reloaded, "Predict", spec("many", "scalar") + inputs(x=floats(1, shape=[])))
    assert answer.code == "OK"
    check(reloaded, placed(reload("two less", models_are(SERVED)), models))
    daemon.until(lambda: not versions_of(reloaded, "many") and not versions_of(reloaded, "other"))
    gone = "Servable not found for request: Latest(many)"
    check(reloaded, Case("gone", "Predict", spec("many") + ONE, "NOT_FOUND", gone))


def test_labels_move(reloaded: grpc.Channel, models: Path) -> None:
    def answers(label: str, y: float, version: int) -> Case:
        reply = outputs(y=floats(y)) + spec("versions", "serving_default", version=version)
        return Case(label, "Predict", spec("versions", label=label) + ONE, reply=reply)

    moved = models_are(model(HALF), model("versions", rest=labels(stable=2, old=1)))
    check(reloaded, placed(reload("moved", moved), models))
    check(reloaded, answers("stable", 1, 2))
    check(reloaded, answers("old", 2.5, 1))
    check(reloaded, placed(reload("back", models_are(SERVED)), models))
    check(reloaded, answers("stable", 2.5, 1))
    assert ask(reloaded, "Predict", spec("versions", label="old") + ONE).code == "INVALID_ARGUMENT"


def test_a_model_that_cannot_be_loaded(reloaded: grpc.Channel, models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models / HALF / "123", broken / "4")
    (shard,) = (broken / "4" / "variables").glob("variables.data-*")
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    wanted = models_are(model(HALF), model("broken", str(broken)))
    said = "1 model(s) did not become available: {{{name: broken version: 4} due to error: ..."
    check(reloaded, placed(reload("broken", wanted, "UNKNOWN", said), models))
    assert versions_of(reloaded, HALF) == [123] and versions_of(reloaded, "versions") == [2, 1]
    check(reloaded, placed(reload("without it", models_are(SERVED)), models))


def test_a_model_without_a_version(reloaded: grpc.Channel, models: Path, tmp_path: Path) -> None:
    wanted = models_are(model(HALF), model("empty", str(tmp_path)))
    said = "1 model(s) did not become available: {{{name: empty} due to error: ..."
    check(reloaded, placed(reload("empty", wanted, "UNKNOWN", said), models))
    assert versions_of(reloaded, HALF) == [123] and versions_of(reloaded, "versions") == [2, 1]
