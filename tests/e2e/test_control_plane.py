"""The daemon's calls beside Predict: metadata, runs by name, reflection and health, with stock messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from daemon_process import Daemon
from exported_models import SERVED, exported_models
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from predict_client import Client, request
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2,
    prediction_service_pb2_grpc,
    session_service_pb2,
)

PATIENCE_S = 30.0
SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"


@pytest.fixture(scope="module")
def daemon(launch_shared: Callable[..., Daemon]) -> Daemon:
    return launch_shared("half", "shapes", "brittle", server="session_run = true")


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon.channel() as channel:
        yield channel


def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


# ---- GetModelMetadata --------------------------------------------------------------------------


def newest(model: str) -> Path:
    return max((exported_models(SERVED) / model).iterdir(), key=lambda path: int(path.name))


@pytest.mark.parametrize("model", ["half", "shapes", "brittle"])
@pytest.mark.parametrize("xla", ["off", "full"])
def test_the_metadata_is_what_the_export_says(launch: Callable[..., Daemon], model: str, xla: str) -> None:
    daemon = launch(model, settings=f'xla = "{xla}"')
    with daemon.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        asked.model_spec.name = model
        reply = stub.GetModelMetadata(asked, timeout=PATIENCE_S)
    version = newest(model)
    assert (reply.model_spec.name, reply.model_spec.version.value) == (model, int(version.name))
    told = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(told)
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    expected = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in saved.meta_graphs[0].signature_def.items():
        expected.signature_def[name].CopyFrom(signature)
        expected.signature_def[name].ClearField("defaults")
    assert told == expected


# ---- SessionRun ---------------------------------------------------------------------------------


def named(model: str, feeds: dict[str, Any], *fetches: str, targets: tuple[str, ...] = ()) -> Any:
    made = session_service_pb2.SessionRunRequest(fetch=fetches, target=targets)
    made.model_spec.name = model
    for name, value in feeds.items():
        made.feed.add(name=name).tensor.CopyFrom(tf.make_tensor_proto(value))
    return made


def run(channel: grpc.Channel, asked: Any) -> Any:
    ask = channel.unary_unary(
        SESSION_RUN,
        session_service_pb2.SessionRunRequest.SerializeToString,
        session_service_pb2.SessionRunResponse.FromString,
    )
    return ask(asked, timeout=PATIENCE_S)


def signature_of(model: str, name: str = "serving_default") -> Any:
    saved = saved_model_pb2.SavedModel.FromString((newest(model) / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].signature_def[name]


def test_a_run_by_name_answers_as_the_signature_does(channel: grpc.Channel) -> None:
    signature = signature_of("shapes")
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    feeds = {signature.inputs["a"].name: rows, signature.inputs["b"].name: rows + 1}
    fetches = [signature.outputs["sum"].name, signature.outputs["product"].name]
    reply = run(channel, named("shapes", feeds, *fetches))
    assert [one.name for one in reply.tensor] == fetches
    assert tf.make_ndarray(reply.tensor[0].tensor).tolist() == (rows + rows + 1).tolist()
    assert tf.make_ndarray(reply.tensor[1].tensor).tolist() == (rows * (rows + 1)).tolist()
    assert (reply.model_spec.name, reply.model_spec.version.value) == ("shapes", int(newest("shapes").name))
    assert reply.model_spec.signature_name == ""


def test_strings_and_scalars_and_a_fed_tensor_itself(channel: grpc.Channel) -> None:
    words = signature_of("shapes", "words")
    name = words.inputs["word"].name
    reply = run(channel, named("shapes", {name: [b"ab", b""]}, words.outputs["upper"].name))
    assert list(reply.tensor[0].tensor.string_val) == [b"AB", b""]
    scalar = signature_of("shapes", "scalar")
    fed = scalar.inputs["x"].name
    reply = run(channel, named("shapes", {fed: np.float32(4)}, scalar.outputs["y"].name))
    assert tf.make_ndarray(reply.tensor[0].tensor) == 8.0


def test_aliases_are_those_of_the_signature(channel: grpc.Channel) -> None:
    asked = named("shapes", {"word": [b"xy"]}, "length", "upper")
    asked.tensor_name_is_alias = True
    asked.model_spec.signature_name = "words"
    reply = run(channel, asked)
    assert [one.name for one in reply.tensor] == ["length", "upper"]
    assert list(reply.tensor[0].tensor.int_val) == [2]
    asked.fetch.append("word")
    assert refusal(lambda: run(channel, asked)) == (
        "INVALID_ARGUMENT",
        "tensor alias not found in signature: word",
    )


def test_tensorflows_words_for_what_it_refuses(channel: grpc.Channel) -> None:
    half = signature_of("half")
    x, y = half.inputs["x"].name, half.outputs["y"].name
    one = np.ones(1, np.float32)
    absent = "Tensor absent:0, specified in either feed_devices or fetch_devices was not found in the Graph"
    assert refusal(lambda: run(channel, named("half", {"absent:0": one}, y))) == ("INVALID_ARGUMENT", absent)
    assert refusal(lambda: run(channel, named("half", {x: one}, "absent:0"))) == ("INVALID_ARGUMENT", absent)
    assert refusal(lambda: run(channel, named("half", {x: one}, y, targets=("absent",)))) == (
        "NOT_FOUND",
        "PruneForTargets: Some target nodes not found: absent",
    )
    assert refusal(lambda: run(channel, named("half", {x: one})))[0] == "INVALID_ARGUMENT"
    twice = named("half", {x: one}, y)
    twice.feed.add().CopyFrom(twice.feed[0])
    assert "fed more than once" in refusal(lambda: run(channel, twice))[1]
    assert refusal(lambda: run(channel, named("half", {x: [b"no float"]}, y)))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: run(channel, named("half", {}, y)))[0] == "INVALID_ARGUMENT"
    brittle = signature_of("brittle")
    negative = named("brittle", {brittle.inputs["x"].name: -one}, brittle.outputs["y"].name)
    code, text = refusal(lambda: run(channel, negative))
    assert code == "INVALID_ARGUMENT" and "negative row" in text
    missing = ("NOT_FOUND", "Servable not found for request: Latest(none)")
    assert refusal(lambda: run(channel, named("none", {x: one}, y))) == missing


def test_so_many_different_lists_and_no_more(launch: Callable[..., Daemon]) -> None:
    """Distinct by order, as TensorFlow keeps them; known ones go on, and so does Predict."""
    daemon = launch("shapes", server="session_run = true")
    signature = signature_of("shapes")
    feeds = {port.name: np.ones((1, 3), np.float32) for _, port in sorted(signature.inputs.items())}
    outputs = [port.name for _, port in sorted(signature.outputs.items())]
    with daemon.channel() as channel:
        lists = [[outputs[bit == "1"] for bit in f"{number:06b}"] for number in range(64)]
        for fetches in lists:
            assert len(run(channel, named("shapes", feeds, *fetches)).tensor) == 6
        code, text = refusal(lambda: run(channel, named("shapes", feeds, outputs[0])))
        assert code == "RESOURCE_EXHAUSTED"
        assert text.startswith(
            "this version has been run with 64 different lists of feeds, fetches and targets"
        )
        assert len(run(channel, named("shapes", feeds, *lists[0])).tensor) == 6
        pair = {"a": [[1.0, 2.0, 3.0]], "b": [[4.0, 5.0, 6.0]]}
        reply = Client(channel).predict(request("shapes", pair))
        assert list(reply.outputs["sum"].float_val) == [5.0, 7.0, 9.0]


def test_with_xla_runs_by_name_find_the_graph_as_it_was_exported(launch: Callable[..., Daemon]) -> None:
    daemon = launch("half", server="session_run = true", settings='xla = "full"')
    half = signature_of("half")
    with daemon.channel() as channel:
        reply = run(channel, named("half", {half.inputs["x"].name: [4.0]}, half.outputs["y"].name))
        expected = Client(channel).predict(request("half", {"x": [4.0]}))
        assert list(reply.tensor[0].tensor.float_val) == list(expected.outputs["y"].float_val)


def test_it_is_off_unless_switched_on(launch: Callable[..., Daemon]) -> None:
    daemon = launch("half")
    with daemon.channel() as channel:
        assert refusal(lambda: run(channel, named("half", {}, "y"))) == ("UNIMPLEMENTED", "")


# ---- reflection, health, profiler -----------------------------------------------------------------


def test_a_client_that_knows_nothing(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.SessionService",
    ]
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["List"]
    listed = channel.unary_unary(
        "/grpc.health.v1.Health/List",
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )(b"", timeout=PATIENCE_S)
    assert {name: one.status for name, one in listed.statuses.items()} == dict.fromkeys(
        [
            "",
            "ModelService",
            "PredictionService",
            "brittle",
            "half",
            "shapes",
            "tensorflow.serving.ModelService",
            "tensorflow.serving.PredictionService",
        ],
        1,
    )


def test_every_message_has_the_stock_clients_fields(channel: grpc.Channel) -> None:
    """What reflection tells of TensorFlow Serving's own messages is what its client has: the same numbers,
    types and labels under the same names."""
    ours = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    assert "ModelService" in model_service_pb2.DESCRIPTOR.services_by_name  # which puts its messages there:
    theirs = descriptor_pool.Default()
    waiting = [
        message
        for service in ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
        for method in ours.FindServiceByName(service).methods
        for message in (method.input_type, method.output_type)
    ]
    waiting.append(ours.FindMessageTypeByName("tensorflow.serving.SignatureDefMap"))
    waiting.append(ours.FindMessageTypeByName("tensorflow.serving.SessionRunRequest"))
    waiting.append(ours.FindMessageTypeByName("tensorflow.serving.SessionRunResponse"))
    seen: set[str] = set()
    # Bytes where the client has a message, which is the same on the wire.
    as_bytes = {
        "tensorflow.SignatureDef.DefaultsEntry.value",
        "tensorflow.TensorInfo.composite_tensor",
        "tensorflow.AttrValue.tensor",
    }
    # Numbers where the client has an enum.
    as_number = {
        "tensorflow.serving.ModelConfig.model_type",
        "tensorflow.serving.StatusProto.error_code",
        "tensorflow.AttrValue.type",
        "tensorflow.AttrValue.ListValue.type",
        "tensorflow.OpDef.ArgDef.type",
    }
    while waiting:
        described = waiting.pop()
        if described.full_name in seen:
            continue
        seen.add(described.full_name)
        stock = theirs.FindMessageTypeByName(described.full_name)
        for field in described.fields:
            known = stock.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (known.number, known.is_repeated), field.full_name
            if field.full_name not in as_bytes | as_number:
                assert field.type == known.type, field.full_name
            if field.message_type is not None:
                waiting.append(field.message_type)
    assert len(seen) > 40
