"""The servers of the cases, each a child process that a `with` block starts and stops.

Beside what `fastserve bench` starts, these serve several models at once, say what they counted, and must end
well: leaving the block checks that the daemon's exit code is 0.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastserve.bench.child import Child
from fastserve.bench.daemon_config import toml_value

HERE = Path(__file__).resolve().parent
_READY_TIMEOUT_S = 180.0


class ServerError(RuntimeError):
    """A server did not end well, or counted failures."""


@dataclass(frozen=True)
class ServedModel:
    """One [[models]] table. options: further keys."""

    name: str
    base_path: str
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def echo_server() -> Iterator[int]:
    """echo_server.py; its port."""
    port = free_port()
    with Child("echo server") as child:
        child.start([sys.executable, str(HERE / "echo_server.py"), str(port)])
        child.wait_until(lambda: "ready" in child.log_lines() or None, _READY_TIMEOUT_S)
        yield port


@contextmanager
def serving(models: list[ServedModel], **tables: dict[str, Any]) -> Iterator[Daemon]:
    """`fastserve serve` with these models. tables: server, limits, executor, tensorflow of config.toml."""
    with Child("fastserve") as child:
        config, ready, admin = (child.folder / name for name in ("config.toml", "ready.json", "admin.sock"))
        config.write_text(config_text(models, tables, child.folder / "state", admin))
        command = [sys.executable, "-m", "fastserve", "serve", str(config), "--strict"]
        child.start([*command, "--ready-file", str(ready)])
        child.wait_until(lambda: ready.exists() or None, _READY_TIMEOUT_S)
        address = json.loads(ready.read_text())["addresses"][0]
        try:
            yield Daemon(child, int(address.rpartition(":")[2]), admin)
        except BaseException as error:
            error.add_note(f"fastserve said:\n{child.said()}")
            raise
        child.check()
        code = child.stop()
        if code != 0:
            raise ServerError(f"fastserve ended with {code} after SIGTERM")


def config_text(
    models: list[ServedModel], tables: dict[str, dict[str, Any]], state: Path, admin: Path
) -> str:
    """A config.toml that listens on any free port of 127.0.0.1."""
    fixed = {"listen": ["127.0.0.1:0"], "state_dir": str(state), "admin_socket": str(admin)}
    lines = []
    for name, table in (tables | {"server": tables.get("server", {}) | fixed}).items():
        lines += [f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())]
    for model in models:
        keys = {"name": model.name, "base_path": model.base_path} | model.options
        lines += ["[[models]]", *(f"{key} = {toml_value(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


class Daemon:
    """A running daemon."""

    def __init__(self, child: Child, port: int, admin: Path) -> None:
        self._child = child
        self._admin = admin
        self.port = port

    @property
    def control_pid(self) -> int:
        return self._child.pid

    def log_lines(self) -> list[str]:
        return self._child.log_lines()

    def stats(self) -> dict[str, Any]:
        """The core's counters: the admin socket takes one JSON line and answers with one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(str(self._admin))
            connection.sendall(b'{"verb": "stats"}\n')
            with connection.makefile("rb") as lines:
                stats: dict[str, Any] = json.loads(lines.readline())
        return stats

    def core_pid(self) -> int:
        return int(self.stats()["pid"])

    def counters(self, model: str) -> Counters:
        """The counters of one model's only served signature."""
        stats = self.stats()
        for signature in stats["signatures"]:
            if signature["model"] == model and signature["signature"] == "serving_default":
                return Counters(
                    ok=int(signature["ok"]),
                    failed=int(signature["failed"]),
                    cancelled=int(signature["cancelled"]),
                    rows=int(signature["rows"]),
                    batches=int(signature["batches"]),
                    system_allocs=int(stats["system_allocs"]),
                )
        raise ServerError(f"the statistics have no serving_default of {model}: {stats}")


@dataclass(frozen=True)
class Counters:
    """What was counted since the start, or between two readings. failed includes cancelled: the caller was
    gone."""

    ok: int
    failed: int
    cancelled: int
    rows: int
    batches: int
    system_allocs: int

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            self.ok - before.ok,
            self.failed - before.failed,
            self.cancelled - before.cancelled,
            self.rows - before.rows,
            self.batches - before.batches,
            self.system_allocs - before.system_allocs,
        )

    @property
    def mean_batch(self) -> float:
        return self.rows / max(self.batches, 1)

    def check(self, at_least_ok: int) -> None:
        """Raises ServerError when a call failed, or when fewer went well than the client counted."""
        if self.failed or self.ok < at_least_ok:
            raise ServerError(
                f"the client counted {at_least_ok} good calls; the server {self.ok}, {self.failed} failed, "
                f"of them {self.cancelled} cancelled"
            )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
