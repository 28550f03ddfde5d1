"""The gateway's processes as the control process has them: started, restarted, drained, found again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastserve.config import Config, Gateway, Model, Rollout, Server
from fastserve.config_read import parse_config
from fastserve.control.gateway_orphans import GatewayOrphans
from fastserve.control.gateway_settings import forwarded_headers, gateway_settings, internal_sockets
from fastserve.control.gateway_supervisor import GatewaySupervisor
from fastserve.control.listeners import Listeners
from fastserve.control.state import StateDir
from fastserve.errors import ConfigError, StartError
from fastserve.gateway.settings import read_settings
from fastserve.log import Log

SETTINGS = {"forward": ["x-user"]}


class FakeGateway:
    """One life: a far end of the socket that says what it is told to."""

    def __init__(self, pid: int, sock: socket.socket, says: bytes) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.terminated = False
        self.on_terminate: Callable[[], None] = lambda: self.die(0)
        self._sock = sock
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        sock.sendall(says)

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def terminate(self) -> None:
        self.terminated = True
        self.on_terminate()

    def kill(self) -> None:
        self.die(-signal.SIGKILL)

    def die(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self._exited.set_result(status)
            self._sock.close()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._sock.recv(1 << 16).splitlines()]


class World:
    def __init__(self, path: Path, processes: int = 1) -> None:
        self.lives: list[FakeGateway] = []
        self.says = b'{"event": "ready"}\n'
        self.spawn_error: OSError | None = None
        self.dies: int | None = None
        self.slept: list[float] = []
        self.remembered: list[list[int]] = []
        self.now = 0.0
        self.awake = asyncio.Event()
        self.awake.set()
        self.file = path / "log"
        self.log = Log(os.open(self.file, os.O_WRONLY | os.O_CREAT), json_lines=True, level="debug")
        self.supervisor = GatewaySupervisor(
            self.spawn,
            SETTINGS,
            [],
            processes,
            self.log,
            remember=lambda pids: self.remembered.append(list(pids)),
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def spawn(self, env: Mapping[str, str], fds: Sequence[int]) -> FakeGateway:
        if self.spawn_error is not None:
            raise self.spawn_error
        sock = socket.socket(fileno=os.dup(int(env["FASTSERVE_GATEWAY_FD"])))
        self.lives.append(FakeGateway(1000 + len(self.lives), sock, self.says))
        if self.dies is not None:
            self.lives[-1].die(self.dies)
        return self.lives[-1]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.awake.wait()

    async def until(self, look: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not look():  # noqa: ASYNC110 - some steps of the loop later
                await asyncio.sleep(0)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


async def test_it_is_told_its_settings_and_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, processes=2)
    await world.supervisor.start()
    assert world.supervisor.up and sorted(world.supervisor.pids) == [1000, 1001]
    assert sorted(world.remembered[-1]) == [1000, 1001]
    assert world.lives[0].lines() == [SETTINGS]
    assert await world.supervisor.drain(1.0)
    assert all(life.terminated for life in world.lives)


async def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    world = World(tmp_path, processes=2)
    await world.supervisor.start()
    world.lives[0].die(-9)
    await world.until(lambda: world.supervisor.restarts == 1)
    assert sorted(world.supervisor.pids) == [1001, 1002] == sorted(world.remembered[-1])
    assert world.supervisor.up and not world.lives[1].terminated
    (died,) = [event for event in world.events() if event["event"] == "gateway died"]
    assert (died["how"], died["pid"]) == ("SIGKILL", 1000)
    await world.supervisor.kill()
    assert world.lives[2].returncode == -9


async def test_the_pauses_grow_and_a_long_life_forgives(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.supervisor.start()
    for number in range(1, 5):
        world.lives[-1].die(1)
        await world.until(lambda number=number: world.supervisor.restarts == number)  # type: ignore[misc]
    assert world.slept == [0.1, 0.5, 2.0]
    world.now += 61.0
    world.lives[-1].die(1)
    await world.until(lambda: world.supervisor.restarts == 5)
    assert world.slept == [0.1, 0.5, 2.0]
    await world.supervisor.kill()


async def test_one_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.says, world.dies = b"", 1
    with pytest.raises(StartError, match="the gateway did not start: the gateway ended before it served"):
        await world.supervisor.start()
    world.spawn_error = OSError("no more processes")
    with pytest.raises(StartError, match="no more processes"):
        await world.supervisor.start()


async def test_where_others_serve_already_it_is_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.says, world.dies = b"", 1
    world.awake.clear()
    await world.supervisor.start(must=False)
    assert not world.supervisor.up and world.supervisor.pids == []
    up = asyncio.create_task(world.supervisor.all_up())
    world.says, world.dies = b'{"event": "ready"}\n', None
    assert not up.done()
    world.awake.set()
    await world.until(up.done)
    assert world.supervisor.up
    await world.supervisor.kill()


async def test_one_that_does_not_drain_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.control.gateway_process._DRAIN_GRACE_S", 0.01)
    world = World(tmp_path)
    await world.supervisor.start()
    world.lives[0].on_terminate = lambda: None
    assert not await world.supervisor.drain(0.01)
    assert world.lives[0].returncode == -9


async def test_what_it_leaves_behind_does_not_hide_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a hook has started may hold everything open that it had."""
    monkeypatch.setattr("fastserve.control.gateway_process._LAST_WORDS_S", 0.05)
    world = World(tmp_path)
    await world.supervisor.start()
    with world.lives[0]._sock.dup():
        world.lives[0].die(-9)
        await world.until(lambda: world.supervisor.restarts == 1)
        with world.lives[1]._sock.dup():
            assert await world.supervisor.drain(1.0)


