"""One question to a target, outside of any measurement: what does it answer, and what are its signatures?"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastserve.bench.requests import Array, Request
from fastserve.bench.target import Target
from fastserve.bench.wire import AnswerError, read_rest_answer, rest_body, rest_path
from fastserve.client import Client, RpcError
from fastserve.savedmodel import Port, Signature
from fastserve.savedmodel.signature import DTYPES

_TIMEOUT_S = 60.0
_NUMBERS = {name: number for number, name in DTYPES.items()}
_NUMBERS |= {"float32": _NUMBERS["float"], "float64": _NUMBERS["double"], "float16": _NUMBERS["half"]}


def ask(target: Target, model: str, signature: str, request: Request) -> dict[str, Array]:
    """The outputs. Raises AnswerError with the target's own words when it has none."""
    if target.protocol == "http":
        return _ask_rest(target, model, signature, request)
    with _client(target) as client:
        return dict(client.predict(model, request.inputs, signature=signature))


def ask_signature(target: Target, model: str, name: str) -> Signature:
    """What a signature of a served model takes, by GetModelMetadata or, with REST, from the metadata page.

    Raises AnswerError.
    """
    tell = _rest_signatures if target.protocol == "http" else _grpc_signatures
    found = tell(target, model)
    if name not in found:
        raise AnswerError(
            f"{target.name}: model {model} has no signature {name}; it has {', '.join(found) or 'none'}"
        )
    return Signature(name, "", found[name], ())


@contextmanager
def _client(target: Target) -> Iterator[Client]:
    """A client for one question; what goes wrong with it is an AnswerError."""
    where = f"unix:{target.address[1]}" if target.address[0] == "unix" else target.authority
    try:
        with Client(where, timeout=_TIMEOUT_S) as client:
            yield client
    except RpcError as error:
        raise AnswerError(f"{target.name}: {error}") from None


def _ask_rest(target: Target, model: str, signature: str, request: Request) -> dict[str, Array]:
    body = _http(target, "POST", rest_path(model), rest_body(signature, request))
    try:
        return read_rest_answer(body)
    except AnswerError as error:
        raise AnswerError(f"{target.name}: {error}") from None


def _http(target: Target, method: str, path: str, body: bytes | None) -> bytes:
    connection = http.client.HTTPConnection(target.authority, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise AnswerError(f"{target.name}: {error}") from None
    finally:
        connection.close()


def _grpc_signatures(target: Target, model: str) -> dict[str, tuple[Port, ...]]:
    """By name, from GetModelMetadata."""
    try:
        with _client(target) as client:
            answer = client.metadata(model)
    except AnswerError as error:
        if "UNIMPLEMENTED" not in str(error):
            raise
        text = f"{error}; name --saved-model where a server does not tell its signatures"
        raise AnswerError(text) from None
    found = {}
    for name, signature in answer.signatures.items():
        ports = []
        for alias, info in sorted(signature.inputs.items()):
            dims = None if info.shape is None else tuple(-1 if dim is None else dim for dim in info.shape)
            ports.append(Port(alias, info.name, _NUMBERS.get(info.dtype, 0), dims))
        found[name] = tuple(ports)
    return found


def _rest_signatures(target: Target, model: str) -> dict[str, tuple[Port, ...]]:
    """By name, from TensorFlow Serving's metadata page."""
    body = _http(target, "GET", f"/v1/models/{model}/metadata", None)
    try:
        signatures = json.loads(body)["metadata"]["signature_def"]["signature_def"]
        return {
            name: tuple(_port(alias, info) for alias, info in sorted(signature["inputs"].items()))
            for name, signature in signatures.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AnswerError(
            f"{target.name}: tells no signatures at /v1/models/{model}/metadata; name --saved-model"
        ) from None


def _port(alias: str, info: Mapping[str, Any]) -> Port:
    dtype = _NUMBERS.get(str(info["dtype"]).removeprefix("DT_").lower(), 0)
    shape = info["tensor_shape"]
    known = None if shape.get("unknown_rank") else tuple(int(dim["size"]) for dim in shape.get("dim", ()))
    return Port(alias, str(info.get("name", "")), dtype, known)
