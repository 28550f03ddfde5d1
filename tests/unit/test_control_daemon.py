"""The daemon from its start to its end, with made-up children: what it says, leaves behind and exits with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from unit import fake_core, fake_trial
from unit.fake_core import FakeCores

from fastserve.config import Config
from fastserve.config_read import parse_config
from fastserve.control.core_process import Process
from fastserve.control.daemon import ServeOptions, run
from fastserve.errors import StartError
from fastserve.log import Log

TRIAL = [sys.executable, fake_trial.__file__]


class Daemon:
    """A configuration in a directory, and one run of the daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cores = FakeCores()
        self.served = asyncio.Event()
        self.cores.answers["serve"] = lambda command: self.served.set()
        self.models = ""
        self.log = Log(os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), json_lines=True)
        self.server = (
            f'listen = ["127.0.0.1:0", "unix:{root}/s.sock"]\ndrain_timeout_s = 3\nlame_duck_s = 0.5'
        )
        (root / "libtensorflow_cc.so.2").touch()

    def model(self, name: str, orders: dict[str, Any]) -> None:
        version = self.root / name / "1"
        version.mkdir(parents=True)
        (version / "trial.json").write_text(json.dumps(orders))
        self.models += (
            f'[[models]]\nname = "{name}"\nbase_path = "{name}"\n'
            '[models.versions]\ncomplete_marker = "trial.json"\n'
        )

    def config(self) -> Config:
        text = (
            f'[server]\nstate_dir = "state"\n{self.server}\n[executor]\nthreads = 2\n'
            f'[tensorflow]\nlibrary_dir = "."\n{self.models}'
        )
        return parse_config(text, str(self.root / "config.toml"))

    async def run(self, spawn: Any = None, **options: Any) -> int:
        options.setdefault("ready_file", str(self.root / "ready.json"))
        return await run(
            self.config(),
            ServeOptions(**options),
            self.log,
            spawn_core=spawn or self.cores.spawn,
            trial_argv=TRIAL,
        )

    def start(self, spawn: Any = None, **options: Any) -> asyncio.Task[int]:
        return asyncio.create_task(self.run(spawn, **options))

    async def until(self, event: asyncio.Event, running: asyncio.Task[int]) -> None:
        """Waits for what happens while it runs, and not for ever: a daemon that has ended fails the test."""
        async with asyncio.timeout(20):
            happens = asyncio.create_task(event.wait())
            await asyncio.wait([running, happens], return_when=asyncio.FIRST_COMPLETED)
            happens.cancel()
        if running.done():
            raise AssertionError(f"it ended with {running.exception() or running.result()!r}")

    async def ready(self, running: asyncio.Task[int]) -> dict[str, Any]:
        """Waits until it serves; what the ready file says."""
        await self.until(self.served, running)
        async with asyncio.timeout(20):
            file = self.root / "ready.json"
            while not file.exists():  # noqa: ASYNC110 - written one step of the loop later
                await asyncio.sleep(0)
        ready: dict[str, Any] = json.loads(file.read_text())
        return ready

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.root / "log").read_text().splitlines()]

    def leftovers(self) -> list[str]:
        """What a daemon that has ended may not leave: sockets and ready files."""
        return [str(p) for p in self.root.rglob("*") if p.is_socket() or p.name.startswith("ready")]


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_whole_life(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.model("ranker", {})
    daemon.model("half", {})
    running = daemon.start()
    ready = await daemon.ready(running)
    address = ready["addresses"][0]
    assert address.startswith("127.0.0.1:") and not address.endswith(":0")
    assert ready["addresses"][1] == f"unix:{daemon.root}/s.sock"
    assert ready["models"] == ["ranker:1 (batched, XLA, 3 buckets)", "half:1 (batched, XLA, 3 buckets)"]
    assert (ready["pid"], ready["core_pid"]) == (os.getpid(), 1000)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"fastserve ready: {ready['models'][0]}, {ready['models'][1]} on {address}, unix:")
    assert line.endswith(" s")

    core = daemon.cores.now
    configure = core.commands[0]
    fds = [listener["fd"] for listener in configure["listeners"]]
    assert [*fds, configure["control_listener"], *configure["shared"].values()] == core.listener_fds
    assert [listener["address"] for listener in configure["listeners"]] == ready["addresses"]
    assert configure["server"] == {
        "io_threads": 0,
        "lame_duck_s": 0.5,
        "drain_timeout_s": 3.0,
        "reply_compression": "match",
        "tensor_content_replies": False,
        "tls": None,
        "reload": "everywhere",
        "admin_listen": "",
        "reflection": True,
        "session_run": False,
        "check_method_names": False,
    }
    assert configure["limits"]["max_connections"] == 10_000
    assert configure["executor"] == {
        "threads": 2,
        "spin_us": 0,
        "load_threads": 1,
        "policy": "fair",
    }
    assert configure["tensorflow"]["library_dir"] == str(daemon.root)
    assert configure["loading"] == {"nice": 19}
    assert configure["ablate"] == []

    term()
    assert await running == 0
    assert core.commands[-1] | {"id": 0} == {
        "id": 0,
        "op": "drain",
        "lame_duck_s": 0.5,
        "drain_timeout_s": 3.0,
    }
    assert core.returncode == 0
    assert daemon.leftovers() == []
    assert daemon.events()[-2:] == ["draining", "stopped"]


