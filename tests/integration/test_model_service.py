"""ModelService and health for each model, with TensorFlow Serving's own stubs as the oracle."""

from __future__ import annotations

import base64
import queue
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, Refused, predict_reply, predict_request, servable
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc

STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"

State = get_model_status_pb2.ModelVersionStatus.State


def row(version: int, state: str, code: int = 0, message: str = "") -> dict[str, Any]:
    return {"version": version, "state": state, "code": code, "message": message}


@pytest.fixture(scope="module", params=[0, 1], ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    with Core(server={"io_threads": request.param}) as core:
        core.serve(servable("m", version=3), servable("m", version=12))
        yield core


@pytest.fixture
def channel(core: Core) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(core.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def asking(name: str, version: int | None = None) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def status_of(stub: Any, name: str, version: int | None = None) -> list[tuple[int, str, int, str]]:
    reply = stub.GetModelStatus(asking(name, version), timeout=PATIENCE_S)
    assert all(one.HasField("status") for one in reply.model_version_status)
    return [
        (one.version, State.Name(one.state), one.status.error_code, one.status.error_message)
        for one in reply.model_version_status
    ]


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# ---- GetModelStatus ----------------------------------------------------------------------------


def test_before_the_first_table_published_versions_are_available(stub: Any) -> None:
    assert status_of(stub, "m") == [(12, "AVAILABLE", 0, ""), (3, "AVAILABLE", 0, "")]
    assert status_of(stub, "m", 3) == [(3, "AVAILABLE", 0, "")]
    missing = refusal(lambda: status_of(stub, "m", 7))
    assert missing == (grpc.StatusCode.NOT_FOUND, "Could not find version 7 of model m")


def test_the_table_is_answered_the_newest_first(core: Core, stub: Any) -> None:
    rows = [
        row(1, "END"),
        row(9, "END", 5, "no variables in /models/m/9"),
        row(3, "AVAILABLE"),
        row(12, "LOADING"),
        row(4, "UNLOADING"),
        row(1 << 62, "START"),
        row(0, "AVAILABLE"),
    ]
    core.call("status", models={"m": rows, "empty": []})
    assert status_of(stub, "m") == [
        (1 << 62, "START", 0, ""),
        (12, "LOADING", 0, ""),
        (9, "END", 5, "no variables in /models/m/9"),
        (4, "UNLOADING", 0, ""),
        (3, "AVAILABLE", 0, ""),
        (1, "END", 0, ""),
        (0, "AVAILABLE", 0, ""),
    ]
    assert status_of(stub, "m", 9) == [(9, "END", 5, "no variables in /models/m/9")]
    assert status_of(stub, "m", 0) == [(0, "AVAILABLE", 0, "")]
    for name in ("empty", "nope", ""):
        missing = refusal(lambda name=name: status_of(stub, name))
        assert missing == (grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
    missing = refusal(lambda: status_of(stub, "m", -1))
    assert missing == (grpc.StatusCode.NOT_FOUND, "Could not find version -1 of model m")


def test_replies_are_byte_for_byte_those_of_protobuf(core: Core, channel: grpc.Channel, stub: Any) -> None:
    core.call("status", models={"m": [row(300, "AVAILABLE"), row(0, "END", 13, "ünïcode" * 40)]})
    raw = channel.unary_unary(STATUS)(asking("m").SerializeToString(), timeout=PATIENCE_S)
    reply = get_model_status_pb2.GetModelStatusResponse.FromString(raw)
    assert [one.version for one in reply.model_version_status] == [300, 0]
    assert reply.SerializeToString(deterministic=True) == raw
    # What TensorFlow Serving sends for a version that is well: an empty status, which is there.
    assert raw.startswith(b"\x0a\x07\x08\xac\x02\x10\x1e\x1a\x00")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        pytest.param(b"", "Missing ModelSpec", id="nothing"),
        pytest.param(b"\x12\x01m", "Missing ModelSpec", id="an unknown field only"),
        pytest.param(b"\x08\x05", "Missing ModelSpec", id="a number where the spec should be"),
        pytest.param(b"\x0a\x00", "Could not find any versions of model ", id="an empty spec"),
        pytest.param(b"\x0a\x03\x0a\x01m", [3], id="a name"),
        pytest.param(b"\x0a\x03\x0a\x01x\x0a\x03\x0a\x01m", [3], id="two specs are one"),
        pytest.param(b"\x0a\x05\x0a\x01m\x12\x00", "Could not find version 0 of model m", id="version 0"),
        pytest.param(b"\x0a\x07\x0a\x01m\x12\x02\x08\x03", [3], id="a version"),
        pytest.param(b"\x0a\x0a\x0a\x01m\x12\x02\x08\x07\x22\x01x", [3], id="a label takes its place"),
        pytest.param(b"\x0a\x0a\x0a\x01m\x2a\x00\x35\x01\x02\x03\x04", [3], id="unknown in the spec"),
        pytest.param(b"\x13\x08\x01\x14\x0a\x03\x0a\x01m", [3], id="a group"),
    ],
)
def test_requests_as_protobuf_reads_them(
    core: Core, channel: grpc.Channel, request_bytes: bytes, expected: Any
) -> None:
    get_model_status_pb2.GetModelStatusRequest.FromString(request_bytes)  # protobuf takes it, too
    core.call("status", models={"m": [row(3, "AVAILABLE")]})
    ask = channel.unary_unary(STATUS)
    if isinstance(expected, str):
        assert refusal(lambda: ask(request_bytes, timeout=PATIENCE_S))[1] == expected
    else:
        reply = get_model_status_pb2.GetModelStatusResponse.FromString(ask(request_bytes, timeout=PATIENCE_S))
        assert [one.version for one in reply.model_version_status] == expected


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x0a", id="cut after a tag"),
        pytest.param(b"\x0a\x05\x0a", id="cut in the spec"),
        pytest.param(b"\x0a\x03\x0a\x02m", id="a length beyond the end"),
        pytest.param(b"\x0a\x03\x0a\x01\xff", id="a name that is not UTF-8"),
        pytest.param(b"\x0a\x04\x12\x02\x08\x80", id="cut in a number"),
        pytest.param(b"\xff" * 11, id="a tag without an end"),
        pytest.param(b"\x00\x01", id="field 0"),
        pytest.param(b"\x0f", id="wire type 7"),
        pytest.param(b"\x13\x08\x01", id="a group without an end"),
        pytest.param(b"\x14", id="an end without a group"),
    ],
)
def test_what_is_no_request_is_refused_as_grpc_does(channel: grpc.Channel, garbage: bytes) -> None:
    with pytest.raises(Exception, match=r"pars|utf-8|UTF-8"):  # protobuf does not take it, either
        get_model_status_pb2.GetModelStatusRequest.FromString(garbage)
    refused = refusal(lambda: channel.unary_unary(STATUS)(garbage, timeout=PATIENCE_S))
    assert refused == (grpc.StatusCode.INTERNAL, "")