async def test_what_it_says_is_in_the_log(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.says += b'nonsense\n{"event": "log", "level": "warning", "message": "m", "fields": {"level": 1}}\n'
    await world.supervisor.start()
    await world.until(lambda: any(event["event"] == "m" for event in world.events()))
    told = next(event for event in world.events() if event["event"] == "m")
    assert (told["level"], told["process"], told["level_"]) == ("warning", "gateway", 1)
    assert any("not a JSON object" in event["event"] for event in world.events())
    await world.supervisor.kill()


async def test_a_line_that_is_too_long_ends_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastserve.control.gateway_process._LINE_MAX_BYTES", 1000)
    world = World(tmp_path)
    world.says = b"x" * 5000 + b'\n{"event": "log", "message": "m"}\n{"event": "ready"}\n'
    await world.supervisor.start()
    await world.until(lambda: any(event["event"] == "m" for event in world.events()))
    assert any("too long" in event["event"] for event in world.events())
    await world.supervisor.kill()


async def test_a_lame_duck_is_told_to_all_and_to_those_to_come(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.supervisor.start()
    assert not world.lives[0].lines()[0].get("leaving")
    world.supervisor.lame_duck()
    await world.until(lambda: True)
    world.lives[0].die(1)
    await world.until(lambda: len(world.lives) == 2 and world.supervisor.up)
    assert world.lives[1].lines()[0]["leaving"]
    await world.supervisor.kill()


async def test_new_headers_are_told_to_all_and_to_those_to_come(tmp_path: Path) -> None:
    world = World(tmp_path, processes=2)
    await world.supervisor.start()
    world.supervisor.forward(["x-user"])
    world.supervisor.forward(["x-other"])
    await asyncio.sleep(0)
    for life in world.lives:
        assert life.lines() == [SETTINGS, {"event": "forward", "headers": ["x-other"]}]
    world.lives[0].die(1)
    await world.until(lambda: world.supervisor.restarts == 1)
    assert world.lives[-1].lines() == [{"forward": ["x-other"]}]
    await world.supervisor.kill()


# ---- what is left of an earlier one --------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process with the gateway's command line."""
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(); signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "fastserve.gateway"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()


def state_of(path: Path) -> StateDir:
    return StateDir(str(path), Log(os.open(os.devnull, os.O_WRONLY)))


async def test_an_earlier_gateway_is_found_and_ended(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    log = Log(os.open(os.devnull, os.O_WRONLY))
    with state_of(tmp_path) as state:
        assert state.orphaned_gateways() == []
        state.remember_gateways([stranger.pid])
    with state_of(tmp_path) as state:
        assert state.orphaned_gateways() == [stranger.pid]
        left = GatewayOrphans.find(state, log)
        left.leave()
        assert stranger.poll() is None
        left = GatewayOrphans.find(state, log)
        others = asyncio.Event()
        left.begin_end(5.0, wait_for(others))
        await asyncio.sleep(0.05)
        assert stranger.poll() is None
        others.set()
        assert left._ending is not None
        await left._ending
        assert stranger.wait(10) == 0
        assert state.orphaned_gateways() == []


async def test_an_earlier_gateway_stays_known_until_it_has_ended(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    log = Log(os.open(os.devnull, os.O_WRONLY))
    with state_of(tmp_path) as state:
        state.remember_gateways([stranger.pid])
    for _ in range(2):  # whoever finds it has a gateway of its own, and dies before that one serves
        with state_of(tmp_path) as state:
            assert state.orphaned_gateways() == [stranger.pid]
            left = GatewayOrphans.find(state, log)
            state.remember_gateways([os.getpid()])
            left.leave()
    with state_of(tmp_path) as state:
        await GatewayOrphans.find(state, log).end(5.0)
        assert stranger.wait(10) == 0
        assert state._data["old_gateways"] == []


async def test_another_process_with_its_number_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    with state_of(tmp_path) as state:
        state.remember_gateways([stranger.pid, os.getpid()])
        # This process is no gateway, and the other one was started at another time.
        state._data["gateways"][0][1] += 1
        assert state.orphaned_gateways() == []
        state._data["gateways"] = [1, "x", [stranger.pid], [stranger.pid, 0], None]
        assert state.orphaned_gateways() == []


# ---- configuration, listeners --------------------------------------------------------------------


def test_what_a_gateway_process_is_told_is_what_it_reads(tmp_path: Path) -> None:
    models = (
        Model(name="a", base_path="/a", rollout=Rollout(mode="canary", sticky_header="X-User")),
        Model(name="b", base_path="/b", rollout=Rollout(mode="canary", sticky_header="x-user")),
        Model(name="c", base_path="/c"),
    )
    config = Config(
        server=Server(state_dir=str(tmp_path)), gateway=Gateway(listen=("127.0.0.1:0",)), models=models
    )
    with Listeners([], internal=internal_sockets(config), gateway=config.gateway.listen) as listeners:
        told = gateway_settings(config, listeners)
        settings = read_settings(json.dumps(told).encode())
        assert settings.listeners[0].fd == listeners.gateway[0].socket.fileno()
        assert settings.rest_socket == f"{tmp_path}/rest.sock" and settings.forward == ("x-user",)
        assert set(told) == set(settings.__struct_fields__)
    assert forwarded_headers([]) == []
    assert internal_sockets(Config()) == {}


def test_listeners_for_everybody(tmp_path: Path) -> None:
    internal = {f"{tmp_path}/rest.sock": "rest"}
    with Listeners(["127.0.0.1:0"], internal=internal, gateway=["127.0.0.1:0"]) as listeners:
        assert [(one.transport, one.held) for one in listeners.all] == [
            ("grpc", False),
            ("rest", False),
            ("grpc", True),
        ]
        assert len(listeners.addresses) == 1 and len(listeners.gateway) == 1
        assert os.stat(f"{tmp_path}/rest.sock").st_mode & 0o777 == 0o600
        listeners.listen()
        where = listeners.gateway[0].socket.getsockname()
        listeners.close()
        held = os.dup(listeners.gateway[0].socket.fileno())
        socket.create_connection(where, 5).close()
        asyncio.run(listeners.shut_gateway())
        # Though another process has a copy.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, 5)
        os.close(held)
    assert not os.path.exists(f"{tmp_path}/rest.sock")


MODEL = '[[models]]\nname = "m"\nbase_path = "/m"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[gateway]\nlisten = ["8501"]', '[gateway] listen[0] = "8501": expected "HOST:PORT"'),
        ('[gateway]\nlisten = ["127.0.0.1:8500"]', "this address is there twice, here or in [server]"),
        ('[gateway]\nlisten = ["[::1]:1", "[::1]:1"]', "[gateway] listen[1]"),
        ("[gateway]\nprocesses = 0", "expected a number of processes, 1 to 64"),
        ("[gateway]\nnice = 20", "expected a nice value, 0 to 19"),
        ("[gateway]\ntimeout_s = 0", "expected a number of seconds, more than 0"),
        ("[gateway]\ncros = true", "no such key; did you mean cors?"),
        (
            f'[server]\nstate_dir = "/{"s" * 95}"\nadmin_socket = "/a"\n[gateway]\nlisten = ["127.0.0.1:1"]',
            "with [gateway] listen, set state_dir to a shorter one",
        ),
    ],
)
def test_configurations_that_are_wrong(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"{text}\n{MODEL}", "/etc/config.toml")
    assert told in str(caught.value)


def test_two_free_ports_are_no_address_twice() -> None:
    config = parse_config(
        f'[server]\nlisten = ["127.0.0.1:0"]\n[gateway]\nlisten = ["127.0.0.1:0"]\n{MODEL}',
        "/etc/config.toml",
    )
    assert config.gateway.listen == ("127.0.0.1:0",)
