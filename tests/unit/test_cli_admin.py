"""The commands for a running daemon, against an admin socket that is made up."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastserve import cli_admin_show
from fastserve.cli import main
from fastserve.config_read import admin_socket, read_config

Answer = dict[str, Any]

STATUS: Answer = {
    "ok": True,
    "pid": 4242,
    "ready": True,
    "core": {"pid": 4243, "restarts": 2, "rss_bytes": 1 << 30, "memory_limit_bytes": 8 << 30},
    "models": [
        {
            "name": "ranker",
            "base_path": "/models/ranker",
            "problem": "",
            "labels": {"stable": 3, "prod": 3, "canary": 4},
            "rollout": {
                "mode": "canary",
                "stable": 3,
                "new": 4,
                "seconds": 41.2,
                "verdict": "waiting",
                "text": "812 of 1000 requests",
            },
            "versions": [
                {"version": 3, "state": "AVAILABLE", "memory_bytes": 150 << 20, "aspired": False},
                {
                    "version": 12,
                    "state": "LOADING",
                    "stage": "warm",
                    "signature": "serving_default",
                    "bucket": 64,
                    "done": 5,
                    "total": 10,
                    "seconds": 12.3,
                    "attempts": 2,
                },
                {
                    "version": 4,
                    "state": "END",
                    "error": "no [variables] in it",
                    "attempts": 6,
                    "retry_in_s": None,
                },
                {
                    "version": 5,
                    "state": "START",
                    "error": "the store is away",
                    "attempts": 3,
                    "retry_in_s": 4.0,
                },
            ],
        },
        {
            "name": "half",
            "base_path": "/models/half",
            "problem": "/models/half is gone",
            "labels": {},
            "rollout": None,
            "versions": [],
        },
    ],
}


class FakeAdmin:
    """An admin socket that gives the answers it was made with, one for each connection; the last repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Answer] = []
        self.answers: list[Answer | bytes] = [{"ok": True}]
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._sock.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                self.asked.append(json.loads(lines.readline()))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                client.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")


