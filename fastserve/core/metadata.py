"""PredictionService.GetModelMetadata: the signatures of the version that a model spec means.

They were read from the version's own saved_model.pb when it was tried, came with the command `load`, and lie
beside the version in the engine, serialized. Which version that is, the engine says. Used on the loop only.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastserve._native.engine import Engine
from fastserve.core import wire
from fastserve.core.service import INTERNAL, INVALID_ARGUMENT, Call, Method, Status

_FIELD = "signature_def"
_TYPE = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class Metadata:
    """The one method. `engine` has the versions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def methods(self) -> Iterator[Method]:
        yield Method("/tensorflow.serving.PredictionService/GetModelMetadata", self._get)

    async def _get(self, request: bytes, call: Call) -> bytes:
        try:
            spec, fields = _parse(request)
        except wire.Malformed:
            raise Status(INTERNAL) from None  # gRPC's own answer to what is no such message
        if spec is None:
            raise Status(INVALID_ARGUMENT, "Missing ModelSpec")
        if not fields:
            raise Status(INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != _FIELD:
                raise Status(INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        model, version = call.resolve(spec)
        signatures: bytes = self._engine.signature_def_map(model, version)
        answered = wire.put_text(1, model) + wire.put_bytes(2, wire.put_int(1, version))
        packed = wire.put_text(1, _TYPE) + wire.put_bytes(2, signatures)
        entry = wire.put_text(1, _FIELD) + wire.put_bytes(2, packed)
        return wire.put_bytes(1, answered) + wire.put_bytes(2, entry)


def _parse(request: bytes) -> tuple[bytes | None, list[str]]:
    """The bytes of a GetModelMetadataRequest's ModelSpec, or None, and its metadata fields. Malformed."""
    parts, names = [], []
    for field, value in wire.fields(request):
        if field == (1, wire.BYTES):  # what is there twice is one message in two parts, each of them whole
            for _ in wire.fields(value):
                pass
            parts.append(value)
        elif field == (2, wire.BYTES):
            names.append(wire.text(value))
    return b"".join(parts) if parts else None, names
