"""The client of the core that the gateway's process and each of its workers have. On their loops."""

from __future__ import annotations

from fastserve.client.aio import AsyncClient

_CONNECT_MIN_S = 0.001
_CONNECT_MAX_S = 3600.0
# The core's own limits are what counts.
_REPLY_MAX_BYTES = (1 << 31) - 1


def core_client(address: str, timeout_s: float) -> AsyncClient:
    """There is one server: it is never given up. While a core restarts, its socket's queue takes connections,
    which may wait for as long as a request, `timeout_s`."""
    return AsyncClient(
        address,
        eject=None,
        keepalive=None,
        connect_timeout=min(max(timeout_s, _CONNECT_MIN_S), _CONNECT_MAX_S),
        max_reply_bytes=_REPLY_MAX_BYTES,
    )
