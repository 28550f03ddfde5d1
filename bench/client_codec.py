"""The client's codec against the stock one: encoding a request of 500 rows and decoding its reply.

    python bench/client_codec.py [--seconds 4] [--out bench/results/client_codec.json]

The request is Criteo's shape, 13 float32 and 26 int64 a row, as two arrays and as 39; the reply 500 float32.
In turn, in one process: FastServe's `encode_request` and `decode_reply`; `tf.make_tensor_proto`, the messages
of tensorflow-serving-api and `tf.make_ndarray`, which is what a client on grpcio does; and a bare memcpy of
the same bytes. Requests are made as one bytes object in all three, so that each copies the payload at least
once; `fastserve.client` itself sends an array from where it lies. Times are the medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from fastserve._native.client_codec import decode_reply, encode_request

ROWS, DENSE, SPARSE = 500, 13, 26
BATCH = 20  # calls for each reading of the clock
OUT = Path(__file__).parent / "results" / "client_codec.json"


def inputs_of(shape: str) -> dict[str, Any]:
    random = np.random.default_rng(1)
    dense = random.random((ROWS, DENSE), dtype=np.float32)
    sparse = random.integers(0, 1 << 40, (ROWS, SPARSE))
    if shape == "2 inputs":
        return {"dense": dense, "sparse": sparse}
    columns = {f"dense_{i}": np.ascontiguousarray(dense[:, i : i + 1]) for i in range(DENSE)}
    return columns | {f"sparse_{i}": np.ascontiguousarray(sparse[:, i : i + 1]) for i in range(SPARSE)}


def reply_bytes(as_content: bool) -> bytes:
    """A reply of 500 scores: as TensorFlow Serving and FastServe send it by default, or in tensor_content."""
    scores = np.random.default_rng(2).random((ROWS, 1), dtype=np.float32)
    message = predict_pb2.PredictResponse()
    message.model_spec.name = "ranker"
    message.model_spec.version.value = 3
    message.model_spec.signature_name = "serving_default"
    message.outputs["score"].CopyFrom(tf.make_tensor_proto(scores))
    if not as_content:
        message.outputs["score"].tensor_content = b""
        message.outputs["score"].float_val.extend(scores.reshape(-1).tolist())
    return bytes(message.SerializeToString())


def ours(inputs: dict[str, Any], reply: bytes) -> Callable[[], object]:
    def call() -> object:
        return encode_request("ranker", inputs), decode_reply(reply)[0]["score"]

    return call


def stock(inputs: dict[str, Any], reply: bytes) -> Callable[[], object]:
    def call() -> object:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "ranker"
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        encoded = request.SerializeToString()
        response = predict_pb2.PredictResponse.FromString(reply)
        return encoded, tf.make_ndarray(response.outputs["score"])

    return call


def copies(inputs: dict[str, Any], reply: bytes) -> Callable[[], object]:
    """One block of the size of each message, copied by memcpy: a bytearray's copy is that and nothing
    else."""
    request = memoryview(encode_request("ranker", inputs))
    answer = memoryview(reply)

    def call() -> object:
        return bytes(request), bytes(answer)

    return call


def measure(cases: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Microseconds of one call, round by round, every case once in each round."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in cases.items():
            start = time.perf_counter()
            for _ in range(BATCH):
                call()
            times[name].append((time.perf_counter() - start) / BATCH * 1e6)
    return times


def run(seconds: float) -> dict[str, Any]:
    results = []
    for shape in ("2 inputs", "39 inputs"):
        for as_content in (False, True):
            inputs, reply = inputs_of(shape), reply_bytes(as_content)
            encoded, scores = ours(inputs, reply)()  # type: ignore[misc]
            theirs, expected = stock(inputs, reply)()  # type: ignore[misc]
            same = predict_pb2.PredictRequest.FromString(encoded) == predict_pb2.PredictRequest.FromString(
                theirs
            )
            if not same or not np.array_equal(scores, expected):
                raise SystemExit("the two codecs do not agree: nothing to compare")
            times = measure(
                {
                    "fastserve": ours(inputs, reply),
                    "stock": stock(inputs, reply),
                    "memcpy": copies(inputs, reply),
                },
                seconds / 4,
            )
            us = {name: round(statistics.median(rounds), 2) for name, rounds in times.items()}
            results.append(
                {
                    "request": shape,
                    "reply": "tensor_content" if as_content else "float_val",
                    "request_bytes": len(encoded),
                    "reply_bytes": len(reply),
                    "rounds": len(times["fastserve"]),
                    "us": us,
                    "times_faster_than_stock": round(us["stock"] / us["fastserve"], 1),
                    "times_memcpy": round(us["fastserve"] / us["memcpy"], 2),
                }
            )
    return {
        "what": f"encode {ROWS} rows of {DENSE} float32 and {SPARSE} int64, and decode {ROWS} float32",
        "command": "python bench/client_codec.py",
        "machine": {"cpus": len(os.sched_getaffinity(0)), "cpu": _cpu(), "python": platform.python_version()},
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "results": results,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring, in all (default 4)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT.relative_to(OUT.parents[2])}")
    args = parser.parse_args()
    report = run(args.seconds)
    for row in report["results"]:
        us = row["us"]
        print(
            f"{row['request']:>9}, {row['reply']:14}  fastserve {us['fastserve']:8.2f} us"
            f"  stock {us['stock']:8.2f} us  memcpy {us['memcpy']:6.2f} us"
            f"  {row['times_faster_than_stock']:6.1f} times faster, {row['times_memcpy']:5.2f} memcpys"
        )
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
