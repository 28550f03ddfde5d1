"""The messages of Classify, Regress, GetModelMetadata and GetModelStatus, from values and to values.

Requests are made here, and so are metadata and status read; scores by the thousand are read in C. Replies
that are not what they should be raise MessageError, whose text says which message and what is wrong with it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastserve._native.examples import (
    MalformedError,
    classification_rows,
    regression_values,
)
from fastserve.client.wire import (
    MAX_BYTES,
    MessageError,
    field_bytes,
    field_head,
    field_int,
    field_text,
    fields,
    int32_of,
    int64_of,
    message_of,
    text_of,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MessageError",
    "ModelMetadata",
    "ModelVersion",
    "SignatureInfo",
    "TensorInfo",
    "VersionState",
    "VersionStatus",
    "answering_model",
    "classification_request",
    "classifications",
    "metadata",
    "metadata_request",
    "regression_request",
    "regressions",
    "status_request",
    "statuses",
]

SIGNATURE_DEF = "signature_def"

# tf.DType.name by DataType's number.
DTYPE_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16",
    16: "quint16", 17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32",
    23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2",
}  # fmt: skip
REFERENCE_TYPES = 100  # DT_FLOAT_REF is DT_FLOAT + 100, and so on


class VersionState(enum.IntEnum):
    """Where a version is in its life, as TensorFlow Serving numbers it."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model. `code` is the gRPC code of what went wrong with it, 0 if nothing did; `message`
    says it. A state that TensorFlow Serving does not define is UNKNOWN."""

    version: int
    state: VersionState
    code: int
    message: str


@dataclass(frozen=True)
class ModelVersion:
    """The model that answered. `version` is None where the server does not say."""

    name: str
    version: int | None
    signature: str


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. `dtype` is TensorFlow's name ("float32", "int64", "string"), `shape` has None for a
    dimension of any size, and is None itself where not even their number is known."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class SignatureInfo:
    """What a signature takes and gives. `method_name` is "tensorflow/serving/predict", ".../classify" or
    ".../regress"."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str


@dataclass(frozen=True)
class ModelMetadata:
    """A model's signatures by name."""

    model: ModelVersion
    signatures: dict[str, SignatureInfo]


# ---- requests ---------------------------------------------------------------------------------------


def model_spec(
    model: str, signature: str = "", version: int | None = None, label: str | None = None
) -> bytes:
    """A ModelSpec. ValueError where both a version and a label are given, or a number is no int64."""
    if version is not None and label is not None:
        raise ValueError(f"model {model!r}: give a version or a label, not both")
    if version is not None and not -(1 << 63) <= version < 1 << 63:
        raise ValueError(f"model {model!r}: version {version} does not fit 64 bits")
    out = field_text(1, model)
    if version is not None:
        out += field_bytes(2, field_int(1, version))
    out += field_text(3, signature)
    if label is not None:
        out += field_bytes(4, label.encode())
    return out


def classification_request(
    model: str,
    examples: bytes,
    *,
    signature: str = "",
    version: int | None = None,
    label: str | None = None,
) -> bytes:
    """A ClassificationRequest; `examples` is an Input as `fastserve.client.examples.encode_input` makes it.
    ValueError where it passes 2 GiB."""
    head = field_bytes(1, model_spec(model, signature, version, label)) + field_head(2, len(examples))
    if len(head) + len(examples) > MAX_BYTES:
        raise ValueError("the examples pass 2 GiB, the limit of a message; send them in several requests")
    return head + examples


# The two messages have the same fields.
regression_request = classification_request


def metadata_request(model: str, *, version: int | None = None, label: str | None = None) -> bytes:
    """A GetModelMetadataRequest for the signatures."""
    return field_bytes(1, model_spec(model, "", version, label)) + field_text(2, SIGNATURE_DEF)


def status_request(model: str, *, version: int | None = None, label: str | None = None) -> bytes:
    """A GetModelStatusRequest; without version and label, for all versions."""
    return field_bytes(1, model_spec(model, "", version, label))


# ---- replies ----------------------------------------------------------------------------------------


def classifications(reply: bytes) -> list[list[tuple[str, float]]]:
    """For each example its classes, each a label and a score. MessageError."""
    try:
        return classification_rows(reply)
    except MalformedError:
        raise MessageError("ClassificationResponse: the bytes are none") from None


def regressions(reply: bytes) -> np.ndarray:
    """The value of each example: float32 [n]. MessageError."""
    try:
        return regression_values(reply)
    except MalformedError:
        raise MessageError("RegressionResponse: the bytes are none") from None


def answering_model(reply: bytes) -> ModelVersion:
    """Which model a ClassificationResponse or a RegressionResponse is from. MessageError."""
    what = "the reply's model_spec"
    specs = [message_of(value, what) for number, value in fields(reply, what) if number == 2]
    return _model(b"".join(specs))


