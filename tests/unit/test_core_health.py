"""Health's coroutines: the names that stand for the server, and the list of all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastserve.core.health import Health
from fastserve.core.service import Status
from fastserve.protos import message

Request = message("grpc.health.v1.HealthCheckRequest")
Response = message("grpc.health.v1.HealthCheckResponse")
Listed = message("grpc.health.v1.HealthListResponse")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
SERVER = [
    "",
    "ModelService",
    "PredictionService",
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
]


def handler(health: Health, name: str) -> Any:
    return next(m.handler for m in health.methods() if m.path == f"/grpc.health.v1.Health/{name}")


async def check(health: Health, service: str) -> int:
    reply = await handler(health, "Check")(Request(service=service).SerializeToString(), None)
    status: int = Response.FromString(reply).status
    return status


async def listed(health: Health, request: bytes = b"") -> dict[str, int]:
    reply = Listed.FromString(await handler(health, "List")(request, None))
    return {name: one.status for name, one in reply.statuses.items()}


@pytest.mark.parametrize("name", SERVER)
async def test_tensorflow_servings_services_are_the_server(name: str) -> None:
    health = Health()
    assert await check(health, name) == NOT_SERVING
    health.serving()
    assert await check(health, name) == SERVING
    health.draining()
    assert await check(health, name) == NOT_SERVING


async def test_a_model_of_that_name_stands_for_itself() -> None:
    health = Health()
    health.serving()
    health.models(["PredictionService"])
    assert await check(health, "PredictionService") == NOT_SERVING
    health.available("PredictionService", 1)
    assert await check(health, "PredictionService") == SERVING
    health.retired("PredictionService", 1)
    assert await check(health, "PredictionService") == NOT_SERVING
    health.models([])
    assert await check(health, "PredictionService") == SERVING


async def test_the_list_has_the_server_and_every_model() -> None:
    health = Health()
    health.models(["loading", "m"])
    health.available("m", 3)
    health.available("gone", 1)
    health.models(["loading", "m"])
    server = dict.fromkeys(SERVER, NOT_SERVING)
    assert await listed(health) == {**server, "loading": NOT_SERVING, "m": NOT_SERVING, "gone": NOT_SERVING}
    health.serving()
    server = dict.fromkeys(SERVER, SERVING)
    assert await listed(health) == {**server, "loading": NOT_SERVING, "m": SERVING, "gone": SERVING}
    health.retired("gone", 1)  # the table knows it no more, and nobody can call it
    assert await listed(health, b"\x08\x01") == {**server, "loading": NOT_SERVING, "m": SERVING}
    with pytest.raises(Status) as caught:
        await listed(health, b"\x08")
    assert caught.value.code == 13


async def test_watching_the_server_by_another_name() -> None:
    class Call:
        sent: list[int] = []

        def send(self, reply: bytes) -> None:
            self.sent.append(Response.FromString(reply).status)
            if len(self.sent) == 1:
                health.serving()
            elif len(self.sent) == 2:
                health.available("other", 1)  # which changes nothing here
                health.draining()
            else:
                raise EOFError

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield Request(service="PredictionService").SerializeToString()

    health = Health()
    call = Call()
    with pytest.raises(EOFError):
        await handler(health, "Watch")(call)
    assert call.sent == [NOT_SERVING, SERVING, NOT_SERVING]
