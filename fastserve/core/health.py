"""grpc.health.v1: Check, Watch and List, for the server as a whole and for each model.

The service "" is the server: SERVING between `serving` and `draining`. So are the names of TensorFlow Serving's
services, with their package and, as probes of its own health service have them, without. Any other name is a
model's: SERVING while the server is and a version of it is available, NOT_SERVING when none is, unknown when nobody
knows the model: it has never been available, or the control process has taken it from its table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from fastserve.core import wire
from fastserve.core.service import INTERNAL, INVALID_ARGUMENT, NOT_FOUND, Call, Method, Status

_SERVING = b"\x08\x01"
_NOT_SERVING = b"\x08\x02"
_SERVICE_UNKNOWN = b"\x08\x03"

# The server by other names; a model that has one of them stands for itself.
_SERVICES = (
    "ModelService",
    "PredictionService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)


class Health:
    """What is ready. Used on the loop only."""

    def __init__(self) -> None:
        self._ready = False
        self._known: set[str] = set()
        self._available: dict[str, set[int]] = {}
        self._changed = asyncio.Event()

    def available(self, model: str, version: int) -> None:
        """A version can be called."""
        self._known.add(model)
        self._available.setdefault(model, set()).add(version)
        self._tell()

    def retired(self, model: str, version: int) -> bool:
        """A version is about to be called no more. False: it could not be called anyway."""
        versions = self._available.get(model, set())
        if version not in versions:
            return False
        versions.remove(version)
        self._tell()
        return True

    def models(self, names: Iterable[str]) -> None:
        """These models there are, whether a version of them is available or not."""
        self._known = set(names)
        self._tell()

    def serving(self) -> None:
        self._ready = True
        self._tell()

    def draining(self) -> None:
        self._ready = False
        self._tell()

    def methods(self) -> Iterator[Method]:
        yield Method("/grpc.health.v1.Health/Check", self._check)
        yield Method("/grpc.health.v1.Health/List", self._list)
        yield Method("/grpc.health.v1.Health/Watch", self._watch, streaming=True)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _state(self, service: str) -> bytes:
        available = bool(self._available.get(service))
        if not available and service not in self._known:
            if service and service not in _SERVICES:
                return _SERVICE_UNKNOWN
            available = True
        return _SERVING if self._ready and available else _NOT_SERVING

    async def _check(self, request: bytes, call: Call) -> bytes:
        state = self._state(_service(request))
        if state is _SERVICE_UNKNOWN:
            raise Status(NOT_FOUND, "unknown service")
        return state

    async def _list(self, request: bytes, call: Call) -> bytes:
        try:
            for _ in wire.fields(request):  # a HealthListRequest has none, but may have unknown ones
                pass
        except wire.Malformed:
            raise Status(INTERNAL) from None  # gRPC's own answer to what is no such message
        available = {model for model, versions in self._available.items() if versions}
        names = sorted({"", *_SERVICES, *self._known, *available})
        return b"".join(
            wire.put_bytes(1, wire.put_text(1, name) + wire.put_bytes(2, self._state(name))) for name in names
        )

    async def _watch(self, call: Call) -> None:
        service = None
        async for message in call:
            service = _service(message)
            break
        if service is None:
            raise Status(INVALID_ARGUMENT, "Watch needs a request")
        told = b""
        while True:
            changed = self._changed
            state = self._state(service)
            if state != told:
                call.send(state)
                told = state
            await changed.wait()


def _service(request: bytes) -> str:
    """The one field of HealthCheckRequest: string service = 1."""
    service = ""
    try:
        for field, value in wire.fields(request):
            if field == (1, wire.BYTES):
                service = wire.text(value)
    except wire.Malformed:
        raise Status(INVALID_ARGUMENT, "not a HealthCheckRequest") from None
    return service
