"""Descriptors and server reflection, with protobuf as the oracle."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.core import wire
from fastserve.core.descriptors import PATH, Descriptors
from fastserve.core.reflection import SERVICES, Reflection
from fastserve.core.service import Status
from fastserve.protos import message

PREDICTION = "tensorflow.serving.PredictionService"
HEALTH = "grpc.health.v1.Health"
NOT_FOUND, INVALID_ARGUMENT, INTERNAL = 5, 3, 13

Request = message("grpc.reflection.v1.ServerReflectionRequest")
Response = message("grpc.reflection.v1.ServerReflectionResponse")
FILES = descriptor_pb2.FileDescriptorSet.FromString(PATH.read_bytes()).file


class FakeCall:
    """A stream that brings these messages, and what was answered."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._messages = list(messages)
        self.sent: list[bytes] = []

    def send(self, reply: bytes) -> None:
        self.sent.append(reply)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self._messages:
            yield one


def reflection(*services: str) -> Reflection:
    return Reflection(Descriptors.read(), services or (PREDICTION, HEALTH, *SERVICES))


async def ask_raw(*requests: bytes, of: Reflection | None = None) -> list[Any]:
    call = FakeCall(requests)
    methods = list((of or reflection()).methods())
    assert [method.path for method in methods] == [f"/{name}/ServerReflectionInfo" for name in SERVICES]
    assert all(method.streaming for method in methods)
    await methods[0].handler(call)
    return [Response.FromString(reply) for reply in call.sent]


async def ask(*requests: dict[str, Any], of: Reflection | None = None) -> list[Any]:
    return await ask_raw(*(Request(**one).SerializeToString() for one in requests), of=of)


def names(response: Any) -> list[str]:
    """Of the files in an answer."""
    return [
        descriptor_pb2.FileDescriptorProto.FromString(data).name
        for data in response.file_descriptor_response.file_descriptor_proto
    ]


# ---- descriptors ---------------------------------------------------------------------------------


def symbols(file: Any) -> dict[str, str]:
    """Every full name that protobuf finds in a file, and what it is."""
    found: dict[str, str] = {}
    prefix = f"{file.package}." if file.package else ""

    def enums(scope: str, kinds: Any) -> None:
        for enum in kinds:
            found[scope + enum.name] = "enum"
            found.update(dict.fromkeys((scope + value.name for value in enum.value), "leaf"))

    def messages(scope: str, kinds: Any) -> None:
        for one in kinds:
            within = f"{scope}{one.name}."
            found[scope + one.name] = "message"
            found.update(dict.fromkeys((within + part.name for part in [*one.field, *one.oneof_decl]), "leaf"))
            enums(within, one.enum_type)
            messages(within, one.nested_type)

    messages(prefix, file.message_type)
    enums(prefix, file.enum_type)
    for service in file.service:
        found[prefix + service.name] = "service"
        found.update(dict.fromkeys((f"{prefix}{service.name}.{m.name}" for m in service.method), "leaf"))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_name_is_found_in_its_file(file: Any) -> None:
    descriptors = Descriptors.read()
    read = descriptors.file(file.name)
    assert read is not None and descriptor_pb2.FileDescriptorProto.FromString(read) == file
    for symbol, kind in symbols(file).items():
        assert (descriptors.home(symbol), descriptors.kind(symbol)) == (file.name, kind), symbol
    assert next(descriptors.needed(file.name)) == file.name
    assert set(file.dependency) <= set(descriptors.needed(file.name))


def test_what_a_service_needs_is_kept_and_nothing_else() -> None:
    descriptors = Descriptors.read()
    descriptors.keep([HEALTH, "no.such.Service"])
    assert descriptors.file("grpc/health/v1/health.proto") is not None
    assert descriptors.home("grpc.health.v1.HealthCheckResponse.ServingStatus") == "grpc/health/v1/health.proto"
    assert descriptors.file("saved_model.proto") is None
    assert descriptors.home(PREDICTION) is None
    assert descriptors.kind("tensorflow.TensorProto") is None


@given(st.binary(max_size=200) | st.integers(0, len(PATH.read_bytes())).map(lambda n: PATH.read_bytes()[:n]))
@settings(max_examples=200, deadline=None)
def test_other_bytes_are_malformed_or_describe_something(data: bytes) -> None:
    try:
        Descriptors(data)
    except wire.Malformed:
        pass


# ---- reflection ----------------------------------------------------------------------------------


async def test_the_services_there_are() -> None:
    (response,) = await ask({"list_services": "*", "host": "h"}, of=reflection(PREDICTION, "x.Y", *SERVICES))
    assert [one.name for one in response.list_services_response.service] == sorted([PREDICTION, *SERVICES])
    assert response.valid_host == "h"
    assert response.original_request == Request(list_services="*", host="h")


