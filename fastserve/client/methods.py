"""The methods beside Predict, as bytes out and values in. Imports their messages when they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastserve.client.errors import Internal

if TYPE_CHECKING:
    import numpy

    from fastserve.client.examples import Examples
    from fastserve.client.messages import ModelMetadata, VersionStatus

    Values = numpy.ndarray[Any, Any]

CLASSIFY = "/tensorflow.serving.PredictionService/Classify"
REGRESS = "/tensorflow.serving.PredictionService/Regress"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


def examples_request(
    model: str,
    examples: Examples,
    context: Mapping[str, Any] | None,
    version: int | None,
    label: str | None,
    signature: str | None,
) -> bytes:
    """What Classify and Regress take. ValueError and TypeError for what cannot be sent."""
    from fastserve.client.examples import encode_input
    from fastserve.client.messages import classification_request

    encoded = encode_input(examples, context)
    return classification_request(model, encoded, signature=signature or "", version=version, label=label)


def metadata_request(model: str, version: int | None, label: str | None) -> bytes:
    from fastserve.client import messages

    return messages.metadata_request(model, version=version, label=label)


def status_request(model: str, version: int | None, label: str | None) -> bytes:
    from fastserve.client import messages

    return messages.status_request(model, version=version, label=label)


def classifications(reply: bytes) -> list[list[tuple[str, float]]]:
    """Internal where the reply cannot be read; so with the others."""
    from fastserve.client import messages

    try:
        return messages.classifications(reply)
    except messages.MessageError as error:
        raise Internal("INTERNAL", str(error)) from None


def regressions(reply: bytes) -> Values:
    from fastserve.client import messages

    try:
        return messages.regressions(reply)
    except messages.MessageError as error:
        raise Internal("INTERNAL", str(error)) from None


def model_metadata(reply: bytes) -> ModelMetadata:
    from fastserve.client import messages

    try:
        return messages.metadata(reply)
    except messages.MessageError as error:
        raise Internal("INTERNAL", str(error)) from None


def statuses(reply: bytes) -> list[VersionStatus]:
    from fastserve.client import messages

    try:
        return messages.statuses(reply)
    except messages.MessageError as error:
        raise Internal("INTERNAL", str(error)) from None
