"""The web service of a daemon: routes over HTTP, what they refuse, and what their workers survive."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, alive
from exported_models import exported_models

REPO = Path(__file__).resolve().parents[2]

HOOKS = """
import os, time
import numpy as np
from fastserve.web import Response

def preprocess(request):
    if request.query.get("pid"):
        return Response({"pid": os.getpid()})
    if request.query.get("echo"):
        return Response({"method": request.method, "path": request.path, "echo": request.query.all("echo"),
            "header": request.headers.all("x-a"), "remote": request.remote, "body": request.text()},
            headers={"X-B": "c"})
    if request.query.get("sleep"):
        time.sleep(float(request.query["sleep"]))
    return {"x": np.array(request.json(), np.float32)}

def postprocess(outputs, request):
    return {"y": outputs["y"]}
"""


class Http:
    """Asks a daemon's gateway."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        host, _, port = daemon.ready["gateway_addresses"][0].rpartition(":")
        self.address = (host, int(port))

    def __call__(
        self, path: str, body: Any = None, method: str = "POST", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, body (JSON when it is that) and headers."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            data: Any = answer.read()
            if "json" in answer.headers.get("content-type", ""):
                data = json.loads(data)
            return answer.status, data, answer.headers
        finally:
            connection.close()


@pytest.fixture(scope="module")
def http_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Http]:
    directory = tmp_path_factory.mktemp("web")
    (directory / "hooks.py").write_text(HOOKS)
    (directory / "tokens").write_text("open-sesame-open-sesame-open-sesame\n")
    model = exported_models() / "half_plus_two"
    daemon = Daemon(
        directory,
        f"""
        [server]
        listen = ["127.0.0.1:0"]
        state_dir = "state"
        config_poll_s = 0.0
        [gateway]
        listen = ["127.0.0.1:0"]
        [[models]]
        name = "half"
        base_path = "{model}"
        [[models]]
        name = "closed"
        base_path = "{model}"
        token_file = "tokens"
        [[routes]]
        path = "/half"
        file = "hooks.py"
        model = "half"
        methods = ["POST", "PUT"]
        workers = 2
        timeout_s = 2.0
        max_body_bytes = "64KiB"
        [[routes]]
        path = "/closed"
        file = "hooks.py"
        model = "closed"
        """,
    )
    yield Http(daemon.wait_ready())
    daemon.end()


def test_a_route_answers_with_the_models_numbers(http_of: Http) -> None:
    assert http_of("/half", "[1.0, 2.0, 5.0]")[:2] == (200, {"y": [2.5, 3.0, 4.5]})


def test_a_hook_sees_the_request_and_says_the_headers(http_of: Http) -> None:
    status, said, headers = http_of(
        "/half?echo=1&echo=%C3%A4", "Käse".encode(), "PUT", {"X-A": "b", "Content-Type": "text/plain"}
    )
    assert (status, headers["X-B"]) == (200, "c")
    assert (said["method"], said["path"], said["remote"]) == ("PUT", "/half", "127.0.0.1")
    assert (said["echo"], said["header"], said["body"]) == (["1", "ä"], ["b"], "Käse")


def test_a_body_may_be_compressed(http_of: Http) -> None:
    packed = gzip.compress(b"[1.0]")
    assert http_of("/half", packed, headers={"Content-Encoding": "gzip"})[:2] == (200, {"y": [2.5]})
    bomb = gzip.compress(bytes(10 << 20))
    assert len(bomb) < 64 << 10
    assert http_of("/half", bomb, headers={"Content-Encoding": "gzip"})[0] == 413
    assert http_of("/half", packed[:-6], headers={"Content-Encoding": "gzip"})[0] == 400


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "said"),
    [
        ("/half", "GET", None, 405, "Method not allowed: GET"),
        ("/half", "POST", b"x" * (65 << 10), 413, "more than 65536 bytes (max_body_bytes of /half)"),
        ("/half", "POST", b"[1.0", 400, "the body is not JSON"),
        ("/half", "POST", b'{"a": 1}', 500, "incident"),
        ("/half/", "POST", b"[1.0]", 404, "/half/"),
        ("/other", "POST", b"[1.0]", 404, "/other"),
        ("/closed", "POST", b"[1.0]", 401, ""),
    ],
)
def test_a_refusal_has_its_status_and_rests_form(
    http_of: Http, path: str, method: str, body: bytes | None, status: int, said: str
) -> None:
    got, answer, headers = http_of(path, body, method)
    assert got == status and said in answer["error"]
    if status == 405:
        assert headers["Allow"] == "POST, PUT"


def test_a_clients_token_reaches_the_model(http_of: Http) -> None:
    token = {"Authorization": "Bearer open-sesame-open-sesame-open-sesame"}
    assert http_of("/closed", "[1.0]", headers=token)[:2] == (200, {"y": [2.5]})
    assert http_of("/closed", "[1.0]", headers={"Authorization": "Bearer wrong"})[0] in (401, 403)


