"""Certificates and tokens: what their files may hold, what is said of those that are no good, and changes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from certificate_files import FOLDER

from fastserve.config import Config
from fastserve.config_read import parse_config
from fastserve.control import credentials
from fastserve.control.credential_watch import CredentialWatch
from fastserve.control.credentials import Credentials, files_of, read_credentials
from fastserve.errors import ConfigError, CoreError, CoreLost
from fastserve.log import Log

TLS = '[server.tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
MUTUAL = TLS + 'client_ca = "ca.pem"\n'


def model(name: str = "ranker", token_file: str = "tokens") -> str:
    line = f'token_file = "{token_file}"\n' if token_file else ""
    return f'[[models]]\nname = "{name}"\nbase_path = "/models/{name}"\n{line}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the certificates, and a file of tokens."""
    for file in FOLDER.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "tokens").write_text("one\n")
    return tmp_path


def config_in(folder: Path, text: str) -> Config:
    return parse_config(text, str(folder / "config.toml"))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_credentials(config_in(folder, text))
    return caught.value.problems


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


# ---- TLS --------------------------------------------------------------------------------------------


def test_nothing_configured_is_nothing_read(folder: Path) -> None:
    config = config_in(folder, model(token_file=""))
    assert read_credentials(config) == Credentials(None, {})
    assert files_of(config) == []


def test_certificates_are_read(folder: Path) -> None:
    config = config_in(folder, MUTUAL + model())
    found = read_credentials(config)
    assert found.tls is not None
    assert found.tls.certificate == (folder / "server.pem").read_text()
    assert found.tls.client_ca == (folder / "ca.pem").read_text()
    assert found.tls.until > datetime(2100, 1, 1, tzinfo=UTC)
    command = found.command()
    assert command["tls"]["key"] == (folder / "server.key").read_text()
    assert command["tokens"] == {"ranker": (digest("one"),)}
    names = ("server.pem", "server.key", "ca.pem", "tokens")
    assert files_of(config) == [str(folder / name) for name in names]


def replaced(name: str, source: str | bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if source is None:
            (folder / name).unlink()
        elif isinstance(source, bytes):
            (folder / name).write_bytes(source)
        else:
            shutil.copy(folder / source, folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replaced("server.pem", None), ['certificate = "{}/server.pem": no such file']),
        (replaced("server.key", None), ['key = "{}/server.key": no such file']),
        (replaced("ca.pem", None), ['client_ca = "{}/ca.pem": no such file']),
        (replaced("server.pem", b"\xff\xfe DER"), ['certificate = "{}/server.pem": the certificate cannot']),
        (replaced("ca.pem", b""), ['client_ca = "{}/ca.pem": the CA certificates cannot be read']),
        (replaced("server.key", b"secret"), ['key = "{}/server.key": the private key cannot be read', "PEM"]),
        (
            replaced("server.key", "client.key"),
            ['key = "{}/server.key": the private key does not belong to the certificate', "openssl x509"],
        ),
        (
            replaced("server.pem", "client.pem"),
            ["the private key does not belong to the certificate: {}/server.pem has another public key"],
        ),
        (replaced("server.pem", bytes(2 << 20)), ["has more than 1 MiB: is it the right file?"]),
    ],
)
def test_files_that_are_no_good_are_named(
    folder: Path, change: Callable[[Path], None], says: list[str]
) -> None:
    change(folder)
    (problem,) = problems(folder, MUTUAL + model())
    assert problem.startswith("[server.tls] ")
    for words in says:
        assert words.format(folder) in problem
    assert "secret" not in problem and "PRIVATE" not in problem