@pytest.mark.parametrize(
    "rows", [[{"version": 1, "state": "AVAILABLE"}], [row(1, "FLYING")], [{**row(1, "END"), "version": "x"}]]
)
def test_a_table_of_another_form_changes_nothing(core: Core, stub: Any, rows: Any) -> None:
    core.call("status", models={"m": [row(3, "AVAILABLE")]})
    with pytest.raises(Refused, match="INVALID_ARGUMENT: status: "):
        core.call("status", models={"other": rows})
    assert status_of(stub, "m") == [(3, "AVAILABLE", 0, "")]


# ---- HandleReloadConfigRequest -------------------------------------------------------------------


def reload_request(model: str = "m") -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name=model, base_path="/models/m")
    return request


def respond(core: Core, event: dict[str, Any], code: int = 0, message: str = "", reply: bytes = b"") -> bool:
    answer = core.call(
        "respond",
        request=event["request"],
        code=code,
        message=message,
        reply=base64.b64encode(reply).decode(),
    )
    delivered: bool = answer["delivered"]
    return delivered


def test_a_reload_is_the_control_processs_to_answer(core: Core, stub: Any) -> None:
    reply = model_management_pb2.ReloadConfigResponse()
    reply.status.error_message = "as you wish"
    call = stub.HandleReloadConfigRequest.future(reload_request(), timeout=PATIENCE_S)
    event = core.event("request")
    assert event["method"] == "HandleReloadConfigRequest"
    assert base64.b64decode(event["message"]) == reload_request().SerializeToString()
    assert respond(core, event, reply=reply.SerializeToString())
    assert call.result() == reply
    assert not respond(core, event)


