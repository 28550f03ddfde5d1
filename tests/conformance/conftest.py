"""The models of the conformance tests, and daemons that serve them.

One daemon with default settings serves all tests that only ask; `serve` starts others for a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from daemon_process import Daemon
from exported_models import EXPORTER as IDENTITY
from exported_models import exported_models

pytest.register_assert_rewrite("conformance.case")

EXPORTER = Path(__file__).parent / "export_models.py"

# By name, with keys of their own; versions 1 and 2 of `versions` are served side by side.
MODELS = {
    "half_plus_two": "",
    "versions": 'labels = { stable = 1, canary = 2 }\nversions = { policy = "all" }',
    "many": "",
    "classes": "",
    "vocabulary": "",
    "defaults": "",
    "keras": "",
    "identity": "",
}
Serve = Callable[..., Daemon]


@pytest.fixture(scope="session")
def models() -> Path:
    """The directory with the models."""
    return exported_models(EXPORTER)


def _configuration(models: Path, tables: dict[str, str], server: str = "", more: str = "") -> str:
    text = f'[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "state"\n{server}\n[executor]\nthreads = 2\n'
    for name, keys in tables.items():
        root = exported_models(IDENTITY) if name == "identity" else models
        text += f'[[models]]\nname = "{name}"\nbase_path = "{root / name}"\n{keys}\n'
    return text + more


@pytest.fixture(scope="session")
def daemon(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With all models and with settings as they are when nobody says anything, REST beside."""
    rest = '[gateway]\nlisten = ["127.0.0.1:0"]'
    daemon = Daemon(tmp_path_factory.mktemp("conformance"), _configuration(models, MODELS, rest))
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture(scope="session")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def serve(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts daemons for one module: serve({"many": "keys of the model"}, server="keys of [server]"). `more`:
    further tables."""
    daemons: list[Daemon] = []

    def serve(tables: dict[str, str], server: str = "", more: str = "") -> Daemon:
        text = _configuration(models, tables, server, more)
        daemons.append(Daemon(tmp_path_factory.mktemp("conformance"), text))
        return daemons[-1].wait_ready()

    yield serve
    for daemon in daemons:
        daemon.end()
