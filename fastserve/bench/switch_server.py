"""The FastServe of a switch run: a child process with two models, and what its core has, by its admin socket.

Runs on the main thread, which sleeps while the load runs: every look costs the core next to nothing, the same
inside a switch's window and outside.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve.bench.child import Child
from fastserve.bench.daemon_config import with_options, write_models_config
from fastserve.bench.start import READY_TIMEOUT_S
from fastserve.bench.switch_plan import BESIDE, MODEL
from fastserve.bench.target import Target, at_address
from fastserve.errors import FastServeError

_ADMIN_TIMEOUT_S = 30.0


class AdminError(FastServeError):
    """The daemon does not answer on its admin socket, or refuses."""


@dataclass(frozen=True)
class Server:
    """A daemon that is ready."""

    target: Target
    child: Child
    admin: Admin


class Admin:
    """A connection to a daemon's admin socket: one JSON object a line, each answered by one."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ADMIN_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise AdminError(f"{path}: {error.strerror or error}") from None
        self._lines = self._socket.makefile("rb")

    def ask(self, verb: str) -> dict[str, Any]:
        """Raises AdminError."""
        try:
            self._socket.sendall(json.dumps({"verb": verb}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._lines.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise AdminError(f"the admin socket does not answer {verb}: {error}") from None
        if answer.get("ok") is False or not answer:
            raise AdminError(f"the daemon refuses {verb}: {answer.get('error', 'the connection has ended')}")
        return answer

    def states(self, model: str) -> dict[int, str]:
        """Of the model's versions that the core has: loading, loaded, published, retiring or closing."""
        return {
            int(row["version"]): str(row["state"])
            for row in self.ask("list")["servables"]
            if row["model"] == model
        }

    def core_pid(self) -> int:
        return int(self.ask("stats")["pid"])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def serving(
    child: Child,
    base_paths: Mapping[str, Path],
    xla: str,
    options: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Iterator[Server]:
    """`fastserve serve` in `child`, which the caller ends. base_paths: of MODEL and BESIDE. xla: of MODEL.

    options: keys of config.toml with a table's name; "model.KEY" is for both models. Raises TargetError,
    ChildError, AdminError.
    """
    tables = with_options({}, options)
    shared = tables.pop("model", {})
    models = [{"name": MODEL, "base_path": str(base_paths[MODEL]), "xla": xla, **shared}]
    if BESIDE in base_paths:
        models.append({"name": BESIDE, "base_path": str(base_paths[BESIDE]), **shared})
    config = write_models_config(child.folder, tables, models)
    ready = child.folder / "ready.json"
    child.start(
        [sys.executable, "-m", "fastserve", "serve", str(config), "--strict", "--ready-file", str(ready)],
        dict(environment),
    )

    def look() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(ready.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found

    told = child.wait_until(look, READY_TIMEOUT_S)
    child.remember_family()
    target = at_address("fastserve", told["addresses"][0])
    admin = Admin(told["admin_socket"])
    try:
        yield Server(target, child, admin)
    finally:
        admin.close()