def statuses(reply: bytes) -> list[VersionStatus]:
    """What a GetModelStatusResponse says of each version, in the server's order. MessageError."""
    what = "GetModelStatusResponse"
    return [_status(message_of(value, what)) for number, value in fields(reply, what) if number == 1]


def metadata(reply: bytes) -> ModelMetadata:
    """A GetModelMetadataResponse. MessageError, also where it has no signatures."""
    what = "GetModelMetadataResponse"
    spec, signatures = b"", None
    for number, value in fields(reply, what):
        if number == 1:
            spec += message_of(value, what)
        elif number == 2:
            key, packed = _entry(message_of(value, what), what)
            if key == SIGNATURE_DEF:
                signatures = packed
    if signatures is None:
        raise MessageError(f"{what}: has no {SIGNATURE_DEF}")
    return ModelMetadata(_model(spec), _signatures(_any_value(signatures)))


def _model(data: bytes) -> ModelVersion:
    what = "ModelSpec"
    name, version, signature = "", None, ""
    for number, value in fields(data, what):
        if number == 1:
            name = text_of(value, what)
        elif number == 2:
            version = version or 0
            for inner, content in fields(message_of(value, what), what):
                if inner == 1:
                    version = int64_of(content, what)
        elif number == 3:
            signature = text_of(value, what)
        elif number == 4:
            version = None
    return ModelVersion(name, version, signature)


def _status(data: bytes) -> VersionStatus:
    what = "ModelVersionStatus"
    version, state, code, message = 0, 0, 0, ""
    for number, value in fields(data, what):
        if number == 1:
            version = int64_of(value, what)
        elif number == 2:
            state = int32_of(value, what)
        elif number == 3:
            for inner, content in fields(message_of(value, what), "StatusProto"):
                if inner == 1:
                    code = int32_of(content, what)
                elif inner == 2:
                    message = text_of(content, what)
    known = VersionState(state) if state in VersionState._value2member_map_ else VersionState.UNKNOWN
    return VersionStatus(version, known, code, message)


def _entry(data: bytes, what: str) -> tuple[str, bytes]:
    """A map's entry: its key, and its value's bytes."""
    key, value = "", b""
    for number, content in fields(data, what):
        if number == 1:
            key = text_of(content, what)
        elif number == 2:
            value += message_of(content, what)
    return key, value


def _any_value(data: bytes) -> bytes:
    what = "google.protobuf.Any"
    url, packed = "", b""
    for number, value in fields(data, what):
        if number == 1:
            url = text_of(value, what)
        elif number == 2:
            packed = message_of(value, what)
    if url.rpartition("/")[2] != "tensorflow.serving.SignatureDefMap":
        raise MessageError(f"{what}: holds {url!r}, not a SignatureDefMap")
    return packed


def _signatures(data: bytes) -> dict[str, SignatureInfo]:
    what = "SignatureDefMap"
    entries = [_entry(message_of(value, what), what) for number, value in fields(data, what) if number == 1]
    return {name: _signature(value) for name, value in sorted(entries)}


def _signature(data: bytes) -> SignatureInfo:
    what = "SignatureDef"
    ports: dict[int, dict[str, TensorInfo]] = {1: {}, 2: {}}
    method = ""
    for number, value in fields(data, what):
        if number in ports:
            alias, info = _entry(message_of(value, what), what)
            ports[number][alias] = _tensor_info(info)
        elif number == 3:
            method = text_of(value, what)
    return SignatureInfo(dict(sorted(ports[1].items())), dict(sorted(ports[2].items())), method)


def _tensor_info(data: bytes) -> TensorInfo:
    what = "TensorInfo"
    name, dtype = "", 0
    shape: bytes | None = None
    for number, value in fields(data, what):
        if number == 1:
            name = text_of(value, what)
        elif number == 2:
            dtype = int32_of(value, what)
        elif number == 3:
            shape = (shape or b"") + message_of(value, what)
    if dtype > REFERENCE_TYPES:
        dtype -= REFERENCE_TYPES
    return TensorInfo(name, DTYPE_NAMES.get(dtype, f"dtype {dtype}"), None if shape is None else _dims(shape))


def _dims(data: bytes) -> tuple[int | None, ...] | None:
    what = "TensorShapeProto"
    dims: list[int | None] = []
    unknown = False
    for number, value in fields(data, what):
        if number == 2:
            size = 0
            for inner, content in fields(message_of(value, what), what):
                if inner == 1:
                    size = int64_of(content, what)
            dims.append(None if size < 0 else size)
        elif number == 3:
            unknown = int64_of(value, what) != 0
    return None if unknown else tuple(dims)
