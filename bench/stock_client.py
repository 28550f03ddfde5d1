"""What only the stock client can say, run by the cases as a child process; prints one JSON object.

    python bench/stock_client.py verify PORT KEY     every recorded body of KEY: answered OK, right values
    python bench/stock_client.py large PORT BYTES    a request and a reply of BYTES each, right values

Imports TensorFlow (tensorflow-serving-api needs it), which the harness itself does not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cache
import grpc
import numpy as np

from fastserve.bench.wire import PREDICT_PATH

TOLERANCE = 1e-5
LARGE_ROUNDS = 4
_NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def verify(port: int, key: str) -> dict[str, Any]:
    """Sends the recorded bytes as they are and takes the replies apart."""
    from tensorflow_serving.apis import predict_pb2

    index = json.loads(cache.INDEX.read_text())
    worst = 0.0
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_NO_LIMIT) as channel:
        predict = channel.unary_unary(PREDICT_PATH)
        for body in index["bodies"][key]:
            reply = predict(Path(body["path"]).read_bytes(), timeout=30.0)
            if len(reply) != body["reply_bytes"]:
                raise SystemExit(f"{body['path']}: the reply weighs {len(reply)} bytes")
            values = predict_pb2.PredictResponse.FromString(reply).outputs[body["output"]].float_val
            worst = max(worst, float(np.max(np.abs(np.array(values) - np.array(body["expected"])))))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{key}: an answer differs from TensorFlow's by {worst}")
    return {"bodies": len(index["bodies"][key]), "max_abs_diff": worst}


def large(port: int, size: int) -> dict[str, Any]:
    """One row of size / 4 floats to `wide` and back, a few times."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "wide"
    values = np.arange(size // 4, dtype=np.float32).reshape(1, -1) % 1024.0
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values))
    took = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_NO_LIMIT) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(LARGE_ROUNDS):
            started = time.perf_counter()
            reply = stub.Predict(request, timeout=60.0)
            took.append(time.perf_counter() - started)
            got = np.array(reply.outputs["y"].float_val, np.float32)
            if got.size != values.size or not np.array_equal(got, values.ravel() * 0.5 + 2.0):
                raise SystemExit("the reply is not x / 2 + 2")
    return {
        "rounds": LARGE_ROUNDS,
        "request_bytes": request.ByteSize(),
        "reply_bytes": reply.ByteSize(),
        "seconds": took,
    }


if __name__ == "__main__":
    what, port_text, argument = sys.argv[1:]
    outcome = verify(int(port_text), argument) if what == "verify" else large(int(port_text), int(argument))
    print(json.dumps(outcome))
