"""Request logs and warm-up files with a real daemon: what is logged under load is read by TensorFlow,
switched on and off by reloads of both kinds, and warms the next version up.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from lifecycle import RECORDS, Caller, Serving, install, table
from predict_client import Client, request
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc, prediction_log_pb2


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Not started yet; what a test leaves of it is ended."""
    serving = Serving(tmp_path)
    yield serving
    serving.daemon.end()


def logging(rate: float, **keys: Any) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[models.logging]\nsampling_rate = {rate}\nfilename_prefix = "logs/m"\n{more}'


def files(serving: Serving) -> list[Path]:
    return sorted((serving.directory / "logs").glob("m-*.tfrecord"))


def logs(paths: list[Path]) -> list[Any]:
    """Every record, by TensorFlow and TensorFlow Serving's message."""
    data = tf.data.TFRecordDataset([str(path) for path in paths])
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in data]


def log(serving: Serving) -> dict[str, Any]:
    return next(row for row in serving.daemon.admin("stats")["logs"] if row["model"] == "m")


def warmup(serving: Serving, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fastserve", "warmup", *args],
        cwd=serving.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_under_load_is_read_back_by_tensorflow(serving: Serving) -> None:
    install("half", serving.directory / "m" / "1")
    keys = logging(1.0, max_file_bytes='"64KiB"')
    serving.start(serving.config(table("m", "m", keys), server="io_threads = 2"))
    clients, calls = 8, 500

    def send(number: int) -> None:
        with serving.daemon.channel() as channel:
            client = Client(channel)
            waiting = [
                client.stub.Predict.future(request("m", {"x": [number * calls + i]}), timeout=60)
                for i in range(calls)
            ]
            answers.extend(future.result() for future in waiting)

    answers: list[Any] = []
    threads = [threading.Thread(target=send, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row = log(serving)
    assert serving.daemon.stop() == 0
    assert not list((serving.directory / "logs").glob("*.part"))
    assert len(files(serving)) > 3
    assert (row["sampled"], row["dropped"], row["failed"], row["skipped"]) == (clients * calls, 0, 0, 0)
    records = logs(files(serving))
    assert len(records) == len(answers) == clients * calls
    asked = []
    for record in records:
        wanted, answer = record.predict_log.request, record.predict_log.response
        x = tf.make_ndarray(wanted.inputs["x"])
        np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), x / 2 + 2)
        assert record.log_metadata.model_spec.version.value == 1
        asked.append(float(x[0]))
    assert sorted(asked) == [float(i) for i in range(clients * calls)]


def test_reloads_of_both_kinds_switch_it(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    with serving.daemon.channel() as channel:
        client, stub = Client(channel), model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(rate: float | None, kind: str = "", prefix: str = "") -> Any:
            wanted = model_management_pb2.ReloadConfigRequest()
            config = wanted.config.model_config_list.config.add(
                name="m", base_path=str(base), model_platform="tensorflow"
            )
            if rate is not None:
                config.logging_config.sampling_config.sampling_rate = rate
                config.logging_config.log_collector_config.type = kind
                config.logging_config.log_collector_config.filename_prefix = prefix
            return stub.HandleReloadConfigRequest(wanted, timeout=60)

        def ask(value: float) -> None:
            assert client.outputs(request("m", {"x": [value]}))["y"].tolist() == [value / 2 + 2]

        ask(1)
        assert serving.reload(serving.config(table("m", base, logging(1.0)))) == ["m: logging"]
        ask(2)
        assert serving.reload(serving.config(table("m", base))) == ["m: logging"]
        ask(3)
        reload(1.0, "file", str(serving.directory / "other" / "m"))
        ask(4)
        reload(None)
        ask(5)
        reload(1.0)
        ask(6)
        with pytest.raises(grpc.RpcError) as caught:
            reload(1.0, "kafka")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Cannot find LogCollector::Factory for type: kafka"
        reload(0.0)
        ask(7)
    assert serving.daemon.log.count("published servable=m:1") == 1  # nothing was loaded anew
    assert "renewed" not in serving.daemon.log
    places = [serving.directory / "logs", serving.directory / "other", serving.directory / "state" / "logs"]
    found = [
        [float(r.predict_log.request.inputs["x"].float_val[0]) for r in logs(sorted(p.iterdir()))]
        for p in places
    ]
    assert found == [[2.0], [4.0], [6.0]]


def test_what_was_logged_warms_the_next_version_up(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base, logging(1.0))))
    with Caller(serving, "m") as caller:
        caller.more(50)
        assert serving.reload(serving.config(table("m", base))) == ["m: logging"]
        (file,) = files(serving)
        fresh = install("half", serving.directory / "staging" / "2")
        target = fresh / RECORDS
        target.parent.mkdir()
        records = logs([file])[:40]
        with tf.io.TFRecordWriter(str(target)) as writer:
            for record in records:
                writer.write(record.SerializeToString())
        fresh.rename(base / "2")
        serving.until_version("m", 2)
        caller.until_served_by(2)
        # One that does not fit fails the version that brings it along.
        bad = install("half", serving.directory / "staging" / "3")
        records[-1].predict_log.request.inputs["z"].CopyFrom(records[-1].predict_log.request.inputs["x"])
        (bad / RECORDS).parent.mkdir()
        with tf.io.TFRecordWriter(str(bad / RECORDS)) as writer:
            for record in records:
                writer.write(record.SerializeToString())
        bad.rename(base / "3")
        assert "input size does not match signature" in serving.until_failed("m", 3)
        caller.more()
    assert serving.daemon.stop() == 0


