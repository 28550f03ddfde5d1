"""GetModelMetadata's coroutine: requests read and replies written, with protobuf as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from fastserve._native.runtime import RuntimeFailure
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.core.metadata import Metadata
from fastserve.core.service import Status
from fastserve.protos import message

Request = message("tensorflow.serving.GetModelMetadataRequest")
Response = message("tensorflow.serving.GetModelMetadataResponse")
Map = message("tensorflow.serving.SignatureDefMap")
Spec = message("tensorflow.serving.ModelSpec")
INVALID_ARGUMENT, INTERNAL = 3, 13

SIGNATURES = Map()
SIGNATURES.signature_def["serving_default"].inputs["x"].name = "x:0"


class FakeEngine:
    def signature_def_map(self, model: str, version: int) -> bytes:
        data: bytes = SIGNATURES.SerializeToString() if version else b""
        return data


class FakeCall:
    """Resolves a spec to the version that it names, and to 7 when it names none."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def resolve(self, spec: bytes) -> tuple[str, int]:
        self.asked.append(spec)
        try:
            wanted = Spec.FromString(spec)
        except DecodeError:
            raise RuntimeFailure("INTERNAL", "") from None
        if wanted.version_label:
            raise RuntimeFailure("INVALID_ARGUMENT", "Unrecognized servable version label: x")
        return wanted.name, wanted.version.value if wanted.HasField("version") else 7


async def get(data: bytes) -> Any:
    (method,) = Metadata(FakeEngine()).methods()
    assert (method.path, method.streaming) == (
        "/tensorflow.serving.PredictionService/GetModelMetadata",
        False,
    )
    return Response.FromString(await method.handler(data, FakeCall()))


def request(name: str = "m", *fields: str, version: int | None = None) -> bytes:
    made = Request(model_spec={"name": name}, metadata_field=fields)
    if version is not None:
        made.model_spec.version.value = version
    data: bytes = made.SerializeToString()
    return data


async def test_the_reply_is_packed_as_any() -> None:
    reply = await get(request("m", "signature_def"))
    assert (reply.model_spec.name, reply.model_spec.version.value) == ("m", 7)
    assert reply.model_spec.signature_name == ""
    assert list(reply.metadata) == ["signature_def"]
    packed = reply.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    assert Map.FromString(packed.value) == SIGNATURES


async def test_version_zero_is_there_and_a_field_may_be_asked_for_twice() -> None:
    reply = await get(request("m", "signature_def", "signature_def", version=0))
    assert reply.model_spec.HasField("version") and reply.model_spec.version.value == 0
    assert reply.metadata["signature_def"].value == b""


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"", INVALID_ARGUMENT, "Missing ModelSpec"),
        (b"\x12\x0dsignature_def", INVALID_ARGUMENT, "Missing ModelSpec"),
        (request(), INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"),
        (request("m", "foo"), INVALID_ARGUMENT, "Metadata field foo is not supported"),
        (request("m", "signature_def", ""), INVALID_ARGUMENT, "Metadata field  is not supported"),
        (b"\x0a\x05m", INTERNAL, ""),
        (b"\x0a\x00\x12\x01\xff", INTERNAL, ""),
        (b"\x0a\x01\x0a\x12\x0dsignature_def", INTERNAL, ""),
        (b"\x0a\x01\x0a\x0a\x01m", INTERNAL, ""),  # each part of a message must be whole
    ],
)
async def test_what_is_refused(data: bytes, code: int, text: str) -> None:
    with pytest.raises(Status) as caught:
        await get(data)
    assert (caught.value.code, caught.value.message) == (code, text)


async def test_the_engines_refusals_pass_through() -> None:
    data = Request(model_spec={"name": "m", "version_label": "x"}, metadata_field=["signature_def"])
    with pytest.raises(RuntimeFailure, match="Unrecognized servable version label: x"):
        await get(data.SerializeToString())


def _cut(data: bytes, at: int) -> bytes:
    return data[: at % (len(data) + 1)]


@given(
    st.binary(max_size=40)
    | st.builds(_cut, st.sampled_from([request("m", "signature_def", version=300) * 2]), st.integers(0, 200))
)
@settings(max_examples=300, deadline=None)
async def test_any_bytes_are_answered_as_protobuf_reads_them(data: bytes) -> None:
    try:
        wanted = Request.FromString(data)
    except DecodeError:
        wanted = None
    try:
        reply = await get(data)
    except Status as status:
        # What is wrong within the spec the engine finds, and comes to when nothing else is.
        assert wanted is None or status.code == INVALID_ARGUMENT
    except RuntimeFailure as failure:
        assert (wanted is None) == (failure.code == "INTERNAL")
    else:
        assert wanted is not None
        assert reply.model_spec.name == wanted.model_spec.name
        assert set(wanted.metadata_field) == {"signature_def"}
