"""TLS, tokens, sockets' permissions and reloads by request, with the daemon as users start it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificate_files import FOLDER, secure_channel
from daemon_process import Daemon, alive
from lifecycle import install, table
from predict_client import Client as Stock
from predict_client import request
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from fastserve.client import Client, PermissionDenied, RpcError, Tls, TlsError, Unauthenticated

TLS = '[server.tls]\ncertificate = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\n'
ADMIN = 'admin_listen = "unix:grpc-admin.sock"\nreload_roots = ["models"]\n'


class Server:
    """A daemon in a directory with certificates and the model "half"; every line of its log counts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for file in FOLDER.iterdir():
            shutil.copy(file, directory)
        self.write("tokens", "one\n")
        install("half", directory / "models" / "half" / "1")
        self.daemon: Daemon = None  # type: ignore[assignment]

    def write(self, name: str, text: str) -> None:
        """By a rename, as whoever changes such files should."""
        (self.directory / f"{name}.new").write_text(text)
        (self.directory / f"{name}.new").rename(self.directory / name)

    def use(self, name: str) -> None:
        """Another certificate and its key take the place of the server's."""
        for kind in ("key", "pem"):
            self.write(f"server.{kind}", (FOLDER / f"{name}.{kind}").read_text())

    def config(self, *, server: str = ADMIN, tls: str = TLS, keys: str = 'token_file = "tokens"') -> str:
        return (
            '[server]\nlisten = ["127.0.0.1:0", "unix:s.sock"]\nstate_dir = "state"\nconfig_poll_s = 0.1\n'
            f"{server}\n{tls}[executor]\nthreads = 2\n" + table("half", "models/half", keys)
        )

    def start(self, config: str, *args: str) -> Server:
        self.daemon = Daemon(self.directory, config, *args)
        self.daemon.wait_ready()
        return self

    def reload(self, config: str) -> dict[str, Any]:
        self.write("config.toml", config)
        return self.daemon.admin("reload")

    @property
    def address(self) -> str:
        address: str = self.daemon.ready["addresses"][0]
        return address

    def client(self, token: str | None = "one", *, name: str = "localhost", **options: Any) -> Client:
        """One that shows its certificate, to a server that must be `name`."""
        tls = Tls(FOLDER / "ca.pem", FOLDER / "client.pem", FOLDER / "client.key", name)
        metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        return Client(self.address, tls=tls, metadata=metadata, **options)

    def until_logged(self, words: str, times: int = 1) -> None:
        self.daemon.until(lambda: self.daemon.log.count(words) >= times)