def test_a_directory_and_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "server.pem").unlink()
    (folder / "server.pem").mkdir()
    (problem,) = problems(folder, TLS + model())
    assert problem.endswith('server.pem": cannot be read: Is a directory')

    def denied(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(credentials, "open", denied, raising=False)
    assert len(problems(folder, MUTUAL + model())) == 4
    assert all(
        f"user {os.geteuid()}, who runs fastserve, may not" in p for p in problems(folder, MUTUAL + model())
    )


def test_an_expired_certificate_says_since_when(folder: Path) -> None:
    shutil.copy(folder / "expired.pem", folder / "server.pem")
    shutil.copy(folder / "expired.key", folder / "server.key")
    (problem,) = problems(folder, TLS + model())
    assert 'certificate = "' in problem
    assert "expired on 2021-01-01 00:00:0" in problem.replace("2020-12-31 23:59:59", "2021-01-01 00:00:00")
    assert "put a new one there" in problem


def test_a_certificate_that_is_not_valid_yet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Early:
        def __init__(self, *pem: bytes | None) -> None:
            pass

        def validity(self) -> tuple[int, int]:
            return -3600, 86400

    monkeypatch.setattr(credentials, "ServerTls", Early)
    with pytest.raises(ConfigError) as caught:
        read_credentials(config_in(folder, TLS + model()), lambda: datetime(2030, 5, 1, tzinfo=UTC))
    assert (
        "is not valid before 2030-05-01 01:00:00 UTC: wait until then, or correct this machine's clock"
        in str(caught.value)
    )


# ---- tokens -----------------------------------------------------------------------------------------


def test_token_files(folder: Path) -> None:
    hashed = digest("hashed")
    (folder / "tokens").write_text(
        f"# of the ranker\n\none\n  two==  \r\none\nsha256:{hashed.upper()}\na-b.c_d~e+f/g\n"
    )
    found = read_credentials(config_in(folder, model()))
    assert found.tokens == {
        "ranker": (digest("one"), digest("two=="), hashed, digest("a-b.c_d~e+f/g")),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no token: expected one a line, or remove token_file to let everybody in"),
        ("# none yet\n\n", "has no token"),
        ("good\nsecret secret\n", "line 2: no bearer token: it has letters, digits and -._~+/ only"),
        ("=secret\n", "line 1: no bearer token"),
        ("secr\u00e9t\n", "line 1: no bearer token"),
        ("secret" * 1000 + "\n", "at most 4096 characters"),
        ("sha256:secret\n", "line 1: expected 64 hexadecimal digits after sha256:"),
        ("".join(f"secret{n}\n" for n in range(1001)), "has 1001 tokens, expected at most 1000"),
    ],
)
def test_tokens_that_are_none(folder: Path, text: str, says: str) -> None:
    (folder / "tokens").write_text(text)
    (problem,) = problems(folder, model())
    assert problem.startswith(f'[[models]] ranker, token_file = "{folder}/tokens"')
    assert says in problem
    assert "secret" not in problem


def test_all_problems_are_found_at_once(folder: Path) -> None:
    (folder / "server.key").unlink()
    (folder / "ca.pem").unlink()
    found = problems(folder, MUTUAL + model("a", "none") + model("b", "tokens") + model("c", "missing"))
    assert len(found) == 4


# ---- while the daemon runs ----------------------------------------------------------------------------


