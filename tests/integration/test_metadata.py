"""GetModelMetadata of a core, with TensorFlow Serving's own stub: which version answers, and how long it does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, predict_request, servable
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
Map = get_model_metadata_pb2.SignatureDefMap


def described(model: str, version: int, name: str = "") -> dict[str, Any]:
    """A version on the null runtime whose map says which one it is of."""
    made = Map()
    made.signature_def["serving_default"].inputs["x"].name = name or f"{model}:{version}"
    encoded = base64.b64encode(made.SerializeToString()).decode()
    return {**servable(model, version=version), "signature_def_map": encoded}


def asking(name: str, version: int | None = None, label: str = "") -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    return request


@pytest.fixture(scope="module", params=[0, 1], ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    with Core(server={"io_threads": request.param}) as core:
        core.serve(described("m", 3), described("m", 12), servable("plain"))
        core.call("labels", model="m", labels={"stable": 3, "gone": 4})
        yield core


@pytest.fixture
def stub(core: Core) -> Iterator[Any]:
    with grpc.insecure_channel(core.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def told(stub: Any, *spec: Any, headers: Any = None) -> tuple[int, str]:
    """The version that answers, and what its map says."""
    reply = stub.GetModelMetadata(asking(*spec), timeout=PATIENCE_S, metadata=headers)
    assert reply.model_spec.name == spec[0]
    signatures = Map()
    assert list(reply.metadata) == ["signature_def"]
    assert reply.metadata["signature_def"].Unpack(signatures)
    return reply.model_spec.version.value, signatures.signature_def["serving_default"].inputs["x"].name


def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def test_versions_labels_and_latest_are_as_for_predict(stub: Any) -> None:
    assert told(stub, "m") == (12, "m:12")
    assert told(stub, "m", 3) == (3, "m:3")
    assert told(stub, "m", None, "stable") == (3, "m:3")


def test_the_next_control_process_is_given_it_and_the_core_answers_meanwhile() -> None:
    with Core() as core, grpc.insecure_channel(core.address) as channel:
        core.serve(described("m", 1))
        (row,) = core.call("inventory")["servables"]
        assert row["servable"] == described("m", 1)
        core.abandon()
        assert told(prediction_service_pb2_grpc.PredictionServiceStub(channel), "m") == (1, "m:1")


def test_without_a_map_there_is_an_empty_one(stub: Any) -> None:
    assert told(stub, "plain") == (1, "")


@pytest.mark.parametrize(
    "spec",
    [
        ("nope",),
        ("m", 7),
        ("m", 0),
        ("m", None, "gone"),
        ("m", None, "other"),
        ("",),
        ("é" * 200,),
        ("m", None, "x" * 2000),
    ],
)
def test_refusals_are_predicts(core: Core, stub: Any, spec: Any) -> None:
    predict = predict_pb2.PredictRequest.FromString(predict_request("m", bytes(4), [1, 1]))
    predict.model_spec.CopyFrom(asking(*spec).model_spec)
    with grpc.insecure_channel(core.address) as channel:
        ask = channel.unary_unary(PREDICT)
        expected = refusal(lambda: ask(predict.SerializeToString(), timeout=PATIENCE_S))
    assert refusal(lambda: told(stub, *spec)) == expected
    assert expected[0] in ("NOT_FOUND", "INVALID_ARGUMENT")


def test_what_is_asked_for_is_looked_at_before_the_model(core: Core, stub: Any) -> None:
    ask = stub.GetModelMetadata
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refusal(lambda: ask(request)) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "nope"
    no_field = ("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
    assert refusal(lambda: ask(request)) == no_field
    request.metadata_field.append("foo")
    assert refusal(lambda: ask(request)) == ("INVALID_ARGUMENT", "Metadata field foo is not supported")
    request.metadata_field[0] = "y" * 3000
    text = ("Metadata field " + "y" * 3000)[:1024] + "...TRUNCATED"
    assert refusal(lambda: ask(request)) == ("INVALID_ARGUMENT", text)
    with grpc.insecure_channel(core.address) as channel:
        garbage = refusal(lambda: channel.unary_unary(METADATA)(b"\x0a\x05m", timeout=PATIENCE_S))
    assert garbage == ("INTERNAL", "")


def test_it_is_there_as_long_as_the_version(core: Core, stub: Any) -> None:
    core.call("load", servable=described("late", 1))
    missing = ("NOT_FOUND", "Servable not found for request: Latest(late)")
    assert refusal(lambda: told(stub, "late")) == missing
    core.call("publish", model="late", version=1)
    assert told(stub, "late") == (1, "late:1")
    core.call("load", servable=described("late", 1, "renewed"), replacement=True)
    assert told(stub, "late") == (1, "late:1")
    core.call("replace", model="late", version=1)
    assert told(stub, "late") == (1, "renewed")
    core.call("retire", model="late", version=1)
    assert refusal(lambda: told(stub, "late")) == missing
    core.call("close", model="late", version=1)
    core.call("load", servable=described("late", 1, "again"))
    core.call("publish", model="late", version=1)
    assert told(stub, "late") == (1, "again")
    for op in ("retire", "close"):
        core.call(op, model="late", version=1)


def test_a_rollout_tells_callers_of_the_version_that_answers_them(core: Core, stub: Any) -> None:
    for version in (1, 2):
        core.call("load", servable=described("routed", version))
        core.call("publish", model="routed", version=version)
    route = {"mode": "canary", "stable": 1, "new": 2, "share": 0.5, "sticky_header": "x-user"}
    core.call("route", model="routed", route=route)
    with grpc.insecure_channel(core.address) as channel:
        predict = channel.unary_unary(PREDICT)
        seen = set()
        for user in range(16):
            headers = [("x-user", str(user))]
            reply = predict(predict_request("routed", bytes(4), [1, 1]), metadata=headers, timeout=PATIENCE_S)
            version = told(stub, "routed", headers=headers)[0]
            assert b"\x12\x02\x08" + bytes([version]) in reply
            seen.add(version)
        assert seen == {1, 2}
    assert told(stub, "routed", 1) == (1, "routed:1")
    core.call("route", model="routed", route=None)
    for version in (1, 2):
        core.call("retire", model="routed", version=version)
        core.call("close", model="routed", version=version)