@pytest.fixture
def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAdmin]:
    """A fake daemon whose configuration is config.toml in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text(
        '[server]\nstate_dir = "state"\n[[models]]\nname = "ranker"\nbase_path = "ranker"\n'
    )
    admin = FakeAdmin(tmp_path / "state" / "admin.sock")
    yield admin
    admin.close()


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def rows(text: str) -> list[list[str]]:
    """The cells of a printed table."""
    return [
        [cell.strip() for cell in line.strip()[1:-1].replace("┃", "│").split("│")]
        for line in text.splitlines()
        if "│" in line or "┃" in line
    ]


def test_status_is_a_table_of_versions(admin: FakeAdmin) -> None:
    admin.answers = [STATUS]
    result = call("status")
    assert result.exit_code == 0
    first = result.stdout.splitlines()[0]
    assert first == "ready, pid 4242, core 4243 after 2 restarts, memory 1.0 GiB of 8.0 GiB"
    assert rows(result.stdout) == [
        ["model", "version", "state", "labels", "memory", "remark"],
        ["ranker", "12", "LOADING", "", "", "warm serving_default batch of 64 (5 of 10), 12 s, attempt 2"],
        ["", "5", "START", "", "", "attempt 3, again in 4 s, the store is away"],
        ["", "4", "END", "canary", "", "attempt 6, no [variables] in it"],
        ["", "3", "AVAILABLE", "prod, stable", "150 MiB", "no longer wanted"],
        ["half", "", "", "", "", "no versions"],
    ]
    assert "ranker: canary of 4 beside 3, 41 s, waiting: 812 of 1000 requests" in result.stdout
    assert "half: /models/half is gone" in result.stdout
    assert admin.asked == [{"verb": "status"}]


def test_a_daemon_that_has_no_core_says_so(admin: FakeAdmin) -> None:
    admin.answers = [{"ok": True, "pid": 7, "ready": False, "core": {"pid": None}, "models": []}]
    assert call("status").stdout.splitlines()[0] == "not ready, pid 7, no core"


def test_json_is_the_answer_as_it_is(admin: FakeAdmin) -> None:
    admin.answers = [STATUS]
    assert json.loads(call("status", "--json").stdout) == STATUS


@pytest.mark.parametrize("how", [["config.toml"], ["--socket", "state/admin.sock"], []])
def test_the_daemon_is_found(admin: FakeAdmin, how: list[str]) -> None:
    admin.answers = [STATUS]
    assert call("status", *how).exit_code == 0


def test_the_socket_is_the_one_that_the_daemon_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    file = tmp_path / "config.toml"
    models = '[[models]]\nname = "m"\nbase_path = "m"\n'
    for server in ("", 'state_dir = "s"', 'admin_socket = "a.sock"', 'admin_socket = "/run/a.sock"'):
        file.write_text(f"[server]\n{server}\n{models}")
        assert admin_socket(file) == read_config(file).server.admin_socket
    file.write_text(models)
    assert admin_socket(file) == read_config(file).server.admin_socket


def test_a_configuration_with_an_error_still_says_where_the_daemon_is(admin: FakeAdmin) -> None:
    admin.answers = [STATUS]
    with open("config.toml", "a") as file:
        file.write('xla = "yes please"\n')
    assert call("status").exit_code == 0
    with open("config.toml", "a") as file:
        file.write("not TOML\n")
    assert call("status").exit_code == 2


def test_without_a_daemon_it_says_which_socket_and_how_to_start_one(admin: FakeAdmin) -> None:
    path = str(admin.path)
    with socket.socket(socket.AF_UNIX) as stale:
        os.unlink(path)
        stale.bind(path)
    for verb in (["status"], ["reload"], ["load", "m:1"], ["unload", "m"], ["labels", "m"]):
        result = call(*verb)
        assert result.exit_code == 1
        expected = f"error: no daemon listens on {path}; start it with: fastserve serve config.toml\n"
        assert result.stderr == expected
    os.unlink(path)
    assert "no daemon listens" in call("status").stderr
    os.unlink("config.toml")
    result = call("status")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: there is no config.toml: name the configuration that the daemon runs with, or its --socket\n",
    )


def test_a_socket_of_somebody_elses(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "fastserve.cli_admin_client.socket.socket", type("S", (socket.socket,), {"connect": connect})
    )
    result = call("status")
    assert result.exit_code == 1
    assert f"{admin.path}: permission denied; it is for " in result.stderr


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            {"ok": False, "code": "NOT_FOUND", "error": "there is no model m"},
            "there is no model m (NOT_FOUND)",
        ),
        ({"ok": False, "code": "UNIMPLEMENTED", "error": "no such verb"}, "no such verb (UNIMPLEMENTED)"),
        (b"", "ended before it answered"),
        (b'{"ok": true', "ended before it answered"),
        (b"HTTP/1.1 400 Bad Request\n", "is not the admin socket of a fastserve daemon"),
        (b"[]\n", "is not the admin socket of a fastserve daemon"),
    ],
)
def test_an_answer_that_is_none_is_exit_code_1(admin: FakeAdmin, answer: Answer | bytes, error: str) -> None:
    admin.answers = [answer]
    result = call("load", "m:3")
    assert result.exit_code == 1
    assert error in result.stderr and "Traceback" not in result.stderr


def test_reload_shows_what_has_changed(admin: FakeAdmin) -> None:
    admin.answers = [
        {"ok": True, "changed": ["ranker: max_batch_size", "half: new"]},
        {"ok": True, "changed": []},
    ]
    assert call("reload").stdout == "ranker: max_batch_size\nhalf: new\n"
    assert call("reload").stdout == "nothing has changed\n"
    assert admin.asked == [{"verb": "reload"}] * 2


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_versions_are_named_with_their_model(admin: FakeAdmin, verb: str) -> None:
    assert call(verb, "ranker:4").stdout == f"{verb} ranker:4: done\n"
    admin.answers = [{"ok": True, "text": "ranker:5 is AVAILABLE"}]
    assert call(verb, "ranker").stdout == "ranker:5 is AVAILABLE\n"
    assert admin.asked == [
        {"verb": verb, "model": "ranker", "version": 4},
        {"verb": verb, "model": "ranker", "version": None},
    ]
    for wrong in ("ranker:", "ranker:new", ":4", "ranker:-1", ""):
        result = call(verb, wrong)
        assert result.exit_code == 2 and "is not MODEL or MODEL:VERSION" in result.stderr
    assert len(admin.asked) == 2


def test_labels_are_shown_and_moved(admin: FakeAdmin) -> None:
    admin.answers = [{"ok": True, "labels": {"stable": 3, "canary": 4}}, {"ok": True, "labels": {}}]
    assert rows(call("labels", "ranker").stdout) == [["label", "version"], ["canary", "4"], ["stable", "3"]]
    assert call("labels", "ranker", "stable=4", "canary=", "a=0").stdout == "ranker has no labels\n"
    assert admin.asked == [
        {"verb": "labels", "model": "ranker", "set": {}, "remove": []},
        {"verb": "labels", "model": "ranker", "set": {"stable": 4, "a": 0}, "remove": ["canary"]},
    ]
    for wrong in ("stable", "stable=new", "=3", "stable=-1"):
        result = call("labels", "ranker", wrong)
        assert result.exit_code == 2 and "is neither NAME=VERSION nor NAME=" in result.stderr


def naps(*ends: Callable[[], None]) -> Callable[[float], None]:
    """What happens instead of each second's wait; then Ctrl-C."""
    left = list(ends)

    def sleep(seconds: float) -> None:
        assert seconds == 1.0
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    return sleep


def test_watch_goes_on_until_ctrl_c_even_without_a_daemon(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastserve.cli_admin_client import AdminClient

    admin.answers = [STATUS]
    client = AdminClient.of("config.toml", None)
    cli_admin_show.watch_status(client.status, as_json=False, sleep=naps(lambda: None, admin.path.unlink))
    assert len(admin.asked) == 2
    assert "no daemon listens on" in capsys.readouterr().out


def test_watch_as_json_is_one_object_a_line(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    from fastserve.cli_admin_client import AdminClient

    admin.answers = [STATUS, {**STATUS, "ready": False}]
    client = AdminClient.of("config.toml", None)
    cli_admin_show.watch_status(client.status, as_json=True, sleep=naps(lambda: None))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ready"] for line in lines] == [True, False]


def test_help_teaches() -> None:
    for verb in ("status", "reload", "load", "unload", "labels"):
        text = call(verb, "--help").output
        assert f"fastserve {verb}" in text and "Examples" in text and "--socket" in text
