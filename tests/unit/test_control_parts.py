"""Source, state directory, listeners, environment and admin socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.fake_core import FakeCores

from fastserve.config import TensorFlow
from fastserve.control.admin import AdminSocket
from fastserve.control.listeners import Listeners, bind_unix
from fastserve.control.source import newest_version
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.environment import child_argv, child_environment, installed_tensorflow, tensorflow_dir
from fastserve.errors import ModelError, StartError
from fastserve.extensions import VersionPath
from fastserve.log import Log

QUIET = Log(level="error")

# ---- source ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["1"], "1"),
        (["1", "2", "10"], "10"),
        (["0"], "0"),
        (["007", "6"], "007"),
        (["007", "7", "07"], "7"),
        (["1", "2.bak", "v3", "-4", "+5", "٦", "1_0", " 8"], "1"),
        (["1", "99999999999999999999"], "1"),
        (["9223372036854775807", "1"], "9223372036854775807"),
    ],
)
def test_the_newest_version_is_the_highest_number(tmp_path: Path, names: list[str], newest: str) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "12345").write_text("a file is no version")
    assert newest_version(str(tmp_path)) == VersionPath(int(newest), str(tmp_path / newest))


def test_a_version_may_be_a_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "4").symlink_to(tmp_path / "real")
    (tmp_path / "5").symlink_to(tmp_path / "gone")
    assert newest_version(str(tmp_path)).version == 4


def test_a_base_path_without_versions_says_what_would_be_right(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="there is no directory"):
        newest_version(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no directory in it has a number for a name"):
        newest_version(str(tmp_path / "model"))
    (tmp_path / "model" / "saved_model.pb").touch()
    with pytest.raises(ModelError, match=r"is itself a SavedModel.*move the model to .*/model/1"):
        newest_version(str(tmp_path / "model"))
    with pytest.raises(ModelError, match="is not a directory"):
        newest_version(str(tmp_path / "model" / "saved_model.pb"))


# ---- state -------------------------------------------------------------------------------------


def test_the_state_directory_has_one_owner(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "state")
    with StateDir(path, QUIET):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        with pytest.raises(StartError, match=f"another fastserve .process {os.getpid()}. runs"):
            StateDir(path, QUIET)
    with StateDir(path, QUIET):
        pass


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot be used: .*; set \[server\] state_dir"):
        StateDir(str(tmp_path / "file" / "state"), QUIET)


def test_the_choice_is_of_a_model_in_a_place(tmp_path: Path) -> None:
    with StateDir(str(tmp_path), QUIET) as state:
        assert state.xla_choice("m", "/a") is None
        state.remember_xla_choice("m", "/a", "full")
    with StateDir(str(tmp_path), QUIET) as state:
        assert state.xla_choice("m", "/a") == "full"
        assert state.xla_choice("m", "/b") is None
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"models": 3}', b"\xff\xfe", b'{"models": {"m": 4}}'])
def test_a_damaged_state_file_is_left_behind(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "state.json").write_bytes(damage)
    with StateDir(str(tmp_path), QUIET) as state:
        assert state.xla_choice("m", "/a") is None
        state.remember_xla_choice("m", "/a", "off")
    with StateDir(str(tmp_path), QUIET) as state:
        assert state.xla_choice("m", "/a") == "off"


def test_a_state_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    with StateDir(str(tmp_path / "s"), QUIET) as state:
        (tmp_path / "s" / "state.json.new").mkdir()
        state.remember_xla_choice("m", "/a", "full")
        assert state.xla_choice("m", "/a") == "full"


def test_prepared_models_of_an_earlier_life_are_removed(tmp_path: Path) -> None:
    with StateDir(str(tmp_path), QUIET) as state:
        prepared = Path(state.work_dir("..", 3))
        assert prepared.is_relative_to(tmp_path / "prepared") and ".." not in prepared.parts
        (prepared / "saved_model.pb").touch()
    with StateDir(str(tmp_path), QUIET) as state:
        state.remove_prepared()
        assert not prepared.exists()


def test_a_core_that_lost_its_control_process_is_found(tmp_path: Path) -> None:
    # A process whose command line looks like the core's.
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "-m", "fastserve.core"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with StateDir(str(tmp_path), QUIET) as state:
            assert state.orphaned_core() is None
            state.remember_core(child.pid)
            assert state.orphaned_core() == child.pid
            state.remember_core(os.getpid())
            assert state.orphaned_core() is None
            state.remember_core(child.pid)
            child.communicate(b"\n")
            assert state.orphaned_core() is None


# ---- listeners ---------------------------------------------------------------------------------


def connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.removeprefix("unix:"))
        return client
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=5)


def test_connections_are_refused_until_listen_and_after_close(tmp_path: Path) -> None:
    with Listeners(["127.0.0.1:0", f"unix:{tmp_path}/sub/s.sock"]) as listeners:
        assert not listeners.addresses[0].endswith(":0")
        for address in listeners.addresses:
            with pytest.raises(ConnectionRefusedError):
                connect(address)
        listeners.listen()
        for address in listeners.addresses:
            connect(address).close()
        listeners.close()
        for address in listeners.addresses:
            with pytest.raises(ConnectionRefusedError):
                connect(address)
    assert not (tmp_path / "sub" / "s.sock").exists()


def test_ipv6() -> None:
    with Listeners(["[::1]:0"]) as listeners:
        listeners.listen()
        assert listeners.addresses[0].startswith("[::1]:")
        connect(listeners.addresses[0]).close()


def test_an_address_in_use_is_named() -> None:
    with Listeners(["127.0.0.1:0"]) as first:
        first.listen()
        (address,) = first.addresses
        with pytest.raises(StartError, match=f"cannot listen on {address}: the address is in use"):
            Listeners(["127.0.0.1:0", address])


def test_an_address_taken_between_bind_and_listen_is_named() -> None:
    with Listeners(["127.0.0.1:0"]) as first, Listeners(first.addresses) as second:
        second.listen()
        with pytest.raises(StartError, match="the address is in use"):
            first.listen()


def test_addresses_that_this_machine_does_not_have() -> None:
    with pytest.raises(StartError, match="no interface of this machine has this address"):
        Listeners(["192.0.2.1:0"])
    with pytest.raises(StartError, match=r"cannot listen on no\.such\.host\.invalid:1"):
        Listeners(["no.such.host.invalid:1"])


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    bind_unix(path, 0o600).close()
    with Listeners([f"unix:{path}"]) as listeners:
        listeners.listen()
        connect(f"unix:{path}").close()
        with pytest.raises(StartError, match="another process listens there"):
            Listeners([f"unix:{path}"])
        connect(f"unix:{path}").close()


def test_a_file_is_never_taken_for_a_stale_socket(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(StartError, match="exists and is not a socket"):
        Listeners([f"unix:{tmp_path}/s"])
    assert (tmp_path / "s").read_text() == "precious"


def test_a_unix_socket_that_someone_else_has_taken_over_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Listeners([f"unix:{path}"]):
        path.rename(tmp_path / "old")
        path.touch()
    assert path.exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_unix_sockets_have_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        addresses = [f"unix:{tmp_path}/s", "127.0.0.1:0"]
        with Listeners(addresses, socket_mode=0o666, admin=f"unix:{tmp_path}/admin") as listeners:
            assert mode_of(tmp_path / "s") == 0o666
            assert mode_of(tmp_path / "admin") == 0o600
            assert [str(listener.address) for listener in listeners.all][:2] == listeners.addresses
            assert listeners.admin_address == f"unix:{tmp_path}/admin"
            assert [listener.admin for listener in listeners.all] == [False, False, True]
            assert len(listeners.fds) == 3
            listeners.listen()
            connect(f"unix:{tmp_path}/admin").close()
        with Listeners([f"unix:{tmp_path}/s"]) as listeners:
            assert mode_of(tmp_path / "s") == 0o660
            assert listeners.admin_address is None
        assert os.umask(0o077) == 0o077  # as it was
    finally:
        os.umask(before)
    assert not list(tmp_path.iterdir())


def test_a_socket_that_was_given_gets_the_mode_of_now(tmp_path: Path) -> None:
    with Listeners([f"unix:{tmp_path}/s"], socket_mode=0o666) as before:
        (given,) = before.all
        copy = replace(given, socket=given.socket.dup())
        with Listeners([f"unix:{tmp_path}/s"], [copy], socket_mode=0o600) as listeners:
            assert listeners.as_given
            assert mode_of(tmp_path / "s") == 0o600


def test_paths_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="a part of the path is a file, not a directory"):
        Listeners([f"unix:{tmp_path}/file/s"])

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.makedirs", denied)
    with pytest.raises(StartError) as caught:
        Listeners([f"unix:{tmp_path}/sub/s"])
    assert f"permission denied: user {os.geteuid()} may not make files in {tmp_path}/sub" in str(caught.value)
    assert "choose another path" in str(caught.value)


# ---- environment -------------------------------------------------------------------------------


def environment(
    tensorflow: TensorFlow | None = None, inherited: dict[str, str] | None = None
) -> dict[str, str]:
    return child_environment(tensorflow or TensorFlow(), inherited or {})


def test_tensorflow_is_quiet_unless_asked() -> None:
    assert environment()["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert environment(TensorFlow(log_level="info"))["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert environment(inherited={"TF_CPP_MIN_LOG_LEVEL": "1"})["TF_CPP_MIN_LOG_LEVEL"] == "1"


def test_auto_clustering_is_eager_and_allowed_on_the_cpu_for_models_that_will_use_it() -> None:
    eager = "--tf_xla_enable_lazy_compilation=false"
    named = "--tf_xla_deterministic_cluster_names"
    assert environment()["TF_XLA_FLAGS"] == f"--tf_xla_cpu_global_jit {eager} {named}"
    inherited = {"TF_XLA_FLAGS": f"--x {eager}"}
    assert environment(inherited=inherited)["TF_XLA_FLAGS"] == f"--x {eager} --tf_xla_cpu_global_jit {named}"


def test_tensors_are_in_no_pool_under_one_lock() -> None:
    assert environment()["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] == "true"
    inherited = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "false"}
    assert environment(inherited=inherited)["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] == "false"


def test_devices() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in environment()
    assert environment(TensorFlow(device="cpu"))["CUDA_VISIBLE_DEVICES"] == "-1"
    assert environment(TensorFlow(device="gpu", visible_devices="1,2"))["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_a_child_finds_this_package_from_any_directory(tmp_path: Path) -> None:
    (tmp_path / "fastserve.py").write_text("raise SystemExit('the wrong one')")
    argv = [*child_argv("fastserve.version")]
    result = subprocess.run(argv, cwd=tmp_path, env=environment(inherited=dict(os.environ)), timeout=60)
    assert result.returncode == 0


def test_the_library_directory(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"library_dir = .*there is no libtensorflow_cc\.so\.2"):
        tensorflow_dir(TensorFlow(library_dir=str(tmp_path)))
    (tmp_path / "libtensorflow_cc.so.2").touch()
    assert tensorflow_dir(TensorFlow(library_dir=str(tmp_path))) == str(tmp_path)


def test_tensorflow_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "libtensorflow_cc.so.2").touch()
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = installed_tensorflow()
    assert found is not None and found.directory == str(package)
    (package / "libtensorflow_cc.so.2").unlink()
    with pytest.raises(StartError, match=r"pip install 'fastserve\[tensorflow\]'"):
        tensorflow_dir(TensorFlow())


# ---- admin -------------------------------------------------------------------------------------


async def test_the_admin_socket_answers_verbs_one_line_each(tmp_path: Path) -> None:
    cores = FakeCores()
    cores.answers["stats"] = lambda command: {"requests": 3}
    cores.answers["list"] = lambda command: {"ok": False, "code": "INTERNAL", "error": "no"}
    core = CoreSupervisor(cores.spawn, {}, [], QUIET)

    async def nothing(core: Any) -> None: ...

    await core.start(nothing)
    path = str(tmp_path / "run" / "admin.sock")

    def passed_on(verb: str) -> Any:
        return lambda request: core.call(verb)

    admin = AdminSocket(path, {verb: passed_on(verb) for verb in ("stats", "list")})
    await admin.open()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    reader, writer = await asyncio.open_unix_connection(path)

    async def ask(line: bytes) -> dict[str, Any]:
        writer.write(line + b"\n")
        answer: dict[str, Any] = json.loads(await reader.readline())
        return answer

    assert await ask(b'{"verb": "stats"}') == {"ok": True, "requests": 3}
    assert await ask(b'{"verb": "list"}') == {"ok": False, "code": "INTERNAL", "error": "no"}
    assert (await ask(b'{"verb": "drain"}'))["code"] == "UNIMPLEMENTED"
    for nonsense in (b"{", b"[1]", b'"stats"', b"3"):
        assert (await ask(nonsense))["code"] == "INVALID_ARGUMENT"
    assert cores.now.ops() == ["configure", "stats", "list"]

    # A line without an end does not fill the memory, and others are still served.
    other_reader, other_writer = await asyncio.open_unix_connection(path)
    other_writer.write(b"x" * 200_000)
    assert await other_reader.read() == b""
    other_writer.close()
    assert await ask(b'{"verb": "stats"}') == {"ok": True, "requests": 3}

    await admin.close()
    assert await reader.read() == b""
    assert not list((tmp_path / "run").iterdir())
    writer.close()
    await core.kill()
