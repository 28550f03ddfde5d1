"""Tokens per model, with grpcio as the client: on the loop and on epoll threads."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, Refused, predict_reply, predict_request, servable
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, session_service_pb2

METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
CHECK = "/grpc.health.v1.Health/Check"

OK = grpc.StatusCode.OK
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED

# What each model takes; "open" is open to all.
TOKENS = {"ranker": ["one", "two", "both"], "tower": ["three", "both"]}

CASES = [
    ("open", None, OK),
    ("open", "Bearer whatever", OK),
    ("open", "Basic YTpi", OK),
    ("ranker", "Bearer one", OK),
    ("ranker", "bearer two", OK),
    ("ranker", "Bearer both", OK),
    ("tower", "Bearer both", OK),
    ("ranker", None, UNAUTHENTICATED),
    ("ranker", "", UNAUTHENTICATED),
    ("ranker", "one", UNAUTHENTICATED),
    ("ranker", "Bearer", UNAUTHENTICATED),
    ("ranker", "Bearer on", UNAUTHENTICATED),
    ("ranker", "Bearer ones", UNAUTHENTICATED),
    ("ranker", "Bearer One", UNAUTHENTICATED),
    ("ranker", "Basic one", UNAUTHENTICATED),
    ("ranker", f"Bearer {hashlib.sha256(b'one').hexdigest()}", UNAUTHENTICATED),
    ("ranker", "Bearer " + "x" * 5000, UNAUTHENTICATED),
    ("ranker", "Bearer three", PERMISSION_DENIED),
    ("tower", "Bearer one", PERMISSION_DENIED),
]


def digests(tokens: dict[str, list[str]]) -> dict[str, list[str]]:
    return {
        model: [hashlib.sha256(token.encode()).hexdigest() for token in taken]
        for model, taken in tokens.items()
    }


def grant(core: Core, tokens: dict[str, list[str]]) -> None:
    core.call("credentials", tls=None, tokens=digests(tokens))


@pytest.fixture(scope="module", params=[0, 2], ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    with Core(server={"io_threads": request.param, "session_run": True}) as core:
        core.serve(servable("open"), servable("ranker"), servable("tower"))
        grant(core, TOKENS)
        yield core


@pytest.fixture
def channel(core: Core) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(core.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def request(model: str, value: float = 1.0) -> bytes:
    return predict_request(model, struct.pack("<f", value), [1, 1])


def start(channel: grpc.Channel, method: str, message: bytes, header: str | None) -> Any:
    metadata = [] if header is None else [("authorization", header)]
    return channel.unary_unary(method).future(message, timeout=PATIENCE_S, metadata=metadata)


@pytest.mark.parametrize(("model", "header", "code"), CASES)
def test_who_may_predict(
    channel: grpc.Channel, model: str, header: str | None, code: grpc.StatusCode
) -> None:
    call = start(channel, PREDICT, request(model), header)
    assert call.code() is code, call.details()
    if code is OK:
        assert predict_reply(call.result()) == [2.5]
    else:
        assert model in call.details() and "one" not in call.details().split()


@pytest.mark.parametrize(("model", "header", "code"), CASES)
def test_who_may_ask_for_the_status(
    channel: grpc.Channel, model: str, header: str | None, code: grpc.StatusCode
) -> None:
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = model
    assert start(channel, STATUS, message.SerializeToString(), header).code() is code


@pytest.mark.parametrize(("model", "header", "code"), CASES)
def test_who_may_ask_for_the_metadata(
    channel: grpc.Channel, model: str, header: str | None, code: grpc.StatusCode
) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = model
    assert start(channel, METADATA, message.SerializeToString(), header).code() is code


@pytest.mark.parametrize(("model", "header", "code"), CASES)
def test_who_may_run_by_name(
    channel: grpc.Channel, model: str, header: str | None, code: grpc.StatusCode
) -> None:
    message = session_service_pb2.SessionRunRequest(fetch=["y:0"])
    message.model_spec.name = model
    expected = grpc.StatusCode.UNIMPLEMENTED if code is OK else code  # this runtime has no names
    assert start(channel, SESSION_RUN, message.SerializeToString(), header).code() is expected


def test_versions_labels_and_signatures_are_not_told_without_a_token(channel: grpc.Channel) -> None:
    from tensorflow_serving.apis import predict_pb2

    for change in ({"version": {"value": 7}}, {"version_label": "none"}, {"signature_name": "none"}):
        message = predict_pb2.PredictRequest(model_spec={"name": "ranker", **change})  # type: ignore[arg-type]
        message.inputs["x"].CopyFrom(predict_pb2.PredictRequest.FromString(request("ranker")).inputs["x"])
        assert start(channel, PREDICT, message.SerializeToString(), None).code() is UNAUTHENTICATED
        assert (
            start(channel, PREDICT, message.SerializeToString(), "Bearer one").code() is not UNAUTHENTICATED
        )


def test_health_and_unknown_models_need_no_token(channel: grpc.Channel) -> None:
    assert start(channel, CHECK, b"\x0a\x06ranker", None).code() is OK
    assert start(channel, PREDICT, request("nope"), None).code() is grpc.StatusCode.NOT_FOUND


def test_many_callers_on_one_connection_and_in_one_batch(channel: grpc.Channel) -> None:
    """Each answer is its own caller's, whoever shares the connection and the batch."""
    rng = random.Random(1)
    cases = [rng.choice(CASES) for _ in range(1500)]
    calls = [
        start(channel, PREDICT, request(model, float(number)), header)
        for number, (model, header, _code) in enumerate(cases)
    ]
    for number, (call, (_model, _header, code)) in enumerate(zip(calls, cases, strict=True)):
        assert call.code() is code
        if code is OK:
            assert predict_reply(call.result()) == [0.5 * number + 2]


