"""What is measured: servers that are there already (--target), and servers that are started (--start).

    NAME=HOST:PORT, NAME=unix:PATH      gRPC
    NAME=http://HOST:PORT               TensorFlow Serving's REST API
    [NAME=]fastserve[:KEY=VALUE,...]    keys of config.toml: executor.spin_us=300, model.xla="auto"
    [NAME=]grpc-aio[:KEY=VALUE,...]     options of reference_grpc_aio: threads=4
    [NAME=]flask[:KEY=VALUE,...]        options of reference_flask: workers=2,threads=8

Values only; start.py starts them, ask.py talks to them.
"""

from __future__ import annotations

import re
import socket
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

from fastserve.config_address import UnixAddress, parse_address
from fastserve.errors import FastServeError

Protocol = Literal["grpc", "http"]
KINDS = ("fastserve", "grpc-aio", "flask")
_NAME = re.compile(r"[\w.+-]+")


class TargetError(FastServeError):
    """A target on the command line cannot be understood."""

    exit_code = 2


@dataclass(frozen=True)
class Target:
    """A server that answers. address: as the load generator takes it. pid: of our own child."""

    name: str
    kind: str
    protocol: Protocol
    address: tuple[Any, ...]
    authority: str
    pid: int | None = None
    # What was asked for, for the report.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A target that is to be started."""

    name: str
    kind: str
    options: dict[str, Any]


def parse_target(text: str) -> Target:
    """--target's argument. Raises TargetError."""
    name, equals, where = text.partition("=")
    if not equals or not where or not _NAME.fullmatch(name):
        raise TargetError(f'--target {text}: expected NAME=ADDRESS, such as "tfserving=127.0.0.1:8500"')
    protocol: Protocol = "grpc"
    if where.startswith("http://"):
        protocol, where = "http", where.removeprefix("http://").rstrip("/")
    elif "://" in where:
        raise TargetError(f"--target {text}: expected HOST:PORT, unix:PATH or http://HOST:PORT")
    return at_address(name, where, protocol)


def at_address(name: str, where: str, protocol: Protocol = "grpc") -> Target:
    """A server at "HOST:PORT" or "unix:PATH". Raises TargetError."""
    try:
        address = parse_address(where)
    except ValueError as error:
        raise TargetError(f"target {name}, {where}: {error}") from None
    if isinstance(address, UnixAddress):
        if protocol == "http":
            raise TargetError(f"target {name}, {where}: HTTP goes to HOST:PORT only")
        return Target(name, "address", protocol, ("unix", address.path), "localhost")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(f"target {name}, {where}: {error.strerror or error}") from None
    return Target(name, "address", protocol, tuple(found[0][4]), str(address))


def parse_start(text: str) -> Plan:
    """--start's argument. Raises TargetError."""
    head, _, options = text.partition(":")
    name, _, kind = head.rpartition("=")
    if kind not in KINDS:
        raise TargetError(f"--start {text}: expected one of {', '.join(KINDS)}, or NAME=KIND:KEY=VALUE,...")
    if name and not _NAME.fullmatch(name):
        raise TargetError(f'--start {text}: a name has letters, digits and "-", "_", ".", "+" only')
    return Plan(name or kind, kind, dict(_option(text, item) for item in _split(options)))


def _split(options: str) -> list[str]:
    """At the commas that stand in no brackets and no quotes."""
    return [item for item in re.findall(r'(?:\[[^\]]*\]|"[^"]*"|[^,\["])+', options) if item.strip()]


def _option(text: str, item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise TargetError(f"--start {text}: {item}: expected KEY=VALUE")
    return key.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A value as TOML has it, and any other text as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_names(names: list[str]) -> None:
    """Raises TargetError when two targets have one name, or there is none."""
    if not names:
        raise TargetError(
            'there is nothing to measure: name a server with --target NAME=ADDRESS, or --start "fastserve"'
        )
    for name in names:
        if names.count(name) > 1:
            raise TargetError(f"two targets are called {name}; give one another name: --start {name}2=KIND")
