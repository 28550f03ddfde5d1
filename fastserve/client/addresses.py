"""Where the servers are: addresses as the user gives them, names as they resolve."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.client.errors import ConnectError
from fastserve.config_address import TcpAddress, UnixAddress, parse_address

# As fastserve._native.client.Channel takes them.
Endpoint = tuple[str, str, bytes] | tuple[str, str, int, int]
# What getaddrinfo gives.
Found = Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]

EXPECTED = '"HOST:PORT", "[IPV6]:PORT" or "unix:PATH"'


@dataclass(frozen=True)
class Target:
    """One address. `literal` is its endpoint where nothing has to be resolved."""

    text: str
    host: str
    port: int
    literal: Endpoint | None


def parse_targets(addresses: str | Iterable[str]) -> tuple[Target, ...]:
    """TypeError and ValueError name the address and say what is right."""
    given = [addresses] if isinstance(addresses, str) else list(addresses)
    if not given:
        raise ValueError(f"no addresses: expected {EXPECTED}")
    targets = []
    for text in given:
        if not isinstance(text, str):
            raise TypeError(f"an address is text, {EXPECTED}, not {text!r}")
        targets.append(_parse(text))
    if len(set(targets)) != len(targets):
        raise ValueError(f"an address is given twice: {', '.join(given)}")
    return tuple(targets)


def _parse(text: str) -> Target:
    if "://" in text:
        raise ValueError(f"address {text!r}: expected {EXPECTED}; for TLS say tls=Tls()")
    if text.startswith(":") and text.count(":") == 1:
        raise ValueError(f"address {text!r}: a host is missing; expected {EXPECTED}")
    try:
        address = parse_address(text)
    except ValueError as error:
        raise ValueError(f"address {text!r}: {error}") from None
    if isinstance(address, UnixAddress):
        return Target(text, "localhost", 0, (text, "unix", os.fsencode(address.path)))
    if address.port == 0:
        raise ValueError(f"address {text!r}: port 0 is none to connect to")
    literal = _literal(address)
    if literal is None and text.startswith("["):
        raise ValueError(f"address {text!r}: {address.host!r} is no IPv6 address")
    return Target(text, address.host, address.port, literal)


def _literal(address: TcpAddress) -> Endpoint | None:
    """The endpoint of an address that is an IP address already."""
    if ":" in address.host:
        host, _, zone = address.host.partition("%")
        try:
            socket.inet_pton(socket.AF_INET6, host)
        except OSError:
            raise ValueError(f"{address.host!r} is no IPv6 address") from None
        return (str(address), host, address.port, _scope(zone))
    try:
        socket.inet_pton(socket.AF_INET, address.host)
    except OSError:
        return None
    return (str(address), address.host, address.port, 0)


def _scope(zone: str) -> int:
    if not zone:
        return 0
    try:
        return int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    except OSError:
        raise ValueError(f"there is no network interface {zone!r}") from None


def resolve(target: Target) -> list[Endpoint]:
    """All endpoints behind one name, by the system's resolver. ConnectError."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise unresolved(target, error) from None
    return endpoints_of(target, found)


def unresolved(target: Target, error: Exception) -> ConnectError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConnectError("UNAVAILABLE", f"connect: {target.text}: the name does not resolve: {why}")


def endpoints_of(target: Target, found: Found) -> list[Endpoint]:
    """From what getaddrinfo gives."""
    endpoints: list[Endpoint] = []
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            host = address[0].partition("%")[0]
            scope = address[3] if family == socket.AF_INET6 else 0
            endpoint = (str(TcpAddress(host, address[1])), host, address[1], scope)
            if endpoint not in endpoints:
                endpoints.append(endpoint)
    return endpoints


@dataclass(frozen=True)
class Directory:
    """A client's addresses as a channel takes them."""

    targets: tuple[Target, ...]

    @property
    def names(self) -> tuple[Target, ...]:
        """Those that have to be resolved."""
        return tuple(target for target in self.targets if target.literal is None)

    @property
    def one_name(self) -> Target | None:
        """The name that stands for every server, where all addresses are one name."""
        return self.targets[0] if len(self.targets) == 1 and self.targets[0].literal is None else None

    def endpoints(self, found: dict[Target, list[Endpoint]]) -> list[Endpoint]:
        """All of them, given what the names resolve to. An endpoint's own name is what its certificate must
        be for and what messages call it: its address, unless several names are there to be told apart."""
        endpoints: list[Endpoint] = []
        for target in self.targets:
            if target.literal is not None:
                endpoints.append(target.literal)
            elif self.one_name is not None:
                endpoints.extend(found.get(target, []))
            else:
                endpoints.extend((target.text, *endpoint[1:]) for endpoint in found.get(target, []))
        return endpoints
