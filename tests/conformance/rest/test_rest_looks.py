"""GET: a model's versions and its signatures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.case import ask, spec
from conformance.rest.rest_case import RestCase, address_of, cases, check, fetch
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2


def available(*versions: int) -> dict[str, Any]:
    status = {"error_code": "OK", "error_message": ""}
    rows = [{"version": str(version), "state": "AVAILABLE", "status": status} for version in versions]
    return {"model_version_status": rows}


def look(name: str, path: str, answer: Any, status: int = 200) -> RestCase:
    return RestCase(name, path, None, answer, status, "GET")


LOOKS = [
    look("a model", "/v1/models/many", available(1)),
    look("all its versions", "/v1/models/versions", available(2, 1)),
    look("a version", "/v1/models/versions/versions/1", available(1)),
    look("letters of any case", "/V1/MODELS/many", available(1)),
    look("a quoted name", "/v1/models/m%61ny", available(1)),
    # As over gRPC, whose GetModelStatus does not look at labels.
    look("a label", "/v1/models/versions/labels/stable", available(2, 1)),
    look("no name", "/v1/models", "Missing model name in request.", 400),
    look("no name, of metadata", "/v1/models/metadata", "...", 404),
    look("an unknown model", "/v1/models/nope", "Could not find any versions of model nope", 404),
    look("an unknown version", "/v1/models/many/versions/9", "Could not find version 9 of model many", 404),
    look("a slash", "/v1/models/many/", "Malformed request: GET /v1/models/many/", 400),
    look("a subresource that is none", "/v1/models/many/x", "Malformed request: GET /v1/models/many/x", 400),
    look(
        "metadata of nobody", "/v1/models/nope/metadata", "Servable not found for request: Latest(nope)", 404
    ),
    look(
        "metadata of a version that is not there",
        "/v1/models/many/versions/9/metadata",
        "Servable not found for request: Specific(many, 9)",
        404,
    ),
]


@pytest.mark.parametrize(**cases(LOOKS))
def test_looks(rest: tuple[str, int], case: RestCase) -> None:
    check(rest, case)


def _protobuf_json(message: Any) -> Any:
    text = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.loads(text)


@pytest.mark.parametrize("model", ["half_plus_two", "many", "classes", "keras", "vocabulary", "defaults"])
def test_metadata_is_grpcs_as_json(channel: grpc.Channel, rest: tuple[str, int], model: str) -> None:
    answer = ask(channel, "GetModelMetadata", spec(model) + 'metadata_field: "signature_def"')
    reply: Any = answer.reply
    signatures = get_model_metadata_pb2.SignatureDefMap()
    reply.metadata["signature_def"].Unpack(signatures)
    told = fetch(rest, "GET", f"/v1/models/{model}/metadata").value
    assert set(told) == {"model_spec", "metadata"} and set(told["metadata"]) == {"signature_def"}
    assert told["model_spec"] == _protobuf_json(reply.model_spec)
    assert told["metadata"]["signature_def"] == _protobuf_json(signatures)


def test_metadata_of_a_label(rest: tuple[str, int]) -> None:
    told = fetch(rest, "GET", "/v1/models/versions/labels/stable/metadata").value
    assert told["model_spec"] == {"name": "versions", "signature_name": "", "version": "1"}
    x = told["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


def test_a_model_that_cannot_be_loaded_says_why(serve: Any, models: Path) -> None:
    keys = f'[[models]]\nname = "broken"\nbase_path = "{models}/half_plus_two"\ntags = ["nope"]\n'
    daemon = serve({"many": keys}, '[loading]\nretries = 0\n[gateway]\nlisten = ["127.0.0.1:0"]')
    (row,) = fetch(address_of(daemon.ready), "GET", "/v1/models/broken").value["model_version_status"]
    assert (row["version"], row["state"]) == ("123", "END")
    assert row["status"]["error_code"] != "OK" and row["status"]["error_message"]
