"""tensorflow.serving.ModelService: GetModelStatus, answered here, and HandleReloadConfigRequest, passed on.

The control process knows the states of all versions and pushes them as a table (the command `status`), so
that GetModelStatus is answered when that process has gone, too. A reload is its decision: the request goes to
it as an event and its answer comes back as the command `respond`. Used on the loop only; knows nothing of
configurations.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any, Literal

from fastserve.core import wire
from fastserve.core.service import (
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    OK,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    Call,
    Method,
    Status,
)

_AVAILABLE = 30
_STATES = {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}

_WAITING_MAX = 16  # reloads that the control process has not answered
_REQUEST_MAX_BYTES = 1 << 20

# Sends an event to the control process; False: there is none, or it does not read.
Send = Callable[[dict[str, Any]], bool]


class ModelService:
    """The states of all versions, and the requests that wait for the control process.

    `published` gives the engine's versions (model, version, state): what is known before the first `table`.
    `reload` says where HandleReloadConfigRequest is answered: "everywhere", "admin" (on the admin address) or
    "nowhere".
    """

    def __init__(
        self,
        published: Callable[[], list[dict[str, Any]]],
        send: Send,
        reload: Literal["everywhere", "admin", "nowhere"] = "everywhere",
    ) -> None:
        self._published = published
        self._send = send
        self._reload_at = reload
        self._table: dict[str, dict[int, bytes]] | None = None
        self._waiting: dict[int, asyncio.Future[tuple[int, str, bytes]]] = {}
        self._last_request = 0

    def methods(self) -> Iterator[Method]:
        service = "/tensorflow.serving.ModelService/"
        yield Method(f"{service}GetModelStatus", self._get_model_status)
        yield Method(
            f"{service}HandleReloadConfigRequest", self._reload, waits=True, max_bytes=_REQUEST_MAX_BYTES
        )

    def table(self, models: dict[str, list[dict[str, Any]]]) -> None:
        """Replaces the states: a list of {"version", "state", "code", "message"} for each model. KeyError or
        ValueError for a table of another form; then the old one stays."""
        self._table = {
            name: {
                row["version"]: _version_status(
                    row["version"], _state(row["state"]), row["code"], row["message"]
                )
                for row in sorted(rows, key=lambda row: -row["version"])
            }
            for name, rows in models.items()
        }

    def respond(self, request: int, code: int, message: str, reply: str) -> bool:
        """The control process's answer to a request, `reply` in base64. False: nobody waits for it now."""
        answer = code, message, b64decode(reply, validate=True)
        waiting = self._waiting.get(request)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(answer)
        return True

    def control_lost(self) -> None:
        """The control process has gone: nobody will answer what it was asked."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(_nobody())

    async def _get_model_status(self, request: bytes, call: Call) -> bytes:
        name, version = _model_spec(request)
        call.admit(name)
        versions = self._versions(name)
        if version is not None:
            if version not in versions:
                raise Status(NOT_FOUND, f"Could not find version {version} of model {name}")
            return wire.put_bytes(1, versions[version])
        if not versions:
            raise Status(NOT_FOUND, f"Could not find any versions of model {name}")
        # The newest first, as TensorFlow Serving has them.
        return b"".join(wire.put_bytes(1, status) for status in versions.values())

    def _versions(self, name: str) -> dict[int, bytes]:
        """What is known of a model: version -> ModelVersionStatus, the newest first."""
        if self._table is not None:
            return self._table.get(name, {})
        there = [
            row["version"]
            for row in self._published()
            if row["model"] == name and row["state"] == "published"
        ]
        return {
            version: _version_status(version, _AVAILABLE, OK, "") for version in sorted(there, reverse=True)
        }

    async def _reload(self, request: bytes, call: Call) -> bytes:
        if self._reload_at == "nowhere":
            raise Status(
                PERMISSION_DENIED,
                "HandleReloadConfigRequest is switched off here: [server] reload_rpc = false",
            )
        if self._reload_at == "admin" and not call.admin:
            raise Status(
                PERMISSION_DENIED,
                "HandleReloadConfigRequest is answered on another address: that of [server] admin_listen",
            )
        if len(self._waiting) >= _WAITING_MAX:
            raise Status(RESOURCE_EXHAUSTED, f"{_WAITING_MAX} reloads are waiting for an answer already")
        self._last_request += 1
        number = self._last_request
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            sent = self._send(
                {
                    "event": "request",
                    "request": number,
                    "method": "HandleReloadConfigRequest",
                    "message": b64encode(request).decode(),
                }
            )
            code, message, reply = await waiting if sent else _nobody()
        finally:
            # The caller's deadline and cancellation come here, too: an answer that comes later is dropped.
            del self._waiting[number]
        if code != OK:
            raise Status(code, message)
        return reply


def _nobody() -> tuple[int, str, bytes]:
    return UNAVAILABLE, "the control process, which changes what is served, is not running", b""


def _state(name: str) -> int:
    if name not in _STATES:
        raise ValueError(f"no such state: {name}")
    return _STATES[name]


def _version_status(version: int, state: int, code: int, message: str) -> bytes:
    """ModelVersionStatus. `status` is there even when all is well, and empty then."""
    status = wire.put_int(1, code) + wire.put_text(2, message)
    return wire.put_int(1, version) + wire.put_int(2, state) + wire.put_bytes(3, status)


def _model_spec(request: bytes) -> tuple[str, int | None]:
    """Name and version of a GetModelStatusRequest's model spec. A label is passed over, as TensorFlow Serving
    does, save that it takes the version's place when it comes after it."""
    try:
        # What is there twice is one message in two parts.
        parts = [value for field, value in wire.fields(request) if field == (1, wire.BYTES)]
        if not parts:
            raise Status(INVALID_ARGUMENT, "Missing ModelSpec")
        spec = b"".join(parts)
        name, version = "", None
        for field, value in wire.fields(spec):
            if field == (1, wire.BYTES):
                name = wire.text(value)
            elif field == (2, wire.BYTES):
                version = _int64_value(value, version or 0)
            elif field == (3, wire.BYTES):
                wire.text(value)
            elif field == (4, wire.BYTES):
                wire.text(value)
                version = None
        return name, version
    except wire.Malformed:
        raise Status(INTERNAL) from None  # gRPC's own answer to what is no such message


def _int64_value(message: bytes, value: int) -> int:
    for field, number in wire.fields(message):
        if field == (1, wire.VARINT):
            value = wire.int64(number)
    return value