def test_answers_find_their_calls_and_refusals_keep_their_words(core: Core, stub: Any) -> None:
    calls = [
        stub.HandleReloadConfigRequest.future(reload_request(f"m{number}"), timeout=PATIENCE_S)
        for number in range(3)
    ]
    events = [core.event("request") for _ in calls]
    for event in reversed(events):
        request = model_management_pb2.ReloadConfigRequest.FromString(base64.b64decode(event["message"]))
        name = request.config.model_config_list.config[0].name
        assert respond(core, event, 3, f"Illegal: {name}")
    for number, call in enumerate(calls):
        assert (call.code(), call.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Illegal: m{number}",
        )


def test_nobody_waits_after_a_deadline_or_a_cancellation(core: Core, stub: Any) -> None:
    late = stub.HandleReloadConfigRequest.future(reload_request(), timeout=0.2)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not respond(core, core.event("request"))
    gone = stub.HandleReloadConfigRequest.future(reload_request(), timeout=PATIENCE_S)
    event = core.event("request")
    gone.cancel()
    assert gone.code() is grpc.StatusCode.CANCELLED
    status_of(stub, "m")  # on the same connection: the cancellation has been there before
    assert not respond(core, event)


@pytest.mark.parametrize("io_threads", [0, 1])
@pytest.mark.parametrize("where", ["everywhere", "admin", "nowhere"])
def test_where_a_reload_is_answered(io_threads: int, where: str) -> None:
    denied = grpc.StatusCode.PERMISSION_DENIED
    with Core(server={"io_threads": io_threads, "reload": where}) as core:
        core.serve(servable("m"))
        for address in (core.address, core.unix_address, core.admin_address):
            with grpc.insecure_channel(address) as channel:
                stub = model_service_pb2_grpc.ModelServiceStub(channel)
                assert status_of(stub, "m") == [(1, "AVAILABLE", 0, "")]
                call = stub.HandleReloadConfigRequest.future(
                    model_management_pb2.ReloadConfigRequest(), timeout=PATIENCE_S
                )
                if where == "everywhere" or (where == "admin" and address == core.admin_address):
                    assert respond(core, core.event("request"))
                    assert call.code() is grpc.StatusCode.OK
                elif where == "admin":
                    assert call.code() is denied and "[server] admin_listen" in call.details()
                else:
                    assert call.code() is denied and "[server] reload_rpc" in call.details()
        assert not [event for event in core.events if event["event"] == "request"]


def test_only_so_many_wait(core: Core, stub: Any) -> None:
    ended: queue.Queue[grpc.Future] = queue.Queue()
    calls = [stub.HandleReloadConfigRequest.future(reload_request(), timeout=PATIENCE_S) for _ in range(17)]
    for call in calls:
        call.add_done_callback(ended.put)
    refused = ended.get(timeout=PATIENCE_S)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details() == "16 reloads are waiting for an answer already"
    for _ in range(16):
        assert respond(core, core.event("request"))
    for call in calls:
        assert call is refused or call.result() == model_management_pb2.ReloadConfigResponse()


