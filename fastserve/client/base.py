"""What both clients share: options, addresses, and the channel that comes of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from fastserve._native.client import Channel, ChannelFailure, TlsFailure, check_metadata
from fastserve.client.addresses import Directory, Endpoint, Target, parse_targets
from fastserve.client.errors import (
    STATUS_NAMES,
    DeadlineExceeded,
    RpcError,
    TlsError,
    Unavailable,
    rpc_error,
)
from fastserve.client.options import Eject, Keepalive, Options, Retry

DEFAULT_RETRY = Retry()
DEFAULT_EJECT = Eject()
DEFAULT_KEEPALIVE = Keepalive()
MAX_REPLY_BYTES = 256 << 20

# Names are resolved again when calls find no server, but not more often.
RESOLVE_AGAIN_S = 5.0

Addresses = str | Iterable[str]
Metadata = Iterable[tuple[str, str | bytes]]


class Plan:
    """A client's arguments, checked, and when its names were last resolved."""

    def __init__(self, addresses: Addresses, options: Options) -> None:
        self.options = options
        self.directory = Directory(parse_targets(addresses))
        self.metadata = check_metadata(options.metadata)
        self.resolved_at = 0.0

    def open(self, found: dict[Target, list[Endpoint]]) -> Channel:
        """A channel to the endpoints, not yet connected. TlsError, RpcError."""
        self.resolved_at = time.monotonic()
        tls = self.options.tls
        name = self.directory.one_name
        server_name = authority = ""
        if name is not None:
            server_name, authority = name.host, name.text
        if tls is not None and tls.server_name is not None:
            server_name = authority = tls.server_name
        settings = self.options.settings(server_name, authority, self.metadata)
        try:
            return Channel(self.directory.endpoints(found), settings, rpc_error)
        except TlsFailure as failure:
            raise TlsError(STATUS_NAMES[failure.code], failure.details) from None
        except ChannelFailure as failure:
            raise rpc_error(failure.code, failure.details) from None

    def should_resolve(self, error: RpcError) -> bool:
        """Whether a call that failed so is a reason to resolve the names again. Once true it is false for a
        while."""
        if not self.directory.names or not isinstance(error, (Unavailable, DeadlineExceeded)):
            return False
        if isinstance(error, DeadlineExceeded) and not self.options.wait_for_ready:
            return False
        now = time.monotonic()
        if now - self.resolved_at < RESOLVE_AGAIN_S:
            return False
        self.resolved_at = now
        return True

    def timeout(self, timeout: float | None) -> float | None:
        return self.options.timeout if timeout is None else timeout


def spec(
    model: str, version: int | None, label: str | None, signature: str | None, outputs: Iterable[str] | None
) -> tuple[Any, ...]:
    return (model, version, label, signature, outputs)
