"""Finding, adopting and replacing a core that was left behind, against cores that are made up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from unit.fake_core import FakeCores, FakeOrphan

from fastserve.control import adoption
from fastserve.control.adoption import ControlListener, Orphan, find_orphan, settings_digest
from fastserve.control.core_process import EXIT_UNKNOWN, CoreProcess, describe_exit, unimplemented
from fastserve.control.foreign_process import ForeignProcess
from fastserve.control.listeners import Listener, Listeners
from fastserve.control.shared_memory import SharedMemory, make_memory
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.errors import StartError
from fastserve.log import Log

ENV = {"TF_CPP_MIN_LOG_LEVEL": "0"}


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something has happened."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0)


def waiting_process() -> subprocess.Popen[bytes]:
    """A process that does nothing until it is killed."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


class World:
    """A state directory, a log, and what listens there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = Log(os.open(root / "log", os.O_WRONLY | os.O_CREAT), json_lines=True, level="debug")
        self.state = StateDir(str(root / "state"), self.log)
        self.shared = SharedMemory({"metrics": 1 << 20})
        self.orphans: list[FakeOrphan] = []
        self.found: list[Orphan] = []

    def orphan(self, name: str = "core.sock", **hello: Any) -> FakeOrphan:
        path = str(self.root / "state" / name)
        self.orphans.append(FakeOrphan(path, waiting_process(), **hello))
        return self.orphans[-1]

    async def find(self) -> Orphan | None:
        orphan = await find_orphan(self.state, self.log, ENV)
        if orphan is not None:
            self.found.append(orphan)
        return orphan

    async def found_one(self) -> Orphan:
        orphan = await self.find()
        assert orphan is not None
        return orphan

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.root / "log").read_text().splitlines()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for found in world.found:
        await found.leave()
    for orphan in world.orphans:
        await orphan.close()
        assert orphan.process.stdin is not None
        orphan.process.stdin.close()


# ---- finding -------------------------------------------------------------------------------------


async def test_without_an_orphan_there_is_none(world: World) -> None:
    assert await world.find() is None
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(world.root / "state" / "core.sock"))
    stale.close()
    assert await world.find() is None


async def test_an_orphan_says_what_it_serves_and_hands_over_its_sockets(world: World) -> None:
    fake = world.orphan(listeners=["127.0.0.1:0", "unix:/run/s.sock"])
    fake.sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    rows = [
        {"model": "m", "version": 3, "state": "published", "servable": {"path": "/p/3"}, "note": {"x": 1}},
        {"model": "m", "version": 4, "state": "loading", "servable": None, "note": None},
    ]
    fake.answers["inventory"] = lambda command: {"servables": rows}
    fake.said_with_hello = b'{"event": "log", "level": "info", "message": "said at once", "fields": {}}\n'
    orphan = await world.found_one()
    assert (orphan.pid, orphan.settings_digest) == (fake.process.pid, "digest")
    assert orphan.servables == rows and orphan.paths == ["/p/3"]
    assert [str(listener.address) for listener in orphan.listeners] == ["127.0.0.1:0", "unix:/run/s.sock"]
    assert orphan.listeners[0].socket.getsockname() == fake.sockets[0].getsockname()
    assert not os.get_inheritable(orphan.listeners[0].socket.fileno())
    assert "said at once" in world.events()


async def test_an_orphan_that_is_left_goes_on(world: World) -> None:
    fake = world.orphan()
    orphan = await world.found_one()
    await orphan.leave()
    await orphan.leave()
    again = await world.found_one()
    assert again.pid == orphan.pid == fake.process.pid and fake.process.poll() is None
    assert [connection.ops() for connection in fake.connections] == [["inventory"], ["inventory"]]


async def test_an_orphan_that_drains_is_none(world: World) -> None:
    fake = world.orphan(draining=True)
    assert await world.find() is None
    assert fake.process.poll() is None


async def test_a_core_that_ends_before_it_says_hello_is_none(world: World) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(str(world.root / "state" / "core.sock"))
    listener.listen(1)

    async def hang_up() -> None:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        sock.close()

    hanging_up = asyncio.create_task(hang_up())
    assert await world.find() is None
    await hanging_up
    listener.close()


async def test_a_core_that_does_not_answer_ends_the_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "_PATIENCE_S", 0.01)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(world.root / "state" / "core.sock"))
        listener.listen(0)
        # Once it waits in the queue; then the queue is full.
        for _ in range(2):
            with pytest.raises(StartError, match=r"the core of an earlier fastserve .* does not answer"):
                await world.find()


async def test_another_versions_core_need_not_know_the_commands_of_now(world: World) -> None:
    fake = world.orphan(version="0.0.1")
    fake.answers["inventory"] = lambda command: {
        "ok": False,
        "code": "UNIMPLEMENTED",
        "error": "no such command",
    }
    orphan = await world.found_one()
    assert orphan.servables == []
    with Listeners([], orphan.listeners) as listeners:
        assert not orphan.fits("digest", listeners)


async def test_of_two_cores_one_is_drained(world: World) -> None:
    """The control process died when one had taken the other's place, and that one was not yet draining."""
    first, second = world.orphan("core.sock"), world.orphan("next.sock")
    orphan = await world.found_one()
    assert orphan.pid == first.process.pid
    assert second.now.ops() == ["inventory", "drain"]
    assert second.process.wait(10) == -signal.SIGKILL
    assert first.now.ops() == ["inventory"]


