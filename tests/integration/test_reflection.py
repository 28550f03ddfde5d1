"""Server reflection of a core, with gRPC's own client for it: everything can be called knowing nothing beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, Core, servable
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from h2_client import Client, frame

INFO = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
]


@pytest.fixture(scope="module", params=[0, 1], ids=lambda n: f"io_threads={n}")
def core(request: pytest.FixtureRequest) -> Iterator[Core]:
    with Core(server={"io_threads": request.param}) as core:
        core.serve(servable("m", version=3))
        yield core


@pytest.fixture
def channel(core: Core) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(core.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def call(channel: grpc.Channel, pool: Any, service: str, method: str, /, **fields: Any) -> Any:
    """A call of which nothing is known but names."""
    described = pool.FindServiceByName(service).methods_by_name[method]
    request = message_factory.GetMessageClass(described.input_type)(**fields)
    reply = message_factory.GetMessageClass(described.output_type)
    ask = channel.unary_unary(f"/{service}/{method}", type(request).SerializeToString, reply.FromString)
    return ask(request, timeout=PATIENCE_S)


def test_the_services_there_are(channel: grpc.Channel) -> None:
    assert sorted(ProtoReflectionDescriptorDatabase(channel).get_services()) == SERVICES


def test_a_client_that_knows_nothing_calls_every_service(channel: grpc.Channel) -> None:
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    prediction = "tensorflow.serving.PredictionService"
    tensor = {"dtype": 1, "tensor_shape": {"dim": [{"size": 2}, {"size": 1}]}, "float_val": [2.0, 4.0]}
    reply = call(channel, pool, prediction, "Predict", model_spec={"name": "m"}, inputs={"x": tensor})
    assert list(reply.outputs["y"].float_val) == [3.0, 4.0]
    assert reply.model_spec.version.value == 3
    reply = call(
        channel, pool, prediction, "GetModelMetadata", model_spec={"name": "m"}, metadata_field=["signature_def"]
    )
    packed = pool.FindMessageTypeByName("tensorflow.serving.SignatureDefMap")
    assert message_factory.GetMessageClass(packed).FromString(reply.metadata["signature_def"].value) is not None
    status = call(channel, pool, "tensorflow.serving.ModelService", "GetModelStatus", model_spec={"name": "m"})
    assert [one.version for one in status.model_version_status] == [3]
    assert call(channel, pool, "grpc.health.v1.Health", "Check", service="m").status == 1
    assert call(channel, pool, "grpc.health.v1.Health", "List").statuses["m"].status == 1


def test_every_method_that_is_described_is_served(core: Core, channel: grpc.Channel) -> None:
    """Save those that this server has no word of yet: a method without a handler is UNIMPLEMENTED, without text."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    for name in ["grpc.health.v1.Health", "tensorflow.serving.ModelService"]:
        for method in pool.FindServiceByName(name).methods_by_name.values():
            if method.server_streaming or method.name == "HandleReloadConfigRequest":
                continue
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{name}/{method.name}")(b"\x08", timeout=PATIENCE_S)
            assert caught.value.code() is not grpc.StatusCode.UNIMPLEMENTED, method.full_name


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_and_many_requests_in_one_stream(channel: grpc.Channel, version: str) -> None:
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    kinds = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.reflection.{version}.{name}"))
        for name in ("ServerReflectionRequest", "ServerReflectionResponse")
    ]
    request, response = kinds
    symbols = ["tensorflow.TensorProto", "no.Such", "grpc.health.v1.Health.Check"] * 60
    asked = [request(file_containing_symbol=symbol) for symbol in symbols]
    stream = channel.stream_stream(INFO.format(version), request.SerializeToString, response.FromString)
    replies = list(stream(iter(asked), timeout=PATIENCE_S))
    assert [reply.original_request for reply in replies] == asked
    assert [reply.WhichOneof("message_response") for reply in replies] == [
        "error_response" if symbol == "no.Such" else "file_descriptor_response" for symbol in symbols
    ]
    assert {reply.error_response.error_code for reply in replies if reply.HasField("error_response")} == {5}


def test_a_request_that_is_none_ends_its_stream_and_no_other(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(INFO.format("v1"))
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"\x1a\x05x"]), timeout=PATIENCE_S))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "")
    assert len(list(stream(iter([b"\x3a\x00"]), timeout=PATIENCE_S))) == 1


def test_who_sends_more_than_may_wait_is_cut_off() -> None:
    """In one piece of a connection that the loop drives, so that nobody reads between them."""
    with Core() as core:
        core.serve(servable("m"))
        with Client(core.port) as client:
            stream = client.h2.get_next_available_stream_id()
            headers = [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", INFO.format("v1")),
                (":authority", "x"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ]
            client.h2.send_headers(stream, headers)
            client.h2.send_data(stream, frame(b"\x3a\x00") * 2000)
            client.data[stream] = bytearray()
            client.sock.sendall(client.h2.data_to_send())
            client.finish(stream)
            assert client.status[stream] == "8"


def test_it_can_be_switched_off() -> None:
    with Core(server={"reflection": False}) as core, grpc.insecure_channel(core.address) as channel:
        core.serve(servable("m"))
        for version in ("v1", "v1alpha"):
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(INFO.format(version))(iter([b"\x3a\x00"]), timeout=PATIENCE_S))
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "")


def test_session_run_is_described_where_it_is_served() -> None:
    with Core(server={"session_run": True}) as core, grpc.insecure_channel(core.address) as channel:
        core.serve(servable("m"))
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "tensorflow.serving.SessionService" in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, pool, "tensorflow.serving.SessionService", "SessionRun", model_spec={"name": "m"})
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "is run by its signatures only" in caught.value.details()


def test_the_profiler_says_what_to_use_instead(channel: grpc.Channel) -> None:
    for method in ("Profile", "Monitor", "Terminate"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/tensorflow.ProfilerService/{method}")(b"", timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details().startswith("the profiler is not served here: `perf record")


def test_session_run_is_unknown_unless_it_is_switched_on(channel: grpc.Channel) -> None:
    for method in ("SessionService/SessionRun", "PredictionService/Foo"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/tensorflow.serving.{method}")(b"", timeout=PATIENCE_S)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "")
