"""GET .../metadata and GET of a model: protobuf's JSON form of the core's answers, as TensorFlow Serving
prints it. Pure functions.
"""

from __future__ import annotations

import inspect
from typing import Any

import orjson

from fastserve.client.errors import STATUS_NAMES
from fastserve.client.messages import VersionStatus


def status_json(versions: list[VersionStatus]) -> bytes:
    """A GetModelStatusResponse."""
    rows: list[dict[str, Any]] = [
        {
            "version": str(version.version),
            "state": version.state.name,
            "status": {"error_code": _code_name(version.code), "error_message": version.message},
        }
        for version in versions
    ]
    return orjson.dumps({"model_version_status": rows}, option=orjson.OPT_INDENT_2)


def metadata_json(reply: bytes) -> bytes:
    """A GetModelMetadataResponse. What is asked seldom may load protobuf, which knows how it is printed."""
    from fastserve.protos import message

    response = message("tensorflow.serving.GetModelMetadataResponse").FromString(reply)
    signatures = message("tensorflow.serving.SignatureDefMap").FromString(
        response.metadata["signature_def"].value
    )
    made = {"model_spec": _dict(response.model_spec), "metadata": {"signature_def": _dict(signatures)}}
    return orjson.dumps(made, option=orjson.OPT_INDENT_2)


def _dict(value: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    # With fields that are not set; protobuf has renamed the argument.
    known = inspect.signature(json_format.MessageToDict).parameters
    name = "always_print_fields_with_no_presence"
    if name not in known:
        name = "including_default_value_fields"
    options: dict[str, Any] = {"preserving_proto_field_name": True, name: True}
    made: dict[str, Any] = json_format.MessageToDict(value, **options)
    return made


def _code_name(code: int) -> str:
    return STATUS_NAMES[code] if 0 <= code < len(STATUS_NAMES) else "UNKNOWN"
