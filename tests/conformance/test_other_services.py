"""What is served beside models: SessionRun, the profiler's refusal, server reflection, health of services."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from conformance.conftest import Serve
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tensorflow_serving.apis import session_service_pb2

SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"
SERVING = b"\x08\x01"  # HealthCheckResponse.status


def refusal(channel: grpc.Channel, method: str, request: bytes = b"") -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(request, timeout=60)
    return caught.value.code().name, caught.value.details()


# ---- SessionRun --------------------------------------------------------------------------------


def run_request(feed: str = "x:0", fetch: str = "y:0", value: float = 4.0) -> Any:
    request = session_service_pb2.SessionRunRequest(fetch=[fetch])
    request.model_spec.name = "half_plus_two"
    tensor = request.feed.add(name=feed).tensor
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(value)
    return request


def session_run(channel: grpc.Channel, request: Any) -> Any:
    method = channel.unary_unary(
        SESSION_RUN,
        request_serializer=type(request).SerializeToString,
        response_deserializer=session_service_pb2.SessionRunResponse.FromString,
    )
    return method(request, timeout=60)


def test_session_run_is_off(channel: grpc.Channel) -> None:
    code, _ = refusal(channel, SESSION_RUN, run_request().SerializeToString())
    assert code == "UNIMPLEMENTED"


def test_session_run_where_it_is_on(serve: Serve) -> None:
    with serve({"half_plus_two": ""}, server="session_run = true").channel() as channel:
        reply = session_run(channel, run_request())
        assert (reply.model_spec.name, reply.model_spec.version.value) == ("half_plus_two", 123)
        (tensor,) = reply.tensor
        assert (tensor.name, list(tensor.tensor.float_val)) == ("y:0", [4.0])
        code, text = refusal(channel, SESSION_RUN, run_request(fetch="nope:0").SerializeToString())
        assert code in ("INVALID_ARGUMENT", "NOT_FOUND") and "nope" in text
        # TensorFlow keeps an executor for each list of names: there is a bound.
        codes = [
            refusal(channel, SESSION_RUN, run_request(fetch=f"nope{n}:0").SerializeToString())[0]
            for n in range(80)
        ]
        assert "RESOURCE_EXHAUSTED" not in codes  # what does not run is not kept
        assert session_run(channel, run_request(value=0.0)).tensor[0].tensor.float_val[0] == 2.0


# ---- the profiler ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Profile", "Monitor", "Terminate"])
def test_the_profiler_says_what_to_use_instead(channel: grpc.Channel, method: str) -> None:
    code, text = refusal(channel, f"/tensorflow.ProfilerService/{method}")
    assert code == "UNIMPLEMENTED" and "perf record" in text


# ---- reflection --------------------------------------------------------------------------------


def test_reflection_knows_the_services_and_their_messages(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= services
    file = database.FindFileContainingSymbol("tensorflow.serving.PredictionService")
    methods = [method.name for service in file.service for method in service.method]
    assert {"Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"} <= set(methods)


def test_the_newer_reflection_lists_the_same(channel: grpc.Channel) -> None:
    info = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    (reply,) = info(iter([b"\x3a\x01*"]), timeout=60)
    assert b"tensorflow.serving.PredictionService" in reply


# ---- health ------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["ModelService", "PredictionService"])
@pytest.mark.parametrize("package", ["", "tensorflow.serving."])
def test_health_by_service(channel: grpc.Channel, package: str, service: str) -> None:
    name = f"{package}{service}".encode()
    asked = bytes([0x0A, len(name)]) + name
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(asked, timeout=60) == SERVING


def test_health_list_names_every_model(channel: grpc.Channel) -> None:
    reply = channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=60)
    assert b"half_plus_two" in reply and b"versions" in reply
