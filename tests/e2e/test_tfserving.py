"""tensorflow_model_server as users start it, with TensorFlow Serving's files, called by the stock client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from exported_models import exported_models
from predict_client import request
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

LABELLED = """
  config {{
    name: "labelled" base_path: "{root}/labelled" model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 3 }}
    version_labels {{ key: "canary" value: 12 }}
  }}
"""
PLAIN = '  config {{ name: "{name}" base_path: "{root}/plain" model_platform: "tensorflow" }}\n'
BATCHING = "max_batch_size { value: 4 }\nbatch_timeout_micros { value: 0 }\nnum_batch_threads { value: 2 }\n"


class ModelServer:
    """The program, in a directory with models and files."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.state = root / "state" / "fastserve" / f"tfserving-{self.port}"
        with open(root / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastserve", "tfserving", f"--port={self.port}", *flags],
                cwd=root,
                env={**os.environ, "XDG_STATE_HOME": str(root / "state")},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def wait_ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log
        return line

    def until(self, look: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while not (found := look()):
            assert time.monotonic() < end and self.process.poll() is None, self.log
            time.sleep(0.02)
        return found

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            if self.process.poll() is None:
                self.process.send_signal(number)
                time.sleep(0.1)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's, but short: a unix socket's path has little room."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ModelServer]]:
    servers: list[ModelServer] = []
    version = exported_models() / "half_plus_two" / "1"
    for name in ("labelled/3", "labelled/12", "plain/1"):
        shutil.copytree(version, tmp_path / name)

    def start(*flags: str) -> ModelServer:
        servers.append(ModelServer(tmp_path, *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(self, model: str, rows: list[float], **spec: Any) -> tuple[list[float], int]:
        """The answer, and of which version."""
        reply = self.prediction.Predict(request(model, {"x": rows}, **spec), timeout=60, wait_for_ready=True)
        (output,) = reply.outputs.values()
        return list(output.float_val), reply.model_spec.version.value

    def refusal(self, model: str, rows: list[float], **spec: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.predict(model, rows, **spec)
        return caught.value.code().name, caught.value.details()


def write(path: Path, *configs: str) -> None:
    """Whoever looks sees all of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text("model_config_list {\n" + "".join(configs) + "}\n")
    fresh.replace(path)


def test_it_takes_the_place_of_tensorflow_serving(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    labelled = LABELLED.format(root=tmp_path)
    plain = PLAIN.format(name="plain", root=tmp_path)
    write(config, labelled, plain)
    (tmp_path / "batching.txt").write_text(BATCHING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rest = probe.getsockname()[1]
    server = start(
        "--model_config_file=models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--enable_batching=true",
        "--batching_parameters_file=batching.txt",
        "--grpc_socket_path=s.sock",
        f"--rest_api_port={rest}",
    )
    line = server.wait_ready()
    assert line.startswith("fastserve ready: ") and f":{server.port}, unix:{tmp_path}/s.sock, http" in line
    assert f", http://[::]:{rest} in " in line or f", http://0.0.0.0:{rest} in " in line
    body = json.dumps({"instances": [5.0]}).encode()
    with urlopen(f"http://127.0.0.1:{rest}/v1/models/plain:predict", body, 60) as answer:
        assert json.load(answer) == {"predictions": [4.5]}
    server.until(lambda: f":{server.port} ...\n" in server.log)
    assert "Running gRPC ModelServer at " in server.log

    for address in (f"127.0.0.1:{server.port}", f"unix:{tmp_path}/s.sock"):
        with grpc.insecure_channel(address) as channel:
            client = Client(channel)
            assert client.predict("labelled", [1.0, 2.0], label="stable") == ([2.5, 3.0], 3)
            assert client.predict("labelled", [1.0], label="canary") == ([2.5], 12)
            assert client.predict("labelled", [1.0]) == ([2.5], 12)
            assert client.predict("plain", [5.0, 6.0, 7.0, 8.0]) == ([4.5, 5.0, 5.5, 6.0], 1)
            # The file's limits are refused, as there.
            assert client.refusal("plain", [0.0] * 5) == (
                "INVALID_ARGUMENT",
                "Task size 5 is larger than maximum input batch size 4",
            )

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        # A file that is wrong changes nothing.
        config.write_text("model_config_list { config { nam: 'x' } }")
        server.until(lambda: "configuration refused" in server.log)
        assert "ModelConfig has no field nam; did you mean name?" in server.log
        assert client.predict("plain", [1.0]) == ([2.5], 1)
        # One that is right does: a model is added, a label moves, another goes away.
        moved = labelled.replace('key: "stable" value: 3', 'key: "stable" value: 12')
        write(config, moved, PLAIN.format(name="added", root=tmp_path))
        assert client_sees(server, client, "added", [2.0]) == ([3.0], 1)
        server.until(lambda: client.predict("labelled", [1.0], label="stable") == ([2.5], 12))
        server.until(lambda: "NOT_FOUND" in status_of(client, "plain"))
        assert client.refusal("added", [0.0] * 5)[0] == "INVALID_ARGUMENT"
        # What a client adds is served by the same rules.
        reload = model_management_pb2.ReloadConfigRequest()
        new = reload.config.model_config_list.config.add(
            name="asked", base_path=f"{tmp_path}/plain", model_platform="tensorflow"
        )
        assert client.models.HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
        assert client.predict(new.name, [4.0]) == ([4.0], 1)
        assert client.refusal(new.name, [0.0] * 5)[0] == "INVALID_ARGUMENT"

    assert (server.state / "admin.sock").exists()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def client_sees(server: ModelServer, client: Client, model: str, rows: list[float]) -> Any:
    def look() -> Any:
        try:
            return client.predict(model, rows)
        except grpc.RpcError as error:
            assert error.code().name == "NOT_FOUND"
            return None

    return server.until(look)


def status_of(client: Client, model: str) -> str:
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = model
    try:
        answer = client.models.GetModelStatus(asked, timeout=60)
    except grpc.RpcError as error:
        name: str = error.code().name
        return name
    states = {status.state for status in answer.model_version_status}
    return "NOT_FOUND" if states == {50} else "there"


def test_one_model_without_batching_is_never_refused_for_its_size(
    start: Callable[..., ModelServer], tmp_path: Path
) -> None:
    (tmp_path / "plain" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    server = start(f"--model_base_path={tmp_path}/plain", "--model_name=half", "--grpc_max_threads=8")
    server.wait_ready()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        rows = [float(row) for row in range(3000)]
        assert Client(channel).predict("half", rows)[0] == [row / 2 + 2 for row in rows]


def test_a_version_may_bring_its_batching_along(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    (tmp_path / "plain" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    shutil.copytree(tmp_path / "plain" / "1", tmp_path / "plain" / "2")
    (tmp_path / "plain" / "2" / "batching_params.pbtxt").unlink()
    config = PLAIN.format(name="half", root=tmp_path).replace("}\n", " model_version_policy { all {} } }\n")
    write(tmp_path / "models.config", config)
    server = start(
        "--model_config_file=models.config", "--enable_batching", "--enable_per_model_batching_parameters"
    )
    server.wait_ready()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        assert client.refusal("half", [0.0] * 3, version=1) == (
            "INVALID_ARGUMENT",
            "Task size 3 is larger than maximum input batch size 2",
        )
        assert client.predict("half", [0.0] * 3, version=2) == ([2.0] * 3, 2)


def test_it_waits_for_its_model(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    server = start(f"--model_base_path={tmp_path}/late")
    server.until(lambda: "source problem" in server.log)
    shutil.copytree(tmp_path / "plain", tmp_path / "late.new")
    (tmp_path / "late.new").rename(tmp_path / "late")
    assert "default:1" in server.wait_ready()


def test_it_starts_with_an_empty_list_and_is_told_later(
    start: Callable[..., ModelServer], tmp_path: Path
) -> None:
    write(tmp_path / "models.config")
    server = start("--model_config_file=models.config")
    server.wait_ready()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = Client(channel)
        reload = model_management_pb2.ReloadConfigRequest()
        reload.config.model_config_list.config.add(
            name="half", base_path=f"{tmp_path}/plain", model_platform="tensorflow"
        )
        assert client.models.HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
        assert client.predict("half", [1.0]) == ([2.5], 1)


def test_what_is_imported_serves_the_same(start: Callable[..., ModelServer], tmp_path: Path) -> None:
    write(tmp_path / "models.config", LABELLED.format(root=tmp_path))
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "fastserve",
            "import",
            "--model_config_file=models.config",
            "--port=0",
            "--grpc_socket_path=s.sock",
            "-o",
            "config.toml",
        ],
        cwd=tmp_path,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        timeout=60,
        check=False,
    )
    assert made.returncode == 0
    checked = subprocess.run(
        [sys.executable, "-m", "fastserve", "check", "config.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    server = subprocess.Popen(
        [sys.executable, "-m", "fastserve", "serve", "config.toml", "--ready-file", "ready.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None and server.stdout.readline().startswith("fastserve ready: ")
        (address,) = json.loads((tmp_path / "ready.json").read_text())["addresses"]
        with grpc.insecure_channel(address) as channel:
            assert Client(channel).predict("labelled", [1.0], label="stable") == ([2.5], 3)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        if server.stdout is not None:
            server.stdout.close()