def test_compressed_requests_are_checked_too(channel: grpc.Channel) -> None:
    predict = channel.unary_unary(PREDICT)
    zipped = {"timeout": PATIENCE_S, "compression": grpc.Compression.Gzip}
    assert predict_reply(
        predict(request("ranker"), metadata=[("authorization", "Bearer one")], **zipped)
    ) == [2.5]
    with pytest.raises(grpc.RpcError) as caught:
        predict(request("ranker"), **zipped)
    assert caught.value.code() is UNAUTHENTICATED


def test_tokens_change_under_open_connections(core: Core, channel: grpc.Channel) -> None:
    def code(model: str, token: str) -> grpc.StatusCode:
        found: grpc.StatusCode = start(channel, PREDICT, request(model), f"Bearer {token}").code()
        return found

    try:
        assert code("ranker", "one") is OK
        grant(core, {"ranker": ["new"], "open": ["one"]})
        assert code("ranker", "one") is PERMISSION_DENIED
        assert code("ranker", "two") is UNAUTHENTICATED
        assert code("ranker", "new") is OK
        assert code("open", "new") is PERMISSION_DENIED
        assert code("tower", "anything") is OK
        for wrong in ({"ranker": ["abc"]}, {"ranker": ["zz" * 32]}, {"ranker": "x"}):
            with pytest.raises(Refused, match="INVALID_ARGUMENT"):
                core.call("credentials", tls=None, tokens=wrong)
        assert code("ranker", "new") is OK
        grant(core, {})
        assert code("ranker", "whatever") is OK
    finally:
        grant(core, TOKENS)
    assert code("ranker", "new") is UNAUTHENTICATED


def test_a_version_that_comes_later_asks_for_the_same_token(core: Core, channel: grpc.Channel) -> None:
    core.call("load", servable=servable("tower", version=2))
    core.call("publish", model="tower", version=2)
    assert start(channel, PREDICT, request("tower"), None).code() is UNAUTHENTICATED
    assert start(channel, PREDICT, request("tower"), "Bearer three").code() is OK
    core.call("retire", model="tower", version=2)
    core.call("close", model="tower", version=2)
    assert start(channel, PREDICT, request("tower"), "Bearer three").code() is OK


def test_metadata_and_runs_by_name_ask_for_the_token_too() -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2, session_service_pb2

    service = "/tensorflow.serving."
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "ranker"
    run = session_service_pb2.SessionRunRequest()
    run.model_spec.name = "ranker"
    calls = [
        (f"{service}PredictionService/GetModelMetadata", metadata),
        (f"{service}SessionService/SessionRun", run),
    ]
    with Core(server={"session_run": True}) as core, grpc.insecure_channel(core.address) as channel:
        core.serve(servable("ranker"), servable("tower"))
        grant(core, TOKENS)
        for method, message in calls:
            for header, code in ((None, UNAUTHENTICATED), ("Bearer no", UNAUTHENTICATED)):
                assert start(channel, method, message.SerializeToString(), header).code() is code
            assert (
                start(channel, method, message.SerializeToString(), "Bearer three").code()
                is PERMISSION_DENIED
            )
            found = start(channel, method, message.SerializeToString(), "Bearer one").code()
            assert found not in (UNAUTHENTICATED, PERMISSION_DENIED)
