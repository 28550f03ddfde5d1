"""The daemon with TFLite models beside SavedModels, asked by the stock gRPC client."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon_process import Daemon
from exported_models import TFLITE, exported_models

HEAD = '[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "state"\n[executor]\nthreads = 2\n'


def model(name: str, path: Path, more: str = "") -> str:
    return (
        f'[[models]]\nname = "{name}"\nbase_path = "{path}"\n{more}\n[models.batching]\nmax_batch_size = 16\n'
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Daemon]]:
    daemons: list[Daemon] = []

    def start(config: str) -> Daemon:
        daemons.append(Daemon(tmp_path, config))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()


def predict(channel: grpc.Channel, name: str, alias: str, value: Any) -> tuple[Any, int]:
    """The outputs' arrays by alias, and the version."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    reply = stub.Predict(request, timeout=60, wait_for_ready=True)
    outputs = {key: tf.make_ndarray(tensor).tolist() for key, tensor in reply.outputs.items()}
    return outputs, reply.model_spec.version.value


def test_tflite_models_and_saved_models_side_by_side(start: Callable[[str], Daemon], tmp_path: Path) -> None:
    models = exported_models(TFLITE)
    config = HEAD + "".join(
        [
            model("lite", models / "half_plus_two"),  # there is nothing else
            model("saved", models / "both"),
            model("preferred", models / "both", "prefer_tflite = true"),
            model("picture", models / "picture", 'platform = "tflite"'),
        ]
    )
    daemon = start(config).wait_ready()
    for name in ("lite:1 (batched)", "saved:1 (batched)", "preferred:1 (batched)", "picture:1 (batched)"):
        assert name in daemon.line
    rows = [1.0, 2.0, 5.0]
    with daemon.channel() as channel:
        assert predict(channel, "lite", "x", rows) == ({"y": [2.5, 3.0, 4.5]}, 1)
        assert predict(channel, "saved", "x", rows) == ({"y": [2.5, 3.0, 4.5]}, 1)
        assert predict(channel, "preferred", "x", rows) == ({"y": [3.5, 4.0, 5.5]}, 1)
        with pytest.raises(grpc.RpcError) as refused:
            predict(channel, "lite", "z", rows)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert daemon.stop() == 0


def test_a_new_version_of_a_tflite_model_takes_over(start: Callable[[str], Daemon], tmp_path: Path) -> None:
    models = exported_models(TFLITE)
    base = tmp_path / "half"
    shutil.copytree(models / "half_plus_two" / "1", base / "1")
    daemon = start("[loading]\npoll_s = 0.2\n" + HEAD + model("half", base)).wait_ready()
    with daemon.channel() as channel:
        assert predict(channel, "half", "x", [1.0]) == ({"y": [2.5]}, 1)
        # Half of a file is no version.
        whole = (models / "both" / "1" / "model.tflite").read_bytes()
        (base / "2").mkdir()
        (base / "2" / "model.tflite").write_bytes(whole[: len(whole) // 2])
        daemon.until(lambda: "model.tflite" in str(daemon.admin("status")))
        assert predict(channel, "half", "x", [1.0]) == ({"y": [2.5]}, 1)
        (base / "2" / "model.tflite").write_bytes(whole)
        daemon.until(lambda: predict(channel, "half", "x", [1.0])[1] == 2)
        assert predict(channel, "half", "x", [1.0]) == ({"y": [3.5]}, 2)
    assert daemon.stop() == 0


def test_no_tensorflow_is_needed_for_tflite_alone(start: Callable[[str], Daemon], tmp_path: Path) -> None:
    models = exported_models(TFLITE)
    config = HEAD + model("half", models / "half_plus_two", 'platform = "tflite"')
    daemon = start(f'{config}[tensorflow]\nlibrary_dir = "{tmp_path}"\n').wait_ready()
    with daemon.channel() as channel:
        assert predict(channel, "half", "x", [1.0]) == ({"y": [2.5]}, 1)
    maps = Path(f"/proc/{daemon.ready['core_pid']}/maps").read_text()
    assert "libLiteRt.so" in maps and "tensorflow" not in maps
    assert daemon.stop() == 0