async def test_a_start_can_wait_for_a_model_that_is_still_to_come(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.model("there", {})
    daemon.models += (
        f'[[models]]\nname = "late"\nbase_path = "{daemon.root}/late"\n'
        '[models.versions]\ncomplete_marker = "trial.json"\n[loading]\npoll_s = 0.02\n'
    )
    running = daemon.start(wait=True, strict=True, ready_words="Running here ...")
    async with asyncio.timeout(20):
        while not {"published", "source problem"} <= {*daemon.events()}:  # noqa: ASYNC110 - only the log tells
            await asyncio.sleep(0.01)
    assert not daemon.served.is_set()
    version = daemon.root / "late" / "3"
    version.mkdir(parents=True)
    (version / "trial.json").write_text("{}")
    ready = await daemon.ready(running)
    assert [model.partition(" ")[0] for model in ready["models"]] == ["there:1", "late:3"]
    term()
    assert await running == 0
    assert "Running here ...\n" in capsys.readouterr().err


async def test_a_start_does_not_wait_for_a_model_that_has_been_given_up(daemon: Daemon) -> None:
    daemon.model("broken", {"error": "it is"})
    daemon.models += "[loading]\nretries = 0\n"
    with pytest.raises(StartError, match="broken:1: it is"):
        await daemon.run(wait=True, strict=True)
    assert daemon.leftovers() == []


async def test_json_says_ready_in_the_log(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.model("m", {})
    running = daemon.start(announce=False)
    await daemon.ready(running)
    term()
    assert await running == 0
    assert capsys.readouterr().out == ""
    (ready,) = (
        json.loads(line) for line in (daemon.root / "log").read_text().splitlines() if '"ready"' in line
    )
    assert ready["models"] == ["m:1 (batched, XLA, 3 buckets)"] and ready["core_pid"] == 1000


async def test_connections_are_refused_while_it_drains(daemon: Daemon) -> None:
    daemon.model("m", {})
    draining = asyncio.Event()
    gate = asyncio.Event()

    async def drain(command: dict[str, Any]) -> None:
        draining.set()
        await gate.wait()

    daemon.cores.answers["drain"] = drain
    running = daemon.start()
    host, _, port = (await daemon.ready(running))["addresses"][0].rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    term()
    await daemon.until(draining, running)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    gate.set()
    assert await running == 0


async def test_a_second_signal_ends_at_once(daemon: Daemon) -> None:
    daemon.model("m", {})
    draining = asyncio.Event()

    async def drain(command: dict[str, Any]) -> None:
        draining.set()
        await asyncio.sleep(3600)

    daemon.cores.answers["drain"] = drain
    running = daemon.start()
    await daemon.ready(running)
    term()
    await daemon.until(draining, running)
    os.kill(os.getpid(), signal.SIGINT)
    assert await running == 1
    assert daemon.cores.now.returncode == -signal.SIGKILL
    assert daemon.leftovers() == []


async def test_a_model_that_fails_does_not_stop_the_others(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.model("bad", {"error": "variables/ is missing"})
    daemon.model("good", {})
    running = daemon.start()
    ready = await daemon.ready(running)
    assert (ready["models"], ready["missing"]) == (["good:1 (batched, XLA, 3 buckets)"], ["bad:1"])
    assert "without bad:1 on" in capsys.readouterr().out
    assert "not available" in daemon.events()
    term()
    assert await running == 0


async def test_strict_wants_every_model(daemon: Daemon) -> None:
    daemon.model("bad", {"error": "variables/ is missing"})
    daemon.model("good", {})
    with pytest.raises(StartError, match="--strict was given: bad:1: variables/ is missing"):
        await daemon.run(strict=True)
    assert daemon.cores.now.returncode is not None
    assert daemon.leftovers() == []


async def test_nothing_to_serve_is_an_error(daemon: Daemon) -> None:
    daemon.model("bad", {"error": "variables/ is missing"})
    with pytest.raises(StartError, match="no model can be served: bad:1: variables/ is missing"):
        await daemon.run()
    assert daemon.cores.now.returncode is not None
    assert daemon.leftovers() == []


async def test_a_core_that_does_not_start_ends_the_trials(daemon: Daemon) -> None:
    daemon.model("m", {"hang": True})
    daemon.cores.spawn_error = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(StartError, match=r"the core did not start: .*No such file"):
        await daemon.run()
    assert daemon.leftovers() == []


async def test_a_signal_during_the_start_ends_it(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.model("m", {"hang": True})
    configured = asyncio.Event()
    daemon.cores.answers["configure"] = lambda command: configured.set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(daemon.root / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.root / "notify"))
        running = daemon.start()
        await daemon.until(configured, running)
        term()
        assert await running == 0
        told = systemd.recv(4096).decode().split("\n")
        assert told == ["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=21000000"]
    (daemon.root / "notify").unlink()
    assert daemon.cores.now.returncode == -signal.SIGKILL
    assert not daemon.served.is_set()
    assert daemon.leftovers() == []


async def test_a_defect_in_the_start_ends_it_and_leaves_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.model("m", {"hang": True})

    def defect(*args: Any) -> None:
        raise NameError("a defect")

    for place in ("FirstCore.choose", "AdminSocket", "Manager.start", "Listeners.listen"):
        with monkeypatch.context() as patch:
            patch.setattr(f"fastserve.control.daemon.{place}", defect)
            if place == "Listeners.listen":
                (daemon.root / "m" / "1" / "trial.json").write_text("{}")
            async with asyncio.timeout(20):
                with pytest.raises(NameError, match="a defect"):
                    await daemon.run()
        assert daemon.leftovers() == [], place
    assert [core.returncode for core in daemon.cores.lives] == [-signal.SIGKILL]


async def test_an_address_in_use_names_a_core_that_was_left_behind(daemon: Daemon) -> None:
    daemon.model("m", {})
    # It looks like a core whose control process was killed: it listens, and the state file names it.
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(  # noqa: ASYNC220 - one line, written at once
        [sys.executable, "-c", script, "-m", "fastserve.core"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as orphan:
        assert orphan.stdout is not None
        port = int(orphan.stdout.readline())
        daemon.server = f'listen = ["127.0.0.1:{port}"]'
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: the address is in use by another process$"):
            await daemon.run()
        (daemon.root / "state" / "state.json").write_text(json.dumps({"models": {}, "core_pid": orphan.pid}))
        with pytest.raises(StartError, match=f"still serves: end it with kill {orphan.pid}"):
            await daemon.run()
        orphan.communicate(b"\n")


async def test_a_ready_file_that_cannot_be_written(daemon: Daemon) -> None:
    daemon.model("m", {})
    with pytest.raises(StartError, match=r"the ready file .* cannot be written: No such file or directory"):
        await daemon.run(ready_file=str(daemon.root / "none" / "ready.json"))
    assert daemon.cores.now.returncode is not None


async def test_connections_wait_for_the_core_that_replaces_a_dead_one(daemon: Daemon) -> None:
    daemon.model("m", {})
    processes: list[asyncio.subprocess.Process] = []

    async def spawn(env: Mapping[str, str], fds: Sequence[int]) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, fake_core.__file__, env={**os.environ, **env}, pass_fds=fds
        )
        processes.append(process)
        return process

    async def greeting(address: str) -> int:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        pid = int(await reader.read())
        writer.close()
        return pid

    daemon.served.set()
    running = daemon.start(spawn)
    ready = await daemon.ready(running)
    address = ready["addresses"][0]
    async with asyncio.timeout(30):
        first = await greeting(address)
        assert first == ready["core_pid"] == processes[0].pid
        os.kill(first, signal.SIGKILL)
        await processes[0].wait()
        # Nobody accepts now; the connection stands in the socket's queue.
        assert await greeting(address) == processes[1].pid
    term()
    assert await running == 0
    events = daemon.events()
    assert events.index("core died") < events.index("core is back") < events.index("draining")
    assert processes[1].returncode == 0


async def test_systemd_is_told(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.model("ranker", {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(daemon.root / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.root / "notify"))
        loop = asyncio.get_running_loop()

        async def told() -> list[str]:
            async with asyncio.timeout(20):
                return (await loop.sock_recv(systemd, 4096)).decode().split("\n")

        running = daemon.start(file=str(daemon.root / "config.toml"), read=daemon.config)
        ready = ["READY=1", "STATUS=serves ranker:1 (batched, XLA, 3 buckets)"]
        assert await told() == ready
        assert "NOTIFY_SOCKET" not in os.environ
        os.kill(os.getpid(), signal.SIGHUP)
        assert (await told())[0] == "RELOADING=1"
        assert await told() == ready
        term()
        # lame_duck_s, drain_timeout_s, and what is added to them.
        assert await told() == ["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=18500000"]
        assert await running == 0


async def test_a_reload_that_the_end_cuts_short_is_not_told_as_ready(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.model("ranker", {})
    loop = asyncio.get_running_loop()
    reading, go_on = asyncio.Event(), threading.Event()

    def read() -> Config:
        loop.call_soon_threadsafe(reading.set)
        go_on.wait(20)
        return daemon.config()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(daemon.root / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.root / "notify"))
        running = daemon.start(file=str(daemon.root / "config.toml"), read=read)
        await daemon.ready(running)
        os.kill(os.getpid(), signal.SIGHUP)
        await daemon.until(reading, running)
        term()
        assert await running == 0
        go_on.set()
        told = []
        with suppress(BlockingIOError):
            while True:
                told.append(systemd.recv(4096).decode().split("\n")[0])
    assert told == ["READY=1", "RELOADING=1", "STOPPING=1"]
