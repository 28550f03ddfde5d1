"""The images' entry point with the daemon behind it, without an image: `make image-test` has that.

How it is called, what the health check says, and that SIGTERM under load, over gRPC and REST, loses nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from drain_load import drained_under_load, lost
from exported_models import exported_models
from predict_client import request
from tensorflow_serving.apis import prediction_service_pb2_grpc

ENTRY = Path(__file__).resolve().parents[2] / "deploy" / "image" / "fastserve-image"


class Entry:
    """The entry point, with the image's variables, on ports of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        programs = root / "bin"
        programs.mkdir()
        for name, command in (("fastserve", ""), ("tensorflow_model_server", " tfserving")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastserve{command} "$@"\n')
            program.chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(root),
            "MODEL_BASE_PATH": str(exported_models()),
            "MODEL_NAME": "half_plus_two",
        }
        self.grpc, self.rest = _free_port(), _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *args: str) -> None:
        with open(self.root / "log", "w") as log:
            self.process = subprocess.Popen(
                [ENTRY, *args], cwd=self.root, env=self.env, stdout=log, stderr=log
            )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ENTRY, *args],
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def until(self, look: Callable[[], bool]) -> None:
        assert self.process is not None
        end = time.monotonic() + 60
        while not look():
            assert time.monotonic() < end and self.process.poll() is None, self.log
            time.sleep(0.05)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def predict(self, model: str) -> list[float]:
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            reply = stub.Predict(request(model, {"x": [1.0, 5.0]}), timeout=60, wait_for_ready=True)
        return list(reply.outputs["y"].float_val)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def entry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    made = Entry(tmp_path_factory.mktemp("e"))
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_tensorflow_servings_conventions(entry: Entry) -> None:
    none = entry.run("health")
    assert none.returncode == 1 and "monitor.sock" in none.stderr
    entry.start(f"--port={entry.grpc}", f"--rest_api_port={entry.rest}")
    assert entry.predict("half_plus_two") == [2.5, 4.5]
    # It is process 1's child in an image: what it has started is what gets the signals.
    assert entry.process is not None
    assert b"tfserving" in Path(f"/proc/{entry.process.pid}/cmdline").read_bytes()
    entry.until(lambda: "Exporting HTTP/REST API at" in entry.log)
    assert entry.run("health").returncode == 0
    status, results = drained_under_load(
        "half_plus_two", ("127.0.0.1", entry.grpc), ("127.0.0.1", entry.rest), entry.stop
    )
    assert {name: lost(result) for name, result in results.items()} == {"grpc": [], "rest": []}
    assert status == 0 and "drained=True" in entry.log
    assert entry.run("health").returncode == 1


def test_a_configuration_goes_first(entry: Entry) -> None:
    config = entry.root / "some.toml"
    config.write_text(
        f'[server]\nlisten = ["127.0.0.1:{entry.grpc}"]\nlame_duck_s = 1.0\nstate_dir = "other"\n'
        f'[gateway]\nlisten = ["127.0.0.1:{entry.rest}"]\n'
        f'[[models]]\nname = "half"\nbase_path = "{exported_models()}/half_plus_two"\n'
    )
    entry.env["FASTSERVE_CONFIG"] = str(config)
    entry.start("--log-format=json")
    assert entry.predict("half") == [2.5, 4.5]
    entry.until(lambda: '"event": "ready"' in entry.log)
    assert entry.run("health").returncode == 0
    status, results = drained_under_load(
        "half", ("127.0.0.1", entry.grpc), ("127.0.0.1", entry.rest), entry.stop
    )
    assert {name: lost(result) for name, result in results.items()} == {"grpc": [], "rest": []}
    assert status == 0


def test_the_models_of_a_file_need_no_name(entry: Entry) -> None:
    (entry.root / "models.config").write_text(
        f'model_config_list {{ config {{ name: "a" base_path: "{exported_models()}/half_plus_two" '
        'model_platform: "tensorflow" } }'
    )
    del entry.env["MODEL_NAME"], entry.env["MODEL_BASE_PATH"]
    entry.start("--model_config_file=models.config", f"--port={entry.grpc}", f"--rest_api_port={entry.rest}")
    assert entry.predict("a") == [2.5, 4.5]
    assert "has no effect" not in entry.log
    assert entry.stop() == 0


def test_other_commands_run(entry: Entry) -> None:
    assert entry.run("fastserve", "--version").stdout.startswith("fastserve, version ")
    assert entry.run("sh", "-c", "exit 3").returncode == 3