async def test_a_core_that_has_taken_the_place_is_found_where_it_was_begun(world: World) -> None:
    fake = world.orphan("next.sock")
    (world.root / "state" / "core.sock").touch()  # what the other has left behind
    orphan = await world.found_one()
    assert orphan.pid == fake.process.pid
    assert (world.root / "state" / "core.sock").is_socket()
    assert not (world.root / "state" / "next.sock").exists()


# ---- what fits -----------------------------------------------------------------------------------


def test_the_digest_is_of_what_a_core_depends_on() -> None:
    configure = {
        "listeners": [{"fd": 3}],
        "control_listener": 4,
        "limits": {"x": 1},
        "executor": {"threads": 2},
    }
    env = {"TF_XLA_FLAGS": "--a", "HOME": "/h"}
    digest = settings_digest(configure, env, "2.21")
    same = {**configure, "listeners": [{"fd": 7}], "control_listener": 8}
    assert settings_digest(dict(reversed(same.items())), {**env, "HOME": "/other"}, "2.21") == digest
    others = [
        settings_digest({**configure, "limits": {"x": 2}}, env, "2.21"),
        settings_digest({**configure, "allocator": "jemalloc"}, env, "2.21"),
        settings_digest(configure, {**env, "TF_XLA_FLAGS": ""}, "2.21"),
        settings_digest(configure, {**env, "LD_PRELOAD": "/lib/j.so"}, "2.21"),
        settings_digest(configure, env, "2.22"),
    ]
    assert len({digest, *others}) == 6


@pytest.mark.parametrize("differs", ["nothing", "version", "digest", "one more", "one less"])
async def test_an_orphan_fits_only_as_it_is(world: World, differs: str) -> None:
    fake = world.orphan(
        version="0" if differs == "version" else adoption.__version__,
        listeners=["127.0.0.1:8500"],
    )
    fake.sockets = [socket.create_server(("127.0.0.1", 0))]
    orphan = await world.found_one()
    addresses = {"one more": ["127.0.0.1:0", "127.0.0.1:0"], "one less": []}.get(differs, ["127.0.0.1:0"])
    with Listeners(addresses, orphan.listeners) as listeners:
        digest = "other" if differs == "digest" else "digest"
        assert orphan.fits(digest, listeners) is (differs == "nothing")


