"""One question to a target, outside of any measurement: what does it answer, and what are its signatures?"""

from __future__ import annotations

import http.client
from typing import Any

from fastserve.bench.requests import Array, Request
from fastserve.bench.target import Target
from fastserve.bench.wire import PREDICT_PATH, AnswerError, grpc_body, read_rest_answer, rest_body, rest_path
from fastserve.savedmodel import Signature

_TIMEOUT_S = 60.0


def ask(target: Target, model: str, signature: str, request: Request) -> dict[str, Array]:
    """The outputs. Raises AnswerError with the target's own words when it has none."""
    if target.protocol == "http":
        return _ask_rest(target, model, signature, request)
    reply = _call(target, PREDICT_PATH, grpc_body(model, signature, request))
    from fastserve._native.client_codec import decode_reply

    outputs: dict[str, Array] = decode_reply(reply)[0]
    return outputs


def ask_signature(target: Target, model: str, name: str) -> Signature:
    """What a signature of a served model takes, from GetModelMetadata or, with REST, the metadata page.

    Raises AnswerError.
    """
    raise AnswerError(f"{target.name}: metadata")


def _call(target: Target, path: str, body: bytes) -> bytes:
    import grpc

    where = f"unix:{target.address[1]}" if target.address[0] == "unix" else target.authority
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(where, options=[*options, ("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            reply: bytes = channel.unary_unary(path)(body, timeout=_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            failed: Any = error
            raise AnswerError(f"{target.name}: {failed.code().name}: {failed.details()}") from None
    return reply


def _ask_rest(target: Target, model: str, signature: str, request: Request) -> dict[str, Array]:
    connection = http.client.HTTPConnection(target.authority, timeout=_TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", rest_path(model), rest_body(signature, request), headers)
        body = connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise AnswerError(f"{target.name}: {error}") from None
    finally:
        connection.close()
    try:
        return read_rest_answer(body)
    except AnswerError as error:
        raise AnswerError(f"{target.name}: {error}") from None