def half(client: Client, x: float = 4.0) -> list[float]:
    found: list[float] = client.predict("half", {"x": np.float32([x])}, timeout=30)["y"].tolist()
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not started yet."""
    server = Server(tmp_path)
    yield server
    if server.daemon is not None:
        server.daemon.end()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("io_threads", [0, 2])
def test_mutual_tls_and_tokens(server: Server, io_threads: int) -> None:
    directory = server.directory
    server.start(server.config(server=f"{ADMIN}io_threads = {io_threads}\nsocket_mode = 0o666"))
    with secure_channel(server.address, client="client") as channel:
        stock = Stock(channel)
        wanted = request("half", {"x": [4.0]})
        assert stock.refused(wanted)[0] == "UNAUTHENTICATED"
    with server.client() as client:
        assert half(client) == [4.0]
        assert client.status("half")
    with server.client("other") as client:
        for call in (lambda: half(client), lambda: client.status("half")):
            with pytest.raises(Unauthenticated, match="the token is none that model half takes"):
                call()
    nameless = Tls(FOLDER / "ca.pem", server_name="localhost")
    with Client(server.address, tls=nameless, retry=None) as client, pytest.raises(TlsError):
        half(client)
    with Client(f"unix:{directory}/s.sock", metadata=[("authorization", "Bearer one")]) as client:
        assert half(client) == [4.0]  # plain, but not without a token
    server.until_logged("TLS handshakes refused")
    assert mode_of(directory / "s.sock") == 0o666
    assert mode_of(directory / "grpc-admin.sock") == 0o600
    assert mode_of(directory / "state" / "admin.sock") == 0o600
    assert mode_of(directory / "state") == 0o700
    assert server.daemon.ready["admin_address"] == f"unix:{directory}/grpc-admin.sock"
    assert len(server.daemon.ready["addresses"]) == 2
    assert "PRIVATE" not in server.daemon.log
    # From the shell.
    (directory / "rows.json").write_text('{"inputs": {"x": [4.0]}}')
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "fastserve", "predict", "half", "--input", "rows.json"),
            *("--address", server.address, "--token-file", "tokens"),
            *("--tls-ca", "ca.pem", "--tls-cert", "client.pem", "--tls-key", "client.key"),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '"outputs": {"y": [4.0]}' in ran.stdout, ran.stderr


def calling(client: Client, stop: threading.Event, failures: list[BaseException]) -> None:
    while not stop.is_set():
        try:
            assert half(client) == [4.0]
        except BaseException as error:
            failures.append(error)
            return


def test_certificates_and_tokens_change_while_calls_go_on(server: Server) -> None:
    server.start(server.config())
    stop, failures = threading.Event(), list[BaseException]()
    with server.client() as before:
        assert half(before) == [4.0]
        caller = threading.Thread(target=calling, args=(before, stop, failures))
        caller.start()
        try:
            server.use("elsewhere")
            server.until_logged("credentials reloaded")
            with server.client(retry=None) as client, pytest.raises(TlsError, match="not for"):
                half(client)
            with server.client(name="elsewhere.example") as client:
                assert half(client) == [4.0]

            # What is no good is refused, and what was there goes on.
            server.use("expired")
            server.until_logged("credentials refused")
            assert "expired on 20" in server.daemon.log
            with server.client(name="elsewhere.example") as client:
                assert half(client) == [4.0]
            refused = server.reload(server.config())
            assert not refused["ok"] and "expired on" in refused["error"]

            server.use("server")
            server.until_logged("new connections get the new certificate", 2)  # by whoever has looked first
            with server.client() as client:
                assert half(client) == [4.0]

            server.write("tokens", "one\ntwo\n")
            server.until_logged("half: new tokens")
            with server.client("two") as client:
                assert half(client) == [4.0]
        finally:
            stop.set()
            caller.join()
        assert failures == []
        # By a signal, whatever the files' dates say.
        server.write("tokens", "two\n")
        server.daemon.process.send_signal(signal.SIGHUP)
        server.daemon.until(lambda: refused_by(before, Unauthenticated))


def refused_by(client: Client, error: type[RpcError]) -> bool:
    try:
        half(client)
    except error:
        return True
    return False


def test_other_files_take_effect_with_the_configuration_that_names_them(server: Server) -> None:
    config = server.config()
    server.start(config)
    pid = server.daemon.core_pid
    server.write("others", "three\n")
    for kind in ("pem", "key"):
        config = config.replace(f'"server.{kind}"', f'"elsewhere.{kind}"')
    answer = server.reload(config.replace('"tokens"', '"others"'))
    assert answer["changed"] == [
        "[server.tls]: new connections get the new certificate",
        "[[models]] half: new tokens",
        "half: token_file",
    ]
    with server.client("three", name="elsewhere.example") as client:
        assert half(client) == [4.0]
    answer = server.reload(server.config(tls="", keys=""))
    assert answer["changed"] == [
        "[[models]] half: open to all",
        "half: token_file",
        "[server.tls]: waits for a restart",
    ]
    with server.client(None, name="elsewhere.example") as client:
        assert half(client) == [4.0]
    assert server.daemon.core_pid == pid and "renewed" not in server.daemon.log


def test_a_new_core_has_the_credentials_of_now(server: Server) -> None:
    server.start(server.config())
    server.write("tokens", "two\n")
    server.until_logged("credentials reloaded")
    core = server.daemon.core_pid
    os.kill(core, signal.SIGKILL)
    server.until_logged("core is back")
    assert server.daemon.core_pid != core
    with server.client("two") as client:
        assert half(client) == [4.0]
    with server.client("one") as client, pytest.raises(Unauthenticated):
        half(client)


def test_a_core_that_is_adopted_is_told_what_has_changed_meanwhile(server: Server) -> None:
    server.start(server.config())
    core, address = server.daemon.core_pid, server.address
    with server.client() as client:
        assert half(client) == [4.0]
        server.daemon.process.kill()
        server.daemon.process.wait()
        assert half(client) == [4.0]
        server.use("elsewhere")
        server.write("tokens", "two\n")
        server.start(server.config())
        assert (server.daemon.core_pid, server.address) == (core, address)
        assert "core adopted" in server.daemon.log
        with pytest.raises(Unauthenticated):
            half(client)  # on its old connection
    with server.client("two", name="elsewhere.example") as client:
        assert half(client) == [4.0]
    # Plain from now on: another core takes its place.
    server.daemon.process.kill()
    server.daemon.process.wait()
    server.start(server.config(tls=""))
    assert server.daemon.core_pid != core
    with Client(server.address, metadata=[("authorization", "Bearer two")]) as client:
        assert half(client) == [4.0]
    server.daemon.until(lambda: not alive(core))


def reload_request(base_path: Path | str, name: str = "half") -> Any:
    message = model_management_pb2.ReloadConfigRequest()
    message.config.model_config_list.config.add(
        name=name, base_path=str(base_path), model_platform="tensorflow"
    )
    return message


def test_reloads_by_request_have_their_place_and_their_roots(server: Server) -> None:
    directory = server.directory
    install("half", directory / "models" / "other" / "1")
    install("half", directory / "elsewhere" / "secret" / "1")
    os.symlink(directory / "elsewhere" / "secret", directory / "models" / "link")
    server.start(server.config(tls="", keys=""))
    denied = grpc.StatusCode.PERMISSION_DENIED

    def answer(address: str, wanted: Any) -> tuple[grpc.StatusCode, str]:
        with grpc.insecure_channel(address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            call = stub.HandleReloadConfigRequest.future(wanted, timeout=60)
            return call.code(), call.details()

    other = reload_request(directory / "models" / "other", "other")
    for address in server.daemon.ready["addresses"]:
        code, text = answer(address, other)
        assert code is denied and "[server] admin_listen" in text
    admin = server.daemon.ready["admin_address"]
    for outside in (
        directory / "elsewhere" / "secret",
        directory / "models" / ".." / "elsewhere" / "secret",
        directory / "models" / "link",
        "file:///etc",
        f"file://{directory}/models/other",
    ):
        code, text = answer(admin, reload_request(outside, "other"))
        assert code is denied and "is not below one of the [server] reload_roots" in text
    with Client(server.address) as client:
        assert half(client) == [4.0]  # nothing has changed
        assert answer(admin, other)[0] is grpc.StatusCode.OK
        assert client.predict("other", {"x": np.float32([4.0])})["y"].tolist() == [4.0]
        server.daemon.until(lambda: refused_by(client, RpcError))
        # Roots are the configuration's of now.
        assert server.reload(
            server.config(server=ADMIN.replace('["models"]', '["/nowhere"]'), tls="", keys="")
        )["ok"]
        assert answer(admin, other)[0] is denied
        server.daemon.until(lambda: not refused_by(client, RpcError))
        # What the file has may be named again, wherever it lies.
        assert answer(admin, reload_request(directory / "models" / "half"))[0] is grpc.StatusCode.OK


def test_no_reloads_by_request_at_all(server: Server) -> None:
    server.start(server.config(server="reload_rpc = false", tls="", keys=""))
    for address in server.daemon.ready["addresses"]:
        with grpc.insecure_channel(address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            call = stub.HandleReloadConfigRequest.future(reload_request("/tmp"), timeout=60)
            assert call.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "[server] reload_rpc = false" in call.details()


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda server: server.use("expired"), 'server.pem": expired on 202'),
        (lambda server: (server.directory / "server.key").unlink(), 'server.key": no such file'),
        (lambda server: server.write("server.key", "nothing"), 'server.key": the private key cannot be read'),
        (lambda server: server.write("tokens", ""), 'tokens": has no token'),
    ],
)
def test_what_is_no_good_ends_the_start(
    server: Server, command: str, spoil: Callable[[Server], object], says: str
) -> None:
    spoil(server)
    (server.directory / "config.toml").write_text(server.config())
    ran = subprocess.run(
        [sys.executable, "-m", "fastserve", command, "config.toml"],
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert says in ran.stderr.replace("\n", "")
    assert not (server.directory / "s.sock").exists()


def test_a_token_is_for_its_model(server: Server) -> None:
    install("half", server.directory / "models" / "other" / "1")
    server.write("others", "two\n")
    server.start(server.config(tls="") + table("other", "models/other", 'token_file = "others"'))
    with Client(server.address, metadata=[("authorization", "Bearer two")]) as client:
        assert client.predict("other", {"x": np.float32([4.0])})["y"].tolist() == [4.0]
        with pytest.raises(PermissionDenied, match="the token is not for model half"):
            half(client)
