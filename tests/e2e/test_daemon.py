"""The daemon as users start it: `fastserve serve`, the real core and TensorFlow, the stock gRPC client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon_process import Daemon, alive

SAVE_MODELS = """
import sys, tensorflow as tf

class Affine(tf.Module):
    def __init__(self, a, b):
        self.a, self.b = tf.Variable(a), tf.Variable(b)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        return {"y": self.a * x + self.b}

class Slow(tf.Module):
    # As many matrix products as the largest input says.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        n = tf.cast(tf.reduce_max(x), tf.int32)
        m = tf.while_loop(
            lambda i, m: i < n, lambda i, m: (i + 1, tf.math.sin(tf.linalg.matmul(m, m))), (0, tf.eye(300))
        )[1]
        return {"y": x + 0.0 * m[0, 0]}

root = sys.argv[1]
for path, module in [("half/1", Affine(9.0, 9.0)), ("half/2", Affine(0.5, 2.0)), ("slow/7", Slow())]:
    tf.saved_model.save(module, f"{root}/{path}", signatures={"serving_default": module.serve})
"""

HALF = '[[models]]\nname = "half"\nbase_path = "{models}/half"\n'
SLOW = '[[models]]\nname = "slow"\nbase_path = "{models}/slow"\nrow_wise = false\n'


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SavedModels: half, whose version 2 gives x / 2 + 2, and slow, which gives x after x matrix products."""
    root = tmp_path_factory.mktemp("models")
    subprocess.run(
        [sys.executable, "-c", SAVE_MODELS, str(root)], check=True, timeout=300, capture_output=True
    )
    return root


