"""The image built from this checkout and run as users run it: `make image-test`.

Read-only, without privileges, with TensorFlow Serving's conventions or a config.toml, until SIGTERM.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import grpc
import pytest
from drain_load import drained_under_load, lost
from image_build import Image
from image_container import Container
from predict_client import request
from tensorflow_serving.apis import prediction_service_pb2_grpc

Run = Callable[..., Container]
GRPC, REST = ("127.0.0.1", 8500), ("127.0.0.1", 8501)
CONFIG = """
[server]
listen = ["0.0.0.0:8500"]
state_dir = "/var/lib/fastserve"
lame_duck_s = 2.0

[gateway]
listen = ["0.0.0.0:8501"]

[[models]]
name = "half"
base_path = "/models/half_plus_two"
"""


def over_grpc(model: str) -> list[float]:
    with grpc.insecure_channel(f"{GRPC[0]}:{GRPC[1]}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reply = stub.Predict(request(model, {"x": [1.0, 2.0, 5.0]}), timeout=60, wait_for_ready=True)
    return list(reply.outputs["y"].float_val)


def over_rest(path: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(f"http://{REST[0]}:{REST[1]}{path}", data, 60) as answer:
        text: str = answer.read().decode()
    return text


def ready(container: Container) -> None:
    def look() -> bool:
        try:
            return json.loads(over_rest("/readyz"))["ok"] is True
        except (URLError, ConnectionError):
            return False

    container.until(look)


def test_what_the_image_says_of_itself(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {"8500/tcp", "8501/tcp"}
    assert config["Entrypoint"] == ["tini", "--", "fastserve-image"]
    assert config["Healthcheck"]["Test"] == ["CMD", "fastserve-image", "health"]


def test_only_what_is_needed_is_there(image: Image) -> None:
    present = {path.name for path in (image.root / "usr/bin").iterdir()}
    assert not present & {"gcc", "cython", "pip3", "curl"}
    (site,) = (image.root / "opt/fastserve/lib").glob("python3*/site-packages")
    assert not (site / "pip").exists() and not (site / "tensorflow/python").exists()
    sizes = [
        path.lstat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert sum(sizes) < 1100 << 20
    # Who runs it may change nothing of it.
    programs = [
        path for top in ("opt", "usr") for path in (image.root / top).rglob("*") if not path.is_symlink()
    ]
    assert not [path for path in programs if path.stat().st_uid == 10001 or path.stat().st_mode & 0o002]


def test_tensorflow_servings_command_line(run: Run, models: Path) -> None:
    volume = {"/models/ranker": models / "half_plus_two"}
    container = run(env={"MODEL_NAME": "ranker"}, volumes=volume)
    assert over_grpc("ranker") == [2.5, 3.0, 4.5]
    ready(container)
    answer = json.loads(over_rest("/v1/models/ranker:predict", {"instances": [1.0, 2.0, 5.0]}))
    assert answer == {"predictions": [2.5, 3.0, 4.5]}
    assert ':tensorflow:serving:request_count{model_name="ranker"' in over_rest(
        "/monitoring/prometheus/metrics"
    )
    assert container.stop() == 0
    assert "drained=True" in container.log


def test_a_model_config_file_and_other_flags(run: Run, models: Path, tmp_path: Path) -> None:
    listed = tmp_path / "models.config"
    listed.write_text(
        'model_config_list { config { name: "a" base_path: "/models/half_plus_two" '
        'model_platform: "tensorflow" } }'
    )
    container = run(
        "--model_config_file=/models/models.config",
        "--rest_api_port=8601",
        volumes={"/models/half_plus_two": models / "half_plus_two", "/models/models.config": listed},
    )
    assert over_grpc("a") == [2.5, 3.0, 4.5]
    with socket.create_connection(("127.0.0.1", 8601), 60):
        pass
    assert "has no effect" not in container.log
    assert container.execute("fastserve-image", "health").returncode == 0
    assert container.stop() == 0


def test_health_and_processes(run: Run, models: Path) -> None:
    container = run(volumes={"/models/model": models / "half_plus_two"})
    ready(container)
    check = container.execute("fastserve-image", "health")
    assert check.returncode == 0, check.stderr
    # Process 1 is tini. Whatever dies is reaped, what dies with its parent included.
    processes = container.processes()
    assert processes[1][1].startswith("tini")
    (gateway,) = (pid for pid, (_, line) in processes.items() if "fastserve.gateway" in line)
    orphan = container.execute("sh", "-c", "sh -c 'exec sleep 0.2' & exit 0")
    assert orphan.returncode == 0
    assert container.execute("sh", "-c", f"kill -9 {gateway}").returncode == 0
    container.until(lambda: container.log.count("gateway started") == 2)
    container.until(lambda: not [line for state, line in container.processes().values() if state == "Z"])
    # The core's death shows, until it is back.
    (core,) = (pid for pid, (_, line) in container.processes().items() if "fastserve.core" in line)
    assert container.execute("sh", "-c", f"kill -9 {core}").returncode == 0
    container.until(lambda: "core is back" in container.log)
    assert container.execute("fastserve-image", "health").returncode == 0
    assert container.stop() == 0
    assert not [line for line in container.log.splitlines() if "Read-only file system" in line]


@pytest.mark.parametrize("with_config", [False, True])
def test_sigterm_under_load_loses_no_request(
    run: Run, models: Path, tmp_path: Path, *, with_config: bool
) -> None:
    volumes = {"/models/half_plus_two": models / "half_plus_two"}
    if with_config:
        (tmp_path / "config.toml").write_text(CONFIG)
        volumes["/etc/fastserve/config.toml"] = tmp_path / "config.toml"
    container = run(env={} if with_config else {"MODEL_NAME": "half_plus_two"}, volumes=volumes)
    ready(container)
    assert container.execute("fastserve-image", "health").returncode == 0
    status, results = drained_under_load(
        "half" if with_config else "half_plus_two", GRPC, REST, container.stop
    )
    assert {name: lost(result) for name, result in results.items()} == {"grpc": [], "rest": []}
    assert status == 0 and "drained=True" in container.log
    for address in (GRPC, REST):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
