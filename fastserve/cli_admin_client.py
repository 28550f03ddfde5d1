"""Asks a running daemon over its admin socket: one JSON object a line, there and back.

Used by the commands of cli_admin. Every error says which socket it was, and what to do.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from typing import Any

from fastserve.config_read import admin_socket
from fastserve.errors import FastServeError

_CONNECT_TIMEOUT_S = 5.0
_STATUS_TIMEOUT_S = 30.0

Answer = dict[str, Any]


class AdminClient:
    """A daemon's admin socket."""

    def __init__(self, path: str, how_to_start: str) -> None:
        self._path = path
        self._how_to_start = how_to_start

    @classmethod
    def of(cls, config: str, socket_path: str | None) -> AdminClient:
        """The daemon at `socket_path`, or the one that runs with the configuration."""
        if socket_path is not None:
            return cls(socket_path, "fastserve serve CONFIG")
        if not os.path.exists(config):
            raise FastServeError(
                f"there is no {config}: name the configuration that the daemon runs with, or its --socket"
            )
        return cls(admin_socket(config), f"fastserve serve {config}")

    def status(self) -> Answer:
        return self.ask({"verb": "status"}, _STATUS_TIMEOUT_S)

    def ask(self, request: Answer, timeout_s: float | None = None) -> Answer:
        """The answer to a verb. FastServeError when there is none, or it is a refusal.

        Without a limit: a load takes as long as it takes, and Ctrl-C ends the waiting."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_CONNECT_TIMEOUT_S)
            try:
                sock.connect(self._path)
                sock.settimeout(timeout_s)
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as lines:
                    line = lines.readline()
            except OSError as error:
                raise unreachable(self._path, error, self._how_to_start) from None
        if not line.endswith(b"\n"):
            raise FastServeError(f"the daemon at {self._path} ended before it answered")
        try:
            answer: Answer = json.loads(line)
            done = answer["ok"] is True
        except (ValueError, KeyError, TypeError):
            raise FastServeError(f"{self._path} is not the admin socket of a fastserve daemon") from None
        if not done:
            raise FastServeError(
                f"{answer.get('error', 'no reason given')} ({answer.get('code', 'UNKNOWN')})"
            )
        return answer


def unreachable(path: str, error: OSError, how_to_start: str) -> FastServeError:
    """What to say when a daemon cannot be reached at its socket."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return FastServeError(f"no daemon listens on {path}; start it with: {how_to_start}")
    if isinstance(error, PermissionError):
        return FastServeError(f"{path}: permission denied; it is for {_owner(path)}, who runs the daemon")
    if isinstance(error, TimeoutError):
        return FastServeError(f"the daemon at {path} does not answer")
    return FastServeError(f"{path}: {error.strerror or error}")


def _owner(path: str) -> str:
    try:
        return pwd.getpwuid(os.stat(path).st_uid).pw_name
    except (OSError, KeyError):
        return "another user"