def test_record_make_and_show(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    staged = install("half", serving.directory / "staging" / "2")
    with Caller(serving, "m") as caller:
        said = warmup(serving, "record", "m", "-n", "50", "-o", str(staged / RECORDS))
        assert said == f"50 requests of m in {staged / RECORDS}\n"
        assert len(logs([staged / RECORDS])) == 50
        shown = warmup(serving, "show", str(staged), "--json").splitlines()
        assert len(shown) == 50 and '"x": {"dtype": "float", "shape": [1]}' in shown[0]
        staged.rename(base / "2")
        serving.until_version("m", 2)
        caller.until_served_by(2)
        staged = install("half", serving.directory / "staging" / "3")
        assert "requests in" in warmup(serving, "make", str(staged))
        staged.rename(base / "3")
        serving.until_version("m", 3)
        caller.until_served_by(3)
        assert log(serving)["recording"] is None
    assert not list((serving.directory / "state" / "recordings").glob("*/*"))
    assert serving.daemon.stop() == 0


def test_a_core_that_dies_logs_on_when_it_is_back(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base, logging(1.0))))
    with serving.daemon.channel() as channel:
        client = Client(channel)
        client.outputs(request("m", {"x": [1.0]}))
        part = serving.daemon.until(lambda: list((serving.directory / "logs").glob("*.part")))[0]
        serving.daemon.until(lambda: part.stat().st_size)
        before = serving.daemon.core_pid
        subprocess.run(["kill", "-9", str(before)], check=True)
        serving.daemon.until(lambda: "core is back" in serving.daemon.log)
        client.stub.Predict(request("m", {"x": [2.0]}), timeout=60, wait_for_ready=True)
    assert serving.daemon.stop() == 0
    values = [float(r.predict_log.request.inputs["x"].float_val[0]) for r in logs(files(serving))]
    assert values == [1.0, 2.0]


def test_status_tells_what_is_lost(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    (serving.directory / "logs").write_text("in the way")
    serving.start(serving.config(table("m", base, logging(1.0))))
    with serving.daemon.channel() as channel:
        client = Client(channel)
        for i in range(10):
            client.outputs(request("m", {"x": [float(i)]}))
    serving.daemon.until(lambda: log(serving)["failed"] == 10)
    assert serving.daemon.log.count("requests are not logged") <= 4
    assert "requests are not logged process=core model=m" in serving.daemon.log
    done = subprocess.run(
        [sys.executable, "-m", "fastserve", "status"],
        cwd=serving.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text = " ".join(done.stdout.split())
    assert "m: logs 1 of its requests to" in text and "10 failed" in text
    assert serving.daemon.stop() == 0
