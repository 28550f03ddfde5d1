"""The daemon with all the plug-ins of examples/plugins: what no file of FastServe knows is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from daemon_process import Daemon
from example_plugins import installed_plugins
from predict_client import request
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

CONFIG = """
[server]
listen = ["127.0.0.1:0"]
state_dir = "state"

[executor]
policy = "priority"

[loading]
poll_s = 0.1

[[models]]
name = "users"
base_path = "users.json"
source = "manifest"
platform = "lookup"

[models.versions]
transition = "spare"

[[models]]
name = "items"
base_path = "items"
platform = "lookup"
"""
KEYS = np.array([1, 2, 3])


def table(directory: Path, value: float) -> None:
    """A version whose every vector has `value`, and every unknown key -1."""
    from fastserve_lookup import write_table

    directory.mkdir(parents=True)
    write_table(directory / "table.lookup", KEYS, np.full((3, 2), value), [-1, -1])


def release(manifest: Path, *versions: int) -> None:
    entries = [{"version": version, "path": f"tables/{version}"} for version in versions]
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps({"versions": entries}))
    part.rename(manifest)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.syspath_prepend(installed_plugins())
    monkeypatch.setenv("PYTHONPATH", str(installed_plugins()), prepend=":")
    for version in (1, 2, 3):
        table(tmp_path / "tables" / str(version), float(version))
    (tmp_path / "tables" / "4").mkdir()
    (tmp_path / "tables" / "4" / "table.lookup").write_text("no table")
    # items:1 is the same file as users:1.
    (tmp_path / "items" / "1").mkdir(parents=True)
    (tmp_path / "items" / "1" / "table.lookup").symlink_to(tmp_path / "tables" / "1" / "table.lookup")
    release(tmp_path / "users.json", 1)
    daemon = Daemon(tmp_path, CONFIG)
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(self, model: str, version: int | None = None) -> tuple[int, list[Any]]:
        """The version that answered, and the vectors of a key that is there and one that is not."""
        asked: predict_pb2.PredictRequest = request(model, version=version)
        asked.inputs["keys"].CopyFrom(tf.make_tensor_proto(np.array([2, 9], np.int64)))
        reply = self._stub.Predict(asked, timeout=30)
        return reply.model_spec.version.value, tf.make_ndarray(reply.outputs["vectors"]).tolist()

    def answers(self, model: str, version: int) -> bool:
        """Whether that very version is there."""
        try:
            return self.ask(model, version) == (version, [[version] * 2, [-1, -1]])
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            return False


def core_maps(daemon: Daemon) -> list[str]:
    """The tables that are mapped into the core."""
    lines = Path(f"/proc/{daemon.ready['core_pid']}/maps").read_text().splitlines()
    return sorted(line.split("/")[-2] for line in lines if line.endswith("/table.lookup"))


def test_tables_are_served_switched_kept_and_taken_back(daemon: Daemon) -> None:
    manifest = daemon.directory / "users.json"
    with daemon.channel() as channel:
        client = Client(channel)
        assert client.ask("users") == (1, [[1, 1], [-1, -1]])
        assert client.ask("items") == (1, [[1, 1], [-1, -1]])
        assert core_maps(daemon) == ["1"]

        release(manifest, 2)
        daemon.until(lambda: client.ask("users")[0] == 2)
        assert client.answers("users", 1), "the version before is a spare"

        release(manifest, 3)
        daemon.until(lambda: client.ask("users")[0] == 3)
        assert client.answers("users", 2)
        assert not client.answers("users", 1)
        # items still has the first.
        assert core_maps(daemon) == ["1", "2", "3"]

        # Back: the spare serves, without being loaded again, and the newer one goes.
        release(manifest, 2)
        daemon.until(lambda: client.ask("users")[0] == 2)
        daemon.until(lambda: core_maps(daemon) == ["1", "2"])
        assert not client.answers("users", 3)
        assert daemon.log.count("published servable=users:2") == 1

        # What cannot be loaded takes nothing away, and says why.
        release(manifest, 4)
        daemon.until(lambda: "does not begin with" in daemon.log)
        assert client.ask("users") == (2, [[2, 2], [-1, -1]])
        assert client.ask("items") == (1, [[1, 1], [-1, -1]])


def test_a_plug_in_that_is_not_there_ends_the_start_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed_plugins()), prepend=":")
    daemon = Daemon(tmp_path, CONFIG.replace('"lookup"', '"look-up"').replace('"priority"', '"urgency"'))
    try:
        assert daemon.process.wait(60) == 2
        assert '[[models]] users, platform = "look-up": no such plug-in in fastserve.loaders' in daemon.log
        assert "there are lookup, tensorflow" in daemon.log
        assert '[executor] policy = "urgency": no such plug-in in fastserve.batchers' in daemon.log
        assert "there are fair, priority" in daemon.log
    finally:
        daemon.end()
