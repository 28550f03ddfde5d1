"""What the cases share: settings, models, recorded requests, the two ways to load a server.

A case gets a Bench, measures one thing and returns its rows; it owns the servers that it starts. What it
compares is run in turn, A B A B, since the machine's speed drifts; ratios are taken turn by turn and the
median counts.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive import Answered, Body, drive
from servers import Daemon, ServedModel

HERE = Path(__file__).resolve().parent
SPIN_US = 300
CONNECTIONS = 8
STREAMS = 16
MIB = 1 << 20


@dataclass(frozen=True)
class Bench:
    """What all cases share. session_config: the ConfigProto of the daemon's sessions."""

    index: dict[str, Any]
    session_config: bytes
    quick: bool
    say: Callable[[str], None]

    @property
    def window_s(self) -> float:
        return 1.0 if self.quick else 4.0

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 6

    def bodies(self, key: str) -> list[Body]:
        return [
            Body(Path(body["path"]), body["rows"], body["reply_bytes"]) for body in self.index["bodies"][key]
        ]

    def model(self, name: str) -> dict[str, Any]:
        model: dict[str, Any] = self.index["models"][name]
        return model

    def served(self, name: str, options: dict[str, Any] | None = None) -> ServedModel:
        return ServedModel(name, str(Path(self.model(name)["path"]).parent), options or {})


def verify(daemon: Daemon, key: str) -> dict[str, Any]:
    return stock_client("verify", daemon.port, key)


def stock_client(what: str, port: int, argument: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "stock_client.py"), what, str(port), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def saturate(port: int, bodies: list[Body], seconds: float, echo: bool = False) -> Answered:
    return drive(port, bodies, connections=CONNECTIONS, in_flight=STREAMS, seconds=seconds, echo=echo)


def send(port: int, bodies: list[Body], requests: int) -> None:
    drive(port, bodies, connections=CONNECTIONS, in_flight=STREAMS, requests=requests, warmup_s=0.0)


def turn_ratio(values: list[float], references: list[float]) -> float:
    """The median of the turn-by-turn ratios."""
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def raise_file_limit() -> None:
    """1,000 connections take more descriptors than the usual soft limit; children inherit this one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