@pytest.mark.parametrize(
    "symbol",
    [
        PREDICTION,
        f"{PREDICTION}.Predict",
        "tensorflow.serving.PredictRequest",
        "tensorflow.serving.PredictRequest.inputs",
        "tensorflow.serving.PredictRequest.InputsEntry.key",
        "tensorflow.serving.ModelSpec.version_choice",
        "tensorflow.DT_FLOAT",
        "google.protobuf.Int64Value",
    ],
)
async def test_a_symbols_file_comes_with_all_that_it_needs(symbol: str) -> None:
    (response,) = await ask({"file_containing_symbol": symbol})
    pool = descriptor_pool.DescriptorPool()
    files = {
        file.name: file
        for file in map(
            descriptor_pb2.FileDescriptorProto.FromString,
            response.file_descriptor_response.file_descriptor_proto,
        )
    }
    assert len(files) == len(response.file_descriptor_response.file_descriptor_proto)

    def add(name: str) -> None:
        for needed in files[name].dependency:
            add(needed)
        pool.Add(files[name])

    first = names(response)[0]
    add(first)  # and protobuf finds all that it needs
    assert symbol in symbols(files[first])


async def test_a_file_by_its_name_and_what_a_stream_was_sent_already() -> None:
    predict, model = "tensorflow_serving/apis/predict.proto", "tensorflow_serving/apis/model.proto"
    first, again, other = await ask(
        {"file_by_filename": model}, {"file_by_filename": model}, {"file_by_filename": predict}
    )
    assert names(first) == [model, "google/protobuf/wrappers.proto"]
    assert names(again) == [model]
    assert names(other)[0] == predict
    assert "tensorflow/core/framework/tensor.proto" in names(other)
    assert not set(names(first)) & set(names(other))


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        ({"file_by_filename": "no.proto"}, NOT_FOUND, "file not found"),
        ({"file_by_filename": "saved_model.proto"}, NOT_FOUND, "file not found"),
        ({"file_containing_symbol": "no.Such"}, NOT_FOUND, "symbol not found"),
        ({"file_containing_symbol": ""}, NOT_FOUND, "symbol not found"),
        ({"file_containing_symbol": "tensorflow.SavedModel"}, NOT_FOUND, "symbol not found"),
        (
            {"file_containing_extension": {"containing_type": "tensorflow.TensorProto", "extension_number": 5}},
            NOT_FOUND,
            "extension not found",
        ),
        ({"all_extension_numbers_of_type": "no.Such"}, NOT_FOUND, "type not found"),
        ({"all_extension_numbers_of_type": PREDICTION}, NOT_FOUND, "type not found"),
        ({}, INVALID_ARGUMENT, "the request asks for nothing that is known here"),
    ],
)
async def test_errors_are_answers_and_the_stream_goes_on(asked: dict[str, Any], code: int, text: str) -> None:
    error, after = await ask(asked, {"list_services": ""})
    assert (error.error_response.error_code, error.error_response.error_message) == (code, text)
    assert error.original_request == Request(**asked)
    assert after.WhichOneof("message_response") == "list_services_response"


async def test_messages_have_no_extensions() -> None:
    (response,) = await ask({"all_extension_numbers_of_type": "tensorflow.TensorProto"})
    answer = response.all_extension_numbers_response
    assert (answer.base_type_name, list(answer.extension_number)) == ("tensorflow.TensorProto", [])


async def test_what_is_no_request_ends_the_stream() -> None:
    with pytest.raises(Status) as caught:
        await ask_raw(b"\x1a\x05x")
    assert (caught.value.code, caught.value.message) == (INTERNAL, "")


_TEXT = st.sampled_from(["", "*", PREDICTION, "tensorflow_serving/apis/model.proto"]) | st.text(max_size=20)
_ASKED = st.one_of(
    st.builds(lambda value: {"file_by_filename": value}, _TEXT),
    st.builds(lambda value: {"file_containing_symbol": value}, _TEXT),
    st.builds(lambda value: {"all_extension_numbers_of_type": value}, _TEXT),
    st.builds(lambda value: {"list_services": value}, _TEXT),
    st.just({"file_containing_extension": {"containing_type": "x", "extension_number": 1}}),
)


def _spoil(data: bytes, at: int, byte: int) -> bytes:
    return data[: at % (len(data) + 1)] + bytes([byte]) + data[at % (len(data) + 1) :]


_BYTES = st.one_of(
    st.binary(max_size=40),
    st.lists(_ASKED, max_size=3).map(lambda asked: b"".join(Request(**a).SerializeToString() for a in asked)),
    st.builds(
        _spoil, _ASKED.map(lambda a: Request(**a).SerializeToString()), st.integers(0, 60), st.integers(0, 255)
    ),
)


@given(_BYTES)
@settings(max_examples=400, deadline=None)
def test_any_bytes_mean_what_protobuf_reads_in_them(data: bytes) -> None:
    try:
        expected = Request.FromString(data)
    except DecodeError:
        expected = None
    made = reflection(HEALTH)._answer
    if expected is None:
        with pytest.raises(wire.Malformed):
            made(data, set())
        return
    response = Response.FromString(made(data, set()))
    assert response.valid_host == expected.host
    kind = expected.WhichOneof("message_request")
    assert (kind is None) == (response.error_response.error_code == INVALID_ARGUMENT)


def test_the_handlers_are_coroutines() -> None:
    assert all(inspect.iscoroutinefunction(method.handler) for method in reflection().methods())