def test_a_reload_has_a_size_it_may_have(channel: grpc.Channel) -> None:
    refused = refusal(lambda: channel.unary_unary(RELOAD)(bytes((1 << 20) + 1), timeout=PATIENCE_S))
    assert refused[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_without_the_control_process_the_status_stays_and_a_reload_is_unavailable() -> None:
    gone = "the control process, which changes what is served, is not running"
    with Core() as core, grpc.insecure_channel(core.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        core.serve(servable("m"))
        core.call("status", models={"m": [row(1, "AVAILABLE")], "bad": [row(5, "END", 3, "not a model")]})
        waiting = stub.HandleReloadConfigRequest.future(reload_request(), timeout=PATIENCE_S)
        core.event("request")
        core.abandon()
        assert (waiting.code(), waiting.details()) == (grpc.StatusCode.UNAVAILABLE, gone)
        refused = refusal(lambda: stub.HandleReloadConfigRequest(reload_request(), timeout=PATIENCE_S))
        assert refused == (grpc.StatusCode.UNAVAILABLE, gone)
        assert status_of(stub, "m") == [(1, "AVAILABLE", 0, "")]
        assert status_of(stub, "bad") == [(5, "END", 3, "not a model")]
        reply = channel.unary_unary(PREDICT)(predict_request("m", bytes(4), [1, 1]), timeout=PATIENCE_S)
        assert predict_reply(reply) == [2.0]


def test_a_drain_does_not_wait_for_a_reload() -> None:
    with Core() as core, grpc.insecure_channel(core.address) as channel:
        core.serve(servable("m"))
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        waiting = stub.HandleReloadConfigRequest.future(reload_request(), timeout=PATIENCE_S)
        core.event("request")
        began = time.monotonic()
        assert core.call("drain", lame_duck_s=0, drain_timeout_s=20)["unanswered"] == 0
        assert waiting.code() is grpc.StatusCode.UNAVAILABLE
        assert core.wait() == 0
        assert time.monotonic() - began < 10


# ---- health for each model -----------------------------------------------------------------------


def service(name: str) -> bytes:
    encoded = name.encode()
    return b"\x0a" + bytes([len(encoded) & 0x7F | 0x80, len(encoded) >> 7]) + encoded


def test_a_models_health_follows_its_versions(core: Core, channel: grpc.Channel) -> None:
    name = "x" * 200
    check = channel.unary_unary(CHECK)
    watch = channel.unary_stream(WATCH)(service(name), timeout=PATIENCE_S)
    server = channel.unary_stream(WATCH)(b"", timeout=PATIENCE_S)
    assert next(watch) == SERVICE_UNKNOWN
    assert next(server) == SERVING

    core.call("status", models={"m": [], name: [row(1, "LOADING")]})
    assert next(watch) == NOT_SERVING
    for version in (1, 2):
        core.call("load", servable=servable(name, version=version))
        core.call("publish", model=name, version=version)
    assert next(watch) == SERVING
    core.call("retire", model=name, version=1)
    assert check(service(name), timeout=PATIENCE_S) == SERVING
    core.call("retire", model=name, version=2)
    assert next(watch) == NOT_SERVING  # and nothing was said in between
    with pytest.raises(Refused):
        core.call("retire", model=name, version=2)
    assert check(service(name), timeout=PATIENCE_S) == NOT_SERVING
    core.call("publish", model=name, version=1)
    assert next(watch) == SERVING
    core.call("status", models={"m": []})
    assert check(service(name), timeout=PATIENCE_S) == SERVING  # it can still be called
    core.call("retire", model=name, version=1)
    assert next(watch) == SERVICE_UNKNOWN
    assert refusal(lambda: check(service(name), timeout=PATIENCE_S))[0] is grpc.StatusCode.NOT_FOUND
    for version in (1, 2):
        core.call("close", model=name, version=version)
    watch.cancel()
    server.cancel()
    assert check(b"", timeout=PATIENCE_S) == SERVING


def test_without_a_table_a_model_without_versions_is_still_known() -> None:
    with Core() as core, grpc.insecure_channel(core.address) as channel:
        core.serve(servable("m"))
        core.call("retire", model="m", version=1)
        check = channel.unary_unary(CHECK)
        assert check(service("m"), timeout=PATIENCE_S) == NOT_SERVING
        assert check(b"", timeout=PATIENCE_S) == SERVING
        assert refusal(lambda: check(service("other"), timeout=PATIENCE_S))[0] is grpc.StatusCode.NOT_FOUND
