"""`fastserve health`: exit codes and words, asked of a made-up daemon over its socket and over TCP."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastserve.cli import main

Answers = dict[str, tuple[int, dict[str, Any]]]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, document = self.server.answers[self.path]  # type: ignore[attr-defined]
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a unix socket"

    def log_message(self, *args: object) -> None:
        pass


class Monitor:
    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "monitor.sock")
        self.answers: Answers = {"/healthz": (200, {"ok": True}), "/readyz": (200, {"ok": True})}
        servers = (
            socketserver.ThreadingUnixStreamServer(self.socket, Handler),
            socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler),
        )
        self.port = servers[1].server_address[1]
        self.servers = servers
        for server in servers:
            server.answers = self.answers  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path)
    yield made
    made.close()


def health(*args: str) -> Result:
    return CliRunner().invoke(main, ["health", *args])


def test_it_lives(monitor: Monitor, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\n')
    for where in ([str(config)], ["--socket", monitor.socket], ["--url", f"http://127.0.0.1:{monitor.port}"]):
        for question in ([], ["--ready"]):
            done = health(*where, *question)
            assert (done.exit_code, done.output) == (0, "")


def test_it_does_not(monitor: Monitor) -> None:
    monitor.answers["/healthz"] = (503, {"ok": False, "why": "the core has died and is not back yet"})
    done = health("--socket", monitor.socket)
    assert (done.exit_code, done.output) == (1, "not healthy: the core has died and is not back yet\n")
    assert health("--socket", monitor.socket, "--ready").exit_code == 0


def test_it_is_not_ready(monitor: Monitor) -> None:
    monitor.answers["/readyz"] = (503, {"ok": False, "models": {"ranker": "version 4: no saved_model.pb"}})
    done = health("--socket", monitor.socket, "--ready")
    assert done.exit_code == 1
    assert done.output == (
        "not ready: models without a version that answers:\n  ranker: version 4: no saved_model.pb\n"
    )
    monitor.answers["/readyz"] = (503, {"ok": False, "why": "it is draining", "models": {}})
    assert health("--socket", monitor.socket, "--ready").output == "not ready: it is draining\n"


def test_nobody_answers(tmp_path: Path, monitor: Monitor) -> None:
    done = health("--socket", str(tmp_path / "nothing.sock"))
    assert done.exit_code == 1 and "nothing.sock" in done.output
    monitor.answers["/healthz"] = (404, {})
    done = health("--socket", monitor.socket)
    assert done.exit_code == 1 and "answers 404" in done.output


def test_one_place_at_a_time() -> None:
    assert health("--socket", "a", "--url", "http://b").exit_code == 2
