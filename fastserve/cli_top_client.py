"""Asks a running daemon how it does: status, history, health, over its monitor socket or an address.

Used by cli_top and cli_health. Every question is a connection of its own. Every error says where it was
asked, and what to do.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastserve.cli_admin_client import unreachable
from fastserve.config_read import monitor_socket
from fastserve.errors import FastServeError

_TIMEOUT_S = 5.0
_MOST_BYTES = 64 << 20

Answer = dict[str, Any]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


class MonitorClient:
    """What tells how one daemon does."""

    def __init__(self, where: str, how_to_start: str, *, url: bool = False) -> None:
        """`where`: a unix socket's path, or with `url` an http URL."""
        self._where, self._how_to_start = where, how_to_start
        self._url = urlsplit(where) if url else None

    @classmethod
    def of(cls, config: str, socket_path: str | None) -> MonitorClient:
        """The daemon whose monitor socket is `socket_path`, or the one that runs with the configuration."""
        if socket_path is not None:
            return cls(socket_path, "fastserve serve CONFIG")
        if not os.path.exists(config):
            raise FastServeError(
                f"there is no {config}: name the configuration that the daemon runs with, its --socket or "
                "its --url"
            )
        return cls(monitor_socket(config), f"fastserve serve {config}")

    @classmethod
    def at(cls, url: str) -> MonitorClient:
        """The daemon whose live page is at `url`."""
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise FastServeError(f'--url: "{url}" is not a URL such as http://10.0.0.5:8501/')
        return cls(url, "fastserve serve CONFIG, with [monitoring] listen", url=True)

    def status(self) -> Answer:
        """The newest status document."""
        return self._ask("status.json")

    def history(self) -> list[Answer]:
        """The last ten minutes, a point a second."""
        points = self._ask("history.json").get("points")
        return points if isinstance(points, list) else []

    def health(self, *, ready: bool = False) -> Answer:
        """What /healthz says, or /readyz: `ok`, and `why` and `models` where it is not."""
        return self._ask("readyz" if ready else "healthz", also=(503,))

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        if self._url is None:
            return _UnixConnection(self._where), "/"
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        assert self._url.hostname is not None  # or at() had refused it
        path = self._url.path if self._url.path.endswith("/") else f"{self._url.path}/"
        return kind(self._url.hostname, self._url.port, timeout=_TIMEOUT_S), path

    def _ask(self, document: str, also: Sequence[int] = ()) -> Answer:
        """`also`: other statuses than 200 that bring the document."""
        connection, base = self._connection()
        try:
            connection.request("GET", f"{base}{document}", headers={"Accept": "application/json"})
            reply = connection.getresponse()
            body = reply.read(_MOST_BYTES)
        except OSError as error:
            raise unreachable(self._where, error, self._how_to_start) from None
        except http.client.HTTPException:
            raise self._stranger() from None
        finally:
            connection.close()
        if reply.status not in (200, *also):
            raise FastServeError(f"{self._where} answers {reply.status} {reply.reason} to /{document}")
        try:
            answer = json.loads(body)
        except ValueError:
            raise self._stranger() from None
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def _stranger(self) -> FastServeError:
        if self._url is not None:
            return FastServeError(f"{self._where} is not where a fastserve daemon shows its live page")
        return FastServeError(
            f"{self._where} is not the monitor socket of a fastserve daemon, which is monitor.sock in its "
            "state directory"
        )