def test_listeners_take_the_sockets_that_are_there(tmp_path: Path) -> None:
    first, second = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    path = str(tmp_path / "s.sock")
    with Listeners([f"unix:{path}"]) as before:
        before.listen()
        unix = Listener(socket.socket(fileno=os.dup(before.fds[0])), adoption.parse_address(f"unix:{path}"))
        ports = [sock.getsockname()[1] for sock in (first, second)]
        given = [
            Listener(sock, adoption.parse_address(f"127.0.0.1:{port}"))
            for sock, port in zip((first, second), ports, strict=True)
        ]
        # The port 0 comes first, but may not take the socket of the address that names its port.
        addresses = [f"unix:{path}", "127.0.0.1:0", f"127.0.0.1:{ports[0]}"]
        with Listeners(addresses, [*given, unix]) as listeners:
            assert listeners.fds == [unix.socket.fileno(), second.fileno(), first.fileno()]
            assert listeners.addresses == [
                f"unix:{path}",
                f"127.0.0.1:{ports[1]}",
                f"127.0.0.1:{ports[0]}",
            ]
            assert listeners.as_given
        # It ended before it listened: the path is still that of whoever gave the socket away.
        assert os.path.exists(path)


def test_sockets_that_nobody_wants_are_closed_and_their_paths_go_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    before = Listeners([f"unix:{path}"])
    given = Listener(socket.socket(fileno=os.dup(before.fds[0])), adoption.parse_address(f"unix:{path}"))
    with Listeners(["127.0.0.1:0"], [given]) as listeners:
        assert given.socket.fileno() == -1
        assert not listeners.as_given
        listeners.listen()
        assert os.path.exists(path)
    assert not os.path.exists(path)
    before.close()


# ---- adopting ------------------------------------------------------------------------------------


async def adopted(world: World, fake: FakeOrphan, cores: FakeCores) -> tuple[CoreSupervisor, Orphan]:
    """A supervisor that has adopted the orphan."""
    orphan = await world.found_one()
    supervisor = CoreSupervisor(cores.spawn, {"limits": {}}, [], world.log, shared=world.shared)

    async def recover(core: CoreProcess) -> None:
        await core.call("load", servable={"model": "m", "version": 1})

    core, _listener = orphan.adopt(world.state, unimplemented)
    supervisor.adopt(core, recover, orphan.shared)
    return supervisor, orphan


async def test_an_adopted_core_obeys_and_its_successor_serves(world: World) -> None:
    fake, cores = world.orphan(), FakeCores()
    supervisor, _ = await adopted(world, fake, cores)
    assert supervisor.pid == fake.process.pid
    assert (await supervisor.call("list"))["ok"]
    fake.now.request(1, "Reload", b"")
    await until(lambda: fake.now.ops()[-1] == "respond")
    assert fake.now.responses() == {1: (12, "Reload is not served", b"")}
    fake.process.kill()
    fake.now.die(-9)
    await until(lambda: supervisor.restarts == 1)
    assert cores.now.ops() == ["configure", "load m:1", "serve"]
    await supervisor.kill()


async def test_an_adopted_cores_memory_comes_with_it_and_goes_with_it(world: World) -> None:
    fake, cores = world.orphan(shared=["metrics"]), FakeCores()
    fake.memories = [make_memory("metrics", 1 << 20)]
    supervisor, _ = await adopted(world, fake, cores)
    fd = world.shared.current("metrics")
    assert fd is not None and os.fstat(fd).st_ino == os.fstat(fake.memories[0]).st_ino
    assert not os.get_inheritable(fd)
    fake.process.kill()
    fake.now.die(-9)
    await until(lambda: supervisor.restarts == 1)
    fresh = world.shared.current("metrics")
    assert fresh is not None and os.fstat(fresh).st_ino != os.fstat(fake.memories[0]).st_ino
    assert cores.now.commands[0]["shared"] == {"metrics": fresh}
    await supervisor.kill()
    os.close(fake.memories[0])


@pytest.mark.parametrize("end", ["left", "drained"])
async def test_the_memory_of_an_orphan_that_is_not_adopted_is_let_go(world: World, end: str) -> None:
    fake = world.orphan(shared=["metrics"])
    fake.memories = [make_memory("metrics", 1 << 20)]
    orphan = await world.found_one()
    (fd,) = orphan.shared.values()
    if end == "left":
        await orphan.leave()
    else:
        await orphan.drain(0.0, 5.0)
    assert orphan.shared == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    os.close(fake.memories[0])