def test_a_defect_is_in_the_daemons_log_with_its_route_and_file(http_of: Http) -> None:
    answer = http_of("/half", '{"a": 1}')[1]["error"]
    incident = answer.split("incident ")[1].split()[0]
    line = http_of.daemon.until(
        lambda: next((line for line in http_of.daemon.log.splitlines() if incident in line), None)
    )
    assert "hook failed" in line and "route=/half" in line and "hooks.py:15: TypeError" in line


def test_clients_that_hang_up_leave_workers_that_answer(http_of: Http) -> None:
    for _ in range(8):
        with socket.create_connection(http_of.address) as gone:
            gone.sendall(b"POST /half?sleep=0.3 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[1.0]")
    assert http_of("/half", "[1.0]")[0] == 200
    with socket.create_connection(http_of.address) as half:
        half.sendall(b"POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[1")
    assert http_of("/half", "[1.0]")[0] == 200


def test_workers_go_with_their_gateway_and_come_back_with_the_next(http_of: Http) -> None:
    before = http_of("/half?pid=1")[1]["pid"]
    gateway = int(Path(f"/proc/{before}/stat").read_text().rsplit(") ")[1].split()[1])
    os.kill(gateway, signal.SIGKILL)
    http_of.daemon.until(lambda: not alive(before))

    def again() -> int | None:
        try:
            status, said, _ = http_of("/half?pid=1")
        except (OSError, http.client.HTTPException):
            return None
        return said["pid"] if status == 200 else None

    assert http_of.daemon.until(again) != before


def test_a_core_that_restarts_is_waited_for(http_of: Http) -> None:
    core = http_of.daemon.core_pid
    os.kill(core, signal.SIGKILL)
    assert http_of.daemon.until(lambda: http_of("/half", "[1.0]")[0] == 200)
    assert http_of.daemon.core_pid != core


def test_requests_of_many_threads_are_all_answered(http_of: Http) -> None:
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for i in range(40):
            got = http_of("/half", json.dumps([number, i]))
            if got[:2] != (200, {"y": [number / 2 + 2, i / 2 + 2]}):
                wrong.append(got[:2])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reload_of_the_configuration_changes_the_routes_alone(http_of: Http) -> None:
    daemon = http_of.daemon
    stays = {http_of("/half?pid=1")[1]["pid"] for _ in range(20)}
    text = (daemon.directory / "config.toml").read_text()
    more = text + '[[routes]]\npath = "/more"\nfile = "hooks.py"\nmodel = "half"\n'
    (daemon.directory / "config.toml").write_text(more)
    assert "[[routes]]" in daemon.admin("reload")["changed"]
    daemon.until(lambda: http_of("/more", "[1.0]")[0] == 200)
    assert http_of("/half?pid=1")[1]["pid"] in stays
    (daemon.directory / "config.toml").write_text(text)
    assert "[[routes]]" in daemon.admin("reload")["changed"]
    daemon.until(lambda: http_of("/more", "[1.0]")[0] == 404)
    assert http_of("/half?pid=1")[1]["pid"] in stays


def test_a_request_whose_body_still_comes_goes_to_the_route_of_then(http_of: Http) -> None:
    daemon = http_of.daemon
    text = (daemon.directory / "config.toml").read_text()
    changing = text + '[[routes]]\npath = "/changing"\nfile = "hooks.py"\nmodel = "half"\nmax_waiting = {}\n'
    head = b"POST /changing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n[1"

    def reload(config: str) -> None:
        (daemon.directory / "config.toml").write_text(config)
        assert "[[routes]]" in daemon.admin("reload")["changed"]

    reload(changing.format(5))
    first = daemon.until(lambda: http_of("/changing?pid=1")[1].get("pid"))
    with socket.create_connection(http_of.address, 30) as late, late.makefile("rb") as answer:
        late.sendall(head)
        assert http_of("/changing", "[1.0]")[0] == 200
        reload(changing.format(6))
        daemon.until(lambda: not alive(first))
        late.sendall(b".0]")
        assert answer.read().split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    with socket.create_connection(http_of.address, 30) as late, late.makefile("rb") as answer:
        late.sendall(head)
        assert http_of("/changing", "[1.0]")[0] == 200
        reload(text)
        daemon.until(lambda: http_of("/changing", "[1.0]")[0] == 404)
        late.sendall(b".0]")
        said = answer.read()
        assert said.startswith(b"HTTP/1.1 503 ") and b"/changing is being closed" in said


def test_check_names_what_a_routes_file_lacks(tmp_path: Path) -> None:
    model = exported_models() / "half_plus_two"
    (tmp_path / "a.py").write_text("def preprocess(request): ...\n")
    (tmp_path / "c.toml").write_text(
        f'[gateway]\nlisten = ["127.0.0.1:8501"]\n[[models]]\nname = "half"\nbase_path = "{model}"\n'
        '[[routes]]\npath = "/a"\nfile = "a.py"\nmodel = "half"\n[[routes]]\npath = "/b"\nfile = "b.py"\n'
    )
    ran = subprocess.run(
        [sys.executable, "-m", "fastserve", "check", "c.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert f"error: [[routes]] /a, file: {tmp_path}/a.py: has no postprocess()" in ran.stderr
    assert f"error: [[routes]] /b, file: {tmp_path}/b.py: No such file or directory" in ran.stderr
    assert "/a" in ran.stdout and "web service" in ran.stdout
