"""GetModelMetadata: the signatures as the SavedModel has them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.case import Case, ask, check, named, spec
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

FIELD = 'metadata_field: "signature_def" '


def wrong(name: str, request: str, message: str, code: str = "INVALID_ARGUMENT") -> Case:
    return Case(name, "GetModelMetadata", request, code, message)


NO_FIELD = "GetModelMetadataRequest must specify at least one metadata_field"
REFUSED = [
    wrong("no model spec", FIELD, "Missing ModelSpec"),
    wrong("nothing", "", "Missing ModelSpec"),
    wrong("no field", spec("many"), NO_FIELD),
    wrong("no field, of an unknown model", spec("nope"), NO_FIELD),
    wrong("another field", spec("many") + 'metadata_field: "foo"', "Metadata field foo is not supported"),
    wrong(
        "another field, too",
        spec("many") + FIELD + 'metadata_field: "foo"',
        "Metadata field foo is not supported",
    ),
    wrong("no name", spec("") + FIELD, "ModelSpec has no name specified."),
    wrong("unknown model", spec("nope") + FIELD, "Servable not found for request: Latest(nope)", "NOT_FOUND"),
    wrong(
        "unknown version",
        spec("many", version=4) + FIELD,
        "Servable not found for request: Specific(many, 4)",
        "NOT_FOUND",
    ),
    wrong("unknown label", spec("many", label="x") + FIELD, "Unrecognized servable version label: x"),
]


@pytest.mark.parametrize(**named(REFUSED))
def test_refused(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)


@pytest.mark.parametrize(
    ("model", "version", "request_text"),
    [
        pytest.param("half_plus_two", 123, spec("half_plus_two") + FIELD, id="as TensorFlow 1 exports"),
        pytest.param("many", 1, spec("many") + FIELD, id="as TensorFlow 2 exports"),
        pytest.param("keras", 1, spec("keras") + FIELD, id="as Keras exports"),
        pytest.param("vocabulary", 1, spec("vocabulary") + FIELD, id="the signature of initialization, too"),
        pytest.param("classes", 1, spec("classes") + FIELD, id="signatures of all methods"),
        pytest.param("defaults", 1, spec("defaults") + FIELD, id="without defaults"),
        pytest.param("versions", 2, spec("versions") + FIELD, id="the newest version"),
        pytest.param("versions", 1, spec("versions", version=1) + FIELD, id="a version"),
        pytest.param("versions", 1, spec("versions", label="stable") + FIELD, id="a label"),
        pytest.param("many", 1, spec("many", "zzz") + FIELD, id="a signature does not count"),
        pytest.param("many", 1, spec("many") + FIELD * 2, id="the field twice"),
    ],
)
def test_metadata(channel: grpc.Channel, models: Path, model: str, version: int, request_text: str) -> None:
    answer = ask(channel, "GetModelMetadata", request_text)
    assert answer.code == "OK", answer.message
    reply: Any = answer.reply
    assert (reply.model_spec.name, reply.model_spec.version.value) == (model, version)
    assert not reply.model_spec.signature_name
    assert list(reply.metadata) == ["signature_def"]
    assert (
        reply.metadata["signature_def"].type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    )
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(signatures)

    exported = saved_model_pb2.SavedModel()
    exported.ParseFromString((models / model / str(version) / "saved_model.pb").read_bytes())
    expected = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in exported.meta_graphs[0].signature_def.items():
        expected.signature_def[name].CopyFrom(signature)
        expected.signature_def[name].ClearField("defaults")
    assert signatures == expected