class Core:
    """The core of the moment: takes commands, or answers with an error."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []
        self.error: Exception | None = None

    async def call(self, op: str, **command: Any) -> None:
        assert op == "credentials"
        if self.error is not None:
            raise self.error
        self.commands.append(command)


def watch_of(folder: Path, text: str, core: Core) -> tuple[CredentialWatch, Config]:
    config = config_in(folder, text)
    log = Log(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    return CredentialWatch(config, core.call, log), config


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


async def test_a_new_core_is_told(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, MUTUAL + model(), core)
    await watch.prepare(core)  # type: ignore[arg-type]
    assert core.commands[0]["tls"]["certificate"] == (folder / "server.pem").read_text()
    assert core.commands[0]["tokens"] == {"ranker": (digest("one"),)}
    assert "certificate" in log_of(folder) and "must show one" in log_of(folder)
    assert "PRIVATE" not in log_of(folder)


async def test_without_credentials_a_new_core_is_told_nothing_and_an_adopted_one_that(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, model(token_file=""), core)
    await watch.prepare(core)  # type: ignore[arg-type]
    assert core.commands == []
    await watch.prepare(core, adopted=True)  # type: ignore[arg-type]
    assert core.commands == [{"tls": None, "tokens": {}}]


async def test_a_model_that_leaves_asks_for_tokens_until_the_next_change(folder: Path) -> None:
    """It is served until its calls are answered: it must not be open to all for so long."""
    core = Core()
    watch, _config = watch_of(folder, model() + model("other"), core)
    without = config_in(folder, model("other"))
    assert await watch.take(without) == []
    await watch.tell()
    assert core.commands[-1]["tokens"] == {"ranker": (digest("one"),), "other": (digest("one"),)}
    assert await watch.take(without) == ["[[models]] ranker: open to all"]
    assert core.commands[-1]["tokens"] == {"other": (digest("one"),)}


async def test_a_model_that_stays_without_its_tokens_is_open(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, model(), core)
    assert await watch.take(config_in(folder, model(token_file=""))) == ["[[models]] ranker: open to all"]
    assert core.commands[-1]["tokens"] == {}


async def test_changes_are_taken_and_told(folder: Path) -> None:
    core = Core()
    watch, config = watch_of(folder, TLS + model(), core)
    assert await watch.take(config) == []
    assert core.commands == []
    shutil.copy(folder / "elsewhere.pem", folder / "server.pem")
    shutil.copy(folder / "elsewhere.key", folder / "server.key")
    (folder / "tokens").write_text("two\n")
    changed = await watch.take(config)
    assert changed == [
        "[server.tls]: new connections get the new certificate",
        "[[models]] ranker: new tokens",
    ]
    assert core.commands[-1]["tls"]["certificate"] == (folder / "elsewhere.pem").read_text()
    assert core.commands[-1]["tokens"] == {"ranker": (digest("two"),)}
    opened = config_in(folder, TLS + model(token_file="") + model("other"))
    assert await watch.take(opened) == ["[[models]] other: new tokens", "[[models]] ranker: open to all"]


async def test_what_is_no_good_changes_nothing(folder: Path) -> None:
    core = Core()
    watch, config = watch_of(folder, TLS + model(), core)
    (folder / "server.key").write_text("broken")
    (folder / "tokens").write_text("two\n")
    with pytest.raises(ConfigError, match="the private key cannot be read"):
        await watch.take(config)
    assert core.commands == []
    await watch.prepare(core)  # type: ignore[arg-type]
    assert core.commands[-1]["tokens"] == {"ranker": (digest("one"),)}
    assert "PRIVATE KEY" in core.commands[-1]["tls"]["key"]


async def test_a_core_that_refuses_keeps_the_old_ones_and_a_lost_one_is_told_later(folder: Path) -> None:
    core = Core()
    watch, config = watch_of(folder, model(), core)
    (folder / "tokens").write_text("two\n")
    core.error = CoreError("INVALID_ARGUMENT", "no")
    with pytest.raises(ConfigError, match="the core refuses the new credentials: no"):
        await watch.take(config)
    core.error = CoreLost("the core has ended")
    assert await watch.take(config) == ["[[models]] ranker: new tokens"]
    core.error = None
    await watch.prepare(core)  # type: ignore[arg-type]
    assert core.commands == [{"tls": None, "tokens": {"ranker": (digest("two"),)}}]


async def test_a_take_can_be_taken_back(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, model(), core)
    (folder / "tokens").unlink()
    (folder / "others").write_text("two\n")
    await watch.take(config_in(folder, model("ranker", "others")))
    await watch.give_back()
    assert [command["tokens"] for command in core.commands] == [
        {"ranker": (digest("two"),)},
        {"ranker": (digest("one"),)},
    ]


async def test_tls_that_is_taken_out_of_the_file_stays_until_a_restart(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, TLS + model(), core)
    assert await watch.take(config_in(folder, model())) == []
    await watch.prepare(core)  # type: ignore[arg-type]
    assert core.commands[-1]["tls"] is not None


async def test_what_changes_before_the_first_look_is_found(folder: Path) -> None:
    core = Core()
    watch, _config = watch_of(folder, model(), core)
    (folder / "tokens").write_text("another\n")
    running = asyncio.create_task(watch.run(0.001))
    async with asyncio.timeout(10):
        while not core.commands:  # noqa: ASYNC110 - told by another task
            await asyncio.sleep(0)
    assert core.commands[-1]["tokens"] == {"ranker": (digest("another"),)}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_files_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change counts when it is at rest, what is no good is said once, and a later good one is taken."""
    core = Core()
    watch, _config = watch_of(folder, TLS + model(), core)
    looks = asyncio.Queue[Callable[[], None]]()

    async def sleep(seconds: float) -> None:
        assert seconds == 1.0
        (await looks.get())()
        looks.task_done()

    monkeypatch.setattr("fastserve.control.credential_watch.asyncio.sleep", sleep)
    running = asyncio.create_task(watch.run(1.0))

    async def look(change: Callable[[], None] = lambda: None) -> None:
        """One look, after a change; returns when it is over, by the time of the next."""
        looks.put_nowait(change)
        looks.put_nowait(lambda: None)
        async with asyncio.timeout(10):
            await looks.join()

    def copy(name: str) -> Callable[[], None]:
        def change() -> None:
            shutil.copy(folder / f"elsewhere.{name}", folder / f"server.{name}")

        return change

    await look()
    assert core.commands == []
    await look(copy("pem"))
    assert core.commands == [] and log_of(folder).count("credentials refused") <= 1
    await look()
    assert log_of(folder).count("credentials refused") == 1
    await look()
    assert log_of(folder).count("credentials refused") == 1
    await look(copy("key"))
    await look()
    assert len(core.commands) == 1
    assert core.commands[0]["tls"]["key"] == (folder / "elsewhere.key").read_text()
    assert "credentials reloaded" in log_of(folder)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
