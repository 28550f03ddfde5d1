"""grpc.health.v1: the server and its models."""

from __future__ import annotations

import grpc
import pytest

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x03"  # HealthCheckResponse.status


def asking(service: str) -> bytes:
    """A HealthCheckRequest."""
    name = service.encode()
    return bytes([0x0A, len(name)]) + name if name else b""


@pytest.mark.parametrize("service", ["", "half_plus_two", "versions"])
def test_check(channel: grpc.Channel, service: str) -> None:
    assert channel.unary_unary(CHECK)(asking(service), timeout=60) == SERVING


def test_check_of_what_is_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(CHECK)(asking("nope"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("service", "status"), [("", SERVING), ("many", SERVING), ("nope", SERVICE_UNKNOWN)])
def test_watch(channel: grpc.Channel, service: str, status: bytes) -> None:
    watch = channel.unary_stream(WATCH)(asking(service), timeout=60)
    assert next(watch) == status
    watch.cancel()
