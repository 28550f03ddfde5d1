"""A server on grpcio with TensorFlow Serving's messages, whose models do what tests of a client need: answer,
be late, fail, send garbage. In threads of the test's process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
Handler = Callable[[bytes, grpc.ServicerContext], bytes]


class StockServer:
    """Listens on 127.0.0.1 (or `address`) until the end of the `with`.

    By the name of the model: "echo" gives the inputs back, "sum" the sums of the rows of "x" as "y",
    "metadata" the headers of the call as strings, "status-NAME" that status with the text "told to: NAME",
    "slow-MS" is echo after so long, "flaky-N" UNAVAILABLE N times and then echo, "garbage" bytes that are no
    message, "claims" a tensor of 2^40 elements, "large-N" so many bytes. Others are NOT_FOUND. `methods` has
    further ones, bytes to bytes, by path.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
        compression: grpc.Compression = grpc.Compression.NoCompression,
        methods: dict[str, Handler] | None = None,
        threads: int = 8,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.requests: list[predict_pb2.PredictRequest] = []
        self.encodings: list[str] = []
        self.peers: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._compression = compression
        self._over = threading.Event()
        handlers = {PREDICT: self._predict, **(methods or {})}
        self._server = grpc.server(
            ThreadPoolExecutor(threads),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers([_Handlers(handlers)])
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{self.port}" if not address.startswith("unix:") else address
        self._server.start()

    def __enter__(self) -> StockServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self._server.stop(0).wait()

    def _predict(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = predict_pb2.PredictRequest.FromString(data)
        model = request.model_spec.name
        with self._lock:
            self.calls[model] += 1
            self.peers[context.peer()] += 1
            number = self.calls[model]
            if len(self.requests) < 1000:
                self.requests.append(request)
        if self._compression != grpc.Compression.NoCompression:
            context.set_compression(self._compression)
        kind, _, argument = model.partition("-")
        if kind == "status":
            context.abort(grpc.StatusCode[argument], f"told to: {argument}")
        if kind == "flaky" and number <= int(argument):
            context.abort(grpc.StatusCode.UNAVAILABLE, f"flaky: {number}")
        if kind == "slow":
            self._wait(model, int(argument) / 1e3, context)
        return self._answer(kind, argument, request, context)

    def _wait(self, model: str, seconds: float, context: grpc.ServicerContext) -> None:
        gone = threading.Event()
        context.add_callback(gone.set)
        if gone.wait(seconds):
            with self._lock:
                self.cancelled[model] += 1

    def _answer(
        self, kind: str, argument: str, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> bytes:
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = request.model_spec.name
        reply.model_spec.version.value = request.model_spec.version.value or 1
        reply.model_spec.signature_name = request.model_spec.signature_name or "serving_default"
        if kind in ("echo", "slow", "flaky"):
            wanted = set(request.output_filter)
            for name, tensor in request.inputs.items():
                if not wanted or name in wanted:
                    reply.outputs[name].CopyFrom(tensor)
        elif kind == "sum":
            x = tf.make_ndarray(request.inputs["x"])
            reply.outputs["y"].CopyFrom(tf.make_tensor_proto(x.sum(axis=tuple(range(1, x.ndim)))))
        elif kind == "metadata":
            for name, value in context.invocation_metadata():
                reply.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        elif kind == "garbage":
            return b"\xff this is no message"
        elif kind == "claims":
            reply.outputs["y"].CopyFrom(tf.make_tensor_proto(np.float32(1)))
            reply.outputs["y"].tensor_shape.dim.add(size=1 << 40)
        elif kind == "large":
            reply.outputs["y"].CopyFrom(tf.make_tensor_proto(np.zeros(int(argument), np.uint8)))
        else:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({kind})")
        encoded: bytes = reply.SerializeToString()
        return encoded

    def until(self, look: Callable[[], bool], timeout: float = 10) -> None:
        """What a server is about to see has no event here: looks until it is so."""
        end = time.monotonic() + timeout
        while not look():
            assert time.monotonic() < end
            time.sleep(0.01)


class _Handlers(grpc.GenericRpcHandler):
    """Unary methods by path, on bytes."""

    def __init__(self, methods: dict[str, Handler]) -> None:
        self._methods = {
            path: grpc.unary_unary_rpc_method_handler(method, None, None) for path, method in methods.items()
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(details.method)
