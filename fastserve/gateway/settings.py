"""What the control process tells a gateway process at its start, as JSON: control/gateway_settings.py."""

from __future__ import annotations

import os

import msgspec
from msgspec import Struct


class Listening(Struct, frozen=True):
    """A listening socket that was inherited."""

    fd: int
    address: str


class RouteSettings(Struct, frozen=True, kw_only=True):
    """One of [[routes]], as config.Route has it."""

    path: str
    file: str
    model: str
    version: int | None
    label: str
    signature: str
    methods: tuple[str, ...]
    workers: int
    concurrency: int
    max_waiting: int
    timeout_s: float
    reload: bool
    max_body_bytes: int


class Settings(Struct, frozen=True, kw_only=True):
    """The first line. Keys that are not here are for others who read it."""

    listeners: tuple[Listening, ...]
    # Where the core answers REST and route workers, and the control process health and metrics.
    rest_socket: str
    web_socket: str
    monitor_socket: str
    metrics_path: str
    nice: int
    timeout_s: float
    drain_timeout_s: float
    max_connections: int
    # Of one request, and of all that are under way.
    max_body_bytes: int
    max_total_bytes: int
    cors: bool
    # Request headers that the core looks at, lower case.
    forward: tuple[str, ...]
    routes: tuple[RouteSettings, ...] = ()
    # It starts in a lame duck: clients are told to go from the first answer on.
    leaving: bool = False


def read_settings(line: bytes) -> Settings:
    return msgspec.json.decode(line, type=Settings)


def give_way(nice: int) -> None:
    """Gives this process the nice value `nice`, unless it has a higher one already."""
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
