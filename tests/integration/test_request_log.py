"""Request logs of a core, over gRPC: what is in the files, as TensorFlow Serving's own messages read it,
while the log is switched on and off, the core drains or dies.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, Refused, predict_reply, predict_request, servable
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from fastserve.savedmodel.tfrecord import read_records


class Client:
    """A core with version 3 of "m", and a client of it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.channel = grpc.insecure_channel(core.address)
        self._predict = self.channel.unary_unary(PREDICT)

    def predict(self, value: float, **how: Any) -> bytes:
        return self._predict(
            predict_request("m", struct.pack("<f", value), [1, 1]), timeout=PATIENCE_S, **how
        )

    def logging(self, prefix: Path | None, model: str = "m", **settings: Any) -> None:
        wanted = {
            "sampling_rate": 1.0,
            "responses": True,
            "max_file_bytes": 1 << 26,
            "max_file_age_s": 0,
            "keep_files": 0,
            "max_buffer_bytes": 1 << 24,
            "tags": ["serve"],
        }
        self.core.call(
            "logging",
            model=model,
            settings=None if prefix is None else {**wanted, **settings, "path": str(prefix)},
        )

    def log(self) -> dict[str, Any]:
        (row,) = self.core.stats()["logs"]
        return row


@pytest.fixture(params=[0, 1], ids=["loop", "io_threads"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Core(server={"io_threads": request.param}, executor={"threads": 2}) as core:
        core.serve(servable(version=3))
        client = Client(core)
        try:
            yield client
        finally:
            client.channel.close()


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix == ".tfrecord")


def logs(directory: Path) -> list[Any]:
    """Every record of every file, parsed by TensorFlow Serving's own message."""
    return [
        prediction_log_pb2.PredictionLog.FromString(record)
        for path in files(directory)
        for record in read_records(path)
    ]


def eventually(look: Callable[[], Any]) -> Any:
    """What another process is about to do has no event here."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_a_record_is_the_request_and_its_answer(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m")
    before = int(time.time())
    replies = [client.predict(i) for i in range(10)]
    client.logging(None)
    records = logs(tmp_path)
    assert len(records) == 10
    for i, record in enumerate(records):
        assert record.WhichOneof("log_type") == "predict_log"
        request, response = record.predict_log.request, record.predict_log.response
        assert request.SerializeToString(deterministic=True) == predict_request(
            "m", struct.pack("<f", i), [1, 1]
        )
        assert list(response.outputs["y"].float_val) == predict_reply(replies[i]) == [i / 2 + 2]
        metadata = record.log_metadata
        assert (metadata.model_spec.name, metadata.model_spec.version.value) == ("m", 3)
        assert metadata.model_spec.signature_name == "serving_default"
        assert metadata.sampling_config.sampling_rate == 1.0
        assert list(metadata.saved_model_tags) == ["serve"]
        assert before <= metadata.timestamp_secs <= time.time() + 1
    row = client.log()
    assert (row["sampled"], row["records"], row["files"]) == (10, 10, 1)
    assert (row["dropped"], row["skipped"], row["failed"], row["error"]) == (0, 0, 0, "")


def test_one_row_for_all_is_logged_as_it_came(client: Client, tmp_path: Path) -> None:
    pair = servable("pair")
    (x,) = pair["signatures"][0]["inputs"]
    pair["signatures"][0]["inputs"] = [{**x, "alias": "user", "tensor": "user:0"}, x]
    pair["batching"] = {**pair["batching"], "broadcast": ["user"]}
    client.core.serve(pair)
    client.logging(tmp_path / "pair", "pair")
    request = predict_pb2.PredictRequest.FromString(
        predict_request("pair", struct.pack("<3f", 1, 2, 3), [3, 1])
    )
    request.inputs["user"].CopyFrom(request.inputs["x"])
    request.inputs["user"].tensor_shape.dim[0].size = 1
    request.inputs["user"].tensor_content = struct.pack("<f", 8)
    sent = request.SerializeToString(deterministic=True)
    reply = client.channel.unary_unary(PREDICT)(sent, timeout=PATIENCE_S)
    client.logging(None, "pair")
    (record,) = logs(tmp_path)
    assert record.predict_log.request.SerializeToString(deterministic=True) == sent
    assert list(record.predict_log.response.outputs["y"].float_val) == predict_reply(reply) == [6.0] * 3


def test_compressed_calls_are_logged_plain(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m")
    values = [float(i % 3) for i in range(2000)]
    request = predict_request("m", struct.pack(f"<{len(values)}f", *values), [len(values), 1])
    call = client.channel.unary_unary(PREDICT)
    call(request, timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
    client.logging(None)
    (record,) = logs(tmp_path)
    assert record.predict_log.request.SerializeToString(deterministic=True) == request
    assert list(record.predict_log.response.outputs["y"].float_val) == [v / 2 + 2 for v in values]


def test_off_is_off_and_on_again_goes_on(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m")
    client.predict(1)
    client.logging(None)
    client.predict(2)
    client.logging(tmp_path / "m", responses=False)
    client.predict(3)
    client.logging(None)
    records = logs(tmp_path)
    assert [r.predict_log.request.inputs["x"].tensor_content for r in records] == [
        struct.pack("<f", v) for v in (1, 3)
    ]
    assert not records[1].predict_log.HasField("response")
    client.logging(None)
    assert client.log()["sampled"] == 2


def test_a_drain_closes_the_file(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m")
    for i in range(50):
        client.predict(i)
    client.channel.close()
    client.core.call("drain", lame_duck_s=0, drain_timeout_s=10)
    assert client.core.wait() == 0
    assert len(logs(tmp_path)) == 50
    assert [path.suffix for path in tmp_path.iterdir()] == [".tfrecord"]


def test_a_core_that_dies_leaves_what_the_next_one_can_mend(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m")
    client.predict(1)
    (part,) = eventually(lambda: list(tmp_path.glob("*.part")))
    eventually(lambda: part.stat().st_size)
    client.core.process.kill()
    client.core.wait()
    with open(part, "ab") as file:
        file.write(b"\x01\x02\x03")  # torn
    with Core() as core:
        core.serve(servable(version=3))
        other = Client(core)
        other.logging(tmp_path / "m")
        assert not list(tmp_path.glob("*.part"))
        assert len(logs(tmp_path)) == 1
        other.channel.close()


def test_losses_are_told_once_for_each_doubling(client: Client, tmp_path: Path) -> None:
    (tmp_path / "d").write_text("in the way")
    client.logging(tmp_path / "d" / "m")
    for i in range(40):
        client.predict(i)
    event = client.core.event("log")
    assert (event["level"], event["message"]) == ("warning", "requests are not logged")
    assert event["fields"]["model"] == "m"
    assert event["fields"]["why"] in ("Not a directory", "File exists")
    eventually(lambda: client.log()["failed"] == 40)
    told = [event, *(e for e in client.core.events if e["event"] == "log")]
    counts = [e["fields"]["failed"] for e in told]
    assert all(b >= 2 * a for a, b in pairwise(counts))
    assert client.log()["error"] == event["fields"]["why"]


def test_a_recording_beside_a_log(client: Client, tmp_path: Path) -> None:
    client.logging(tmp_path / "m", sampling_rate=0.5)
    settings = {"path": str(tmp_path / "taken"), "records": 5, "sampling_rate": 1.0, "timeout_s": 60.0}
    client.core.call("record", model="m", settings=settings)
    for i in range(20):
        client.predict(i)
    recording = eventually(lambda: (row := client.log()["recording"])["finished"] and row)
    assert (recording["records"], recording["wanted"], recording["failed"]) == (5, 5, 0)
    records = [prediction_log_pb2.PredictionLog.FromString(r) for r in read_records(tmp_path / "taken")]
    assert [r.predict_log.request.inputs["x"].tensor_content for r in records] == [
        struct.pack("<f", i) for i in range(5)
    ]
    assert not records[0].predict_log.HasField("response")
    ended = client.core.call("record", model="m", settings=None)["recorded"]
    assert ended["records"] == 5
    assert client.log()["recording"] is None
    assert client.core.call("record", model="m", settings=None)["recorded"] is None
    client.logging(None)
    assert len(logs(tmp_path)) == client.log()["records"]


def test_a_recording_that_nobody_ends_ends_itself(client: Client, tmp_path: Path) -> None:
    settings = {"path": str(tmp_path / "taken"), "records": 5, "sampling_rate": 1.0, "timeout_s": 0.2}
    client.core.call("record", model="m", settings=settings)
    client.predict(1)
    eventually(lambda: client.log()["recording"] is None)
    assert len(list(read_records(tmp_path / "taken"))) == 1
    client.predict(2)
    assert client.log()["sampled"] == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"sampling_rate": 1.5}, "sampling_rate 1.5: 0 to 1"),
        ({"path": ""}, "path of 0 bytes"),
        ({"path": "/" + 5000 * "a"}, "path of 5001 bytes"),
        ({"tags": [str(i) for i in range(65)]}, "65 tags: at most 64"),
    ],
)
def test_settings_that_make_no_sense(
    client: Client, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(Refused, match=f"INVALID_ARGUMENT: logging: ValueError: {why}"):
        client.core.call("logging", model="m", settings={"path": str(tmp_path / "m"), **settings})
    client.predict(1)
    assert os.listdir(tmp_path) == []