@pytest.fixture
def start(tmp_path: Path, models: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons, and ends what a test has left of them."""
    daemons: list[Daemon] = []

    def start(config: str, *args: str, server: str = "") -> Daemon:
        text = (
            f'[server]\nlisten = ["127.0.0.1:0", "unix:s.sock"]\nstate_dir = "state"\n{server}\n'
            "[executor]\nthreads = 2\n" + config.format(models=models)
        )
        daemons.append(Daemon(tmp_path, text, *args))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()


def request(model: str, rows: list[float]) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(rows, dtype=tf.float32))
    return message


def stub(channel: grpc.Channel) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict(channel: grpc.Channel, model: str, rows: list[float]) -> tuple[list[float], int]:
    """Outputs and version."""
    import tensorflow as tf

    reply = stub(channel).Predict(request(model, rows), timeout=60, wait_for_ready=True)
    return tf.make_ndarray(reply.outputs["y"]).tolist(), reply.model_spec.version.value


def test_it_serves_the_newest_version_and_stops_cleanly(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF).wait_ready()
    tcp, unix = daemon.ready["addresses"]
    assert re.fullmatch(rf"fastserve ready: half:2 \(batched\) on {tcp}, {unix} in \d+\.\d s\n", daemon.line)
    for address in (tcp, unix):
        with daemon.channel(address) as channel:
            assert predict(channel, "half", [1.0, 2.0, 5.0]) == ([2.5, 3.0, 4.5], 2)
    core = daemon.ready["core_pid"]
    assert daemon.stop() == 0
    assert not alive(core)
    assert daemon.process.stdout is not None and daemon.process.stdout.read() == ""
    assert not (daemon.directory / "s.sock").exists() and not (daemon.directory / "ready.json").exists()
    assert not (daemon.directory / "state" / "admin.sock").exists()
    # One line an event: nothing of TensorFlow's own.
    noise = [
        line
        for line in daemon.log.splitlines()
        if not re.match(r"\d{4}-\d\d-\d\d .{12} (INFO|WARNING) ", line)
    ]
    assert noise == []


def test_the_log_may_be_json(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF, "--log-format", "json")

    def ready() -> dict[str, Any] | None:
        events = [json.loads(line) for line in daemon.log.splitlines()]
        return next((event for event in events if event["event"] == "ready"), None)

    event = daemon.until(ready)
    assert event["models"] == ["half:2 (batched)"] and event["addresses"][0].startswith("127.0.0.1:")
    assert daemon.stop(signal.SIGINT) == 0


def test_xla_is_in_the_ready_line_and_its_answers_are_right(start: Callable[..., Daemon]) -> None:
    batching = "xla = 'full'\n[models.batching]\nmax_batch_size = 4\n"
    daemon = start(HALF + batching).wait_ready()
    assert daemon.line.startswith("fastserve ready: half:2 (batched, XLA, 3 buckets) on ")
    with daemon.channel() as channel:
        for rows in ([1.0], [1.0, 2.0, 3.0], [float(i) for i in range(9)]):
            assert predict(channel, "half", rows) == ([row / 2 + 2 for row in rows], 2)
    assert daemon.stop() == 0


def test_a_core_that_is_killed_is_back_with_its_models(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF).wait_ready()
    core = daemon.ready["core_pid"]
    with daemon.channel() as channel:
        assert predict(channel, "half", [1.0])[0] == [2.5]
        os.kill(core, signal.SIGKILL)
        daemon.until(lambda: not alive(core))
        # The address still takes connections; the call waits for the next core.
        with daemon.channel() as waiting:
            assert predict(waiting, "half", [4.0]) == ([4.0], 2)
        assert predict(channel, "half", [6.0]) == ([5.0], 2)
    assert "how=SIGKILL" in daemon.log and "core is back" in daemon.log
    assert daemon.admin("stats")["pid"] != core
    assert daemon.stop() == 0


class Caller(threading.Thread):
    """Predicts all the time, over a connection that stays and over new ones, until `end`."""

    def __init__(self, daemon: Daemon, address: str) -> None:
        super().__init__()
        self.answered = 0
        self.wrong: list[str] = []
        self._daemon, self._address = daemon, address
        self._ending = threading.Event()
        self.start()

    def more(self) -> None:
        before = self.answered
        self._daemon.until(lambda: self.wrong or self.answered >= before + 20)

    def end(self) -> None:
        self._ending.set()
        self.join(60)
        assert self.wrong == []

    def run(self) -> None:
        with self._daemon.channel(self._address) as staying:
            while not self._ending.is_set() and not self.wrong:
                with self._daemon.channel(self._address) as new:
                    for channel in (staying, new):
                        try:
                            # Not wait_for_ready: a connection that is refused must be seen.
                            reply = stub(channel).Predict(request("half", [1.0]), timeout=60)
                        except grpc.RpcError as error:
                            self.wrong.append(str(error))
                            return
                        if list(reply.outputs["y"].float_val) != [2.5]:
                            self.wrong.append(str(reply))
                        self.answered += 1


def test_a_control_process_that_dies_has_a_successor_and_nobody_notices(start: Callable[..., Daemon]) -> None:
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    daemon = start(HALF).wait_ready()
    core, addresses = daemon.ready["core_pid"], daemon.ready["addresses"]
    caller = Caller(daemon, addresses[0])
    caller.more()
    daemon.stop(signal.SIGKILL)
    caller.more()
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "half"
    with daemon.channel() as channel:  # answered although nobody is there who would know better
        (one,) = (
            model_service_pb2_grpc.ModelServiceStub(channel)
            .GetModelStatus(status, timeout=60)
            .model_version_status
        )
        assert (one.version, one.state) == (2, 30)

    second = start(HALF).wait_ready()
    assert second.ready["core_pid"] == core and second.ready["addresses"] == addresses
    assert second.line.startswith("fastserve ready: half:2 (batched) on ")
    assert second.log.count("trial passed") == 1  # the first daemon's
    assert second.admin("status")["models"][0]["versions"][0]["state"] == "AVAILABLE"
    caller.more()
    caller.end()
    # From here on it is a core like any other.
    os.kill(core, signal.SIGKILL)
    second.until(lambda: "core is back" in second.log)
    with second.channel() as channel:
        assert predict(channel, "half", [4.0]) == ([4.0], 2)
    assert second.core_pid != core
    assert second.stop() == 0
    assert not list((second.directory / "state").glob("*.sock"))


def test_a_core_with_other_settings_is_replaced_and_nobody_is_refused(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF).wait_ready()
    core, addresses = daemon.ready["core_pid"], daemon.ready["addresses"]
    caller = Caller(daemon, addresses[0])
    caller.more()
    daemon.stop(signal.SIGKILL)
    second = start(HALF, server="tensor_content_replies = false\nlame_duck_s = 0.1").wait_ready()
    assert second.ready["core_pid"] != core and second.ready["addresses"] == addresses
    second.until(lambda: not alive(core))
    caller.more()
    caller.end()
    with second.channel(addresses[1]) as channel:
        assert predict(channel, "half", [6.0]) == ([5.0], 2)
    assert second.stop() == 0
    assert not list(second.directory.rglob("*.sock"))


def test_a_daemon_that_is_stopped_before_it_has_replaced_a_core_ends_that_too(
    start: Callable[..., Daemon],
) -> None:
    daemon = start(HALF).wait_ready()
    core = daemon.ready["core_pid"]
    daemon.stop(signal.SIGKILL)
    second = start(HALF, server="lame_duck_s = 0.1")
    second.until(lambda: "found the core of an earlier" in second.log)
    assert second.stop() == 0
    second.until(lambda: not alive(core))
    assert "stopped" in second.log


def test_a_core_that_was_left_behind_drains_at_sigterm(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF, server="drain_timeout_s = 5").wait_ready()
    core = daemon.ready["core_pid"]
    daemon.stop(signal.SIGKILL)
    with daemon.channel() as channel:
        assert predict(channel, "half", [1.0])[0] == [2.5]
    os.kill(core, signal.SIGTERM)
    daemon.until(lambda: not alive(core))


def test_a_drain_answers_what_is_in_flight(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF + SLOW, server="lame_duck_s = 1.0\ndrain_timeout_s = 60").wait_ready()
    with daemon.channel() as slow, daemon.channel() as other:
        assert predict(slow, "slow", [1.0]) == ([1.0], 7)
        assert predict(other, "half", [1.0])[0] == [2.5]
        calls = [stub(slow).Predict.future(request("slow", [3000.0]), timeout=60) for _ in range(2)]
        daemon.until(lambda: daemon.admin("stats")["bytes_in_flight"] > 0)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.until(lambda: "draining" in daemon.log)
        # Lame duck: who has not heard of it yet is still served.
        assert predict(other, "half", [2.0])[0] == [3.0]
        assert [call.result().outputs["y"].float_val[0] for call in calls] == [3000.0, 3000.0]
    assert daemon.process.wait(60) == 0
    assert "drained=True" in daemon.log


def test_a_second_signal_ends_at_once(start: Callable[..., Daemon]) -> None:
    daemon = start(SLOW, server="lame_duck_s = 600").wait_ready()
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until(lambda: "draining" in daemon.log)
    assert daemon.stop(signal.SIGINT) == 1
    assert not alive(daemon.ready["core_pid"])


def test_a_model_that_fails_does_not_stop_the_others(start: Callable[..., Daemon], tmp_path: Path) -> None:
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "saved_model.pb").write_bytes(b"garbage")
    # Complete, for all that its source can tell: opening it shows what it is.
    bad = '[[models]]\nname = "bad"\nbase_path = "bad"\n'
    bad += '[models.versions]\ncomplete_marker = "saved_model.pb"\n'
    daemon = start(bad + HALF).wait_ready()
    assert "half:2 (batched), without bad:1 on" in daemon.line
    with daemon.channel() as channel:
        assert predict(channel, "half", [1.0])[0] == [2.5]
        with pytest.raises(grpc.RpcError) as caught:
            predict(channel, "bad", [1.0])
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Servable not found for request: Latest(bad)"
    assert daemon.stop() == 0

    strict = start(bad + HALF, "--strict")
    assert strict.process.wait(120) == 1
    assert "error: not every model can be served, and --strict was given: bad:1: " in strict.log


def test_the_admin_socket_tells_what_is_served(start: Callable[..., Daemon]) -> None:
    daemon = start(HALF).wait_ready()
    with daemon.channel() as channel:
        for _ in range(3):
            predict(channel, "half", [1.0, 2.0])
        stats = daemon.admin("stats")
        assert stats["ok"] and stats["pid"] == daemon.ready["core_pid"] and stats["connections"] == 1
        served = {row["signature"]: row["calls"] for row in stats["signatures"]}
        assert served["serving_default"] == 3
    assert daemon.admin("list")["ok"]
    assert daemon.stop() == 0