async def test_an_adopted_core_is_drained_when_it_says_so(world: World) -> None:
    fake = world.orphan()
    supervisor, _ = await adopted(world, fake, FakeCores())
    assert await supervisor.drain(0.0, 5.0) is True
    assert fake.process.wait(10) == -signal.SIGKILL


async def test_an_adopted_core_that_dies_while_it_drains_has_not_drained(world: World) -> None:
    fake = world.orphan()
    supervisor, _ = await adopted(world, fake, FakeCores())

    def die(command: dict[str, Any]) -> None:
        fake.process.kill()
        fake.now.die(-9)

    fake.answers["drain"] = die
    assert await supervisor.drain(0.0, 5.0) is False


async def test_settling_closes_what_was_begun_and_nothing_else(world: World) -> None:
    fake = world.orphan()

    def row(version: int, state: str) -> dict[str, Any]:
        return {"model": "m", "version": version, "state": state, "servable": None, "note": None}

    before = [row(1, "published"), row(2, "loading"), row(3, "loaded"), row(4, "retiring"), row(5, "loading")]
    # 5 has failed meanwhile, 6 is of now.
    after = [row(1, "published"), row(2, "loaded"), row(3, "loaded"), row(4, "loaded"), row(6, "loaded")]
    fake.answers["inventory"] = lambda command: {"servables": before}
    fake.answers["list"] = lambda command: {"servables": after}
    _, orphan = await adopted(world, fake, FakeCores())
    await orphan.settle()
    assert fake.now.ops() == ["inventory", "settle", "list", "close m:2", "close m:3", "close m:4"]


async def test_the_next_core_is_looked_for_where_the_last_one_was(world: World) -> None:
    state = world.root / "state"
    fake = world.orphan()
    orphan = await world.found_one()
    listener = ControlListener.bind(world.state, orphan)
    assert {path.name for path in state.iterdir() if path.is_socket()} == {"core.sock", "next.sock"}
    assert os.stat(state / "next.sock").st_mode & 0o777 == 0o600
    assert await orphan.drain(0.0, 5.0) is True
    listener.take_over()
    listener.take_over()
    assert {path.name for path in state.iterdir() if path.is_socket()} == {"core.sock"}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(state / "core.sock"))
    listener.close()
    assert not (state / "core.sock").exists()
    assert fake.now.ops() == ["inventory", "drain"]


def test_a_state_directory_of_any_length_will_do(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    with StateDir(str(deep), Log()) as state:
        listener = ControlListener.bind(state)
        assert (deep / "core.sock").is_socket()
        listener.close()
        assert not (deep / "core.sock").exists()


def test_prepared_models_that_are_served_are_kept(world: World) -> None:
    kept, _ = (world.state.work_dir("m", version) for version in (3, 4))
    world.state.remove_prepared([f"{kept}/loader/table", "/models/other/1"])
    assert os.listdir(world.root / "state" / "prepared" / "model-m") == ["3"]
    world.state.remove_prepared([kept, "/models/other/1"])
    assert os.listdir(world.root / "state" / "prepared" / "model-m") == ["3"]


# ---- a process that is not ours ------------------------------------------------------------------


async def test_a_foreign_process_ends_with_nobody_knows_what() -> None:
    child = waiting_process()
    process = ForeignProcess(child.pid)
    assert process.returncode is None
    process.kill()
    async with asyncio.timeout(10):
        assert await process.wait() == EXIT_UNKNOWN == process.returncode
    process.kill()  # nobody's id by now
    assert describe_exit(EXIT_UNKNOWN) == "an unknown status: it was adopted"
    child.communicate()
    with pytest.raises(OSError):
        ForeignProcess(child.pid)


@pytest.mark.parametrize("how", ["it dies", "it is left"])
async def test_settling_ends_with_its_core(world: World, how: str) -> None:
    fake = world.orphan()
    fake.answers["list"] = lambda command: asyncio.sleep(3600)
    orphan = await world.found_one()
    settling = asyncio.create_task(orphan.settle())
    await until(lambda: fake.now.ops() == ["inventory", "settle", "list"])
    if how == "it dies":
        fake.process.kill()
        fake.now.die(-9)
    else:
        await orphan.leave()
    async with asyncio.timeout(10):
        await settling
