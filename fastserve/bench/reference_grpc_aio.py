"""A plain grpc.aio server with TensorFlow, as one would write it by hand: what FastServe is compared with.

    python -m fastserve.bench.reference_grpc_aio --model ranker --saved-model /models/ranker/1

TensorFlow Serving's Predict on uvloop. The model runs in a pool of threads, so that the loop stays free;
a request is one run, for batching is what a server by hand does not have. Prints "ready ADDRESS 1".
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import tensorflow as tf
import uvloop
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Predict, for one signature of one model."""

    def __init__(self, model: str, saved_model: str, signature: str, pool: ThreadPoolExecutor) -> None:
        self._model = model
        self._pool = pool
        self._loaded = tf.saved_model.load(saved_model)  # kept: the signature holds its variables weakly
        self._run = self._loaded.signatures[signature]
        self._inputs = self._run.structured_input_signature[1]

    async def Predict(self, request: Any, context: Any) -> Any:
        if request.model_spec.name != self._model:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_spec.name}")
        if set(request.inputs) != set(self._inputs):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected inputs {sorted(self._inputs)}")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._predict, request)
        except (tf.errors.OpError, TypeError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _predict(self, request: Any) -> Any:
        inputs = {
            name: tf.constant(tf.make_ndarray(tensor), dtype=self._inputs[name].dtype)
            for name, tensor in request.inputs.items()
        }
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = self._model
        for name, tensor in self._run(**inputs).items():
            reply.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        return reply


async def serve(arguments: argparse.Namespace) -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    with ThreadPoolExecutor(arguments.threads, thread_name_prefix="predict") as pool:
        service = PredictionService(arguments.model, arguments.saved_model, arguments.signature, pool)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
        port = server.add_insecure_port(arguments.listen)
        await server.start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"ready {arguments.listen.rpartition(':')[0]}:{port} 1", flush=True)
        await stop.wait()
        await server.stop(grace=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="the name it is served under")
    parser.add_argument("--saved-model", required=True, help="a directory that holds saved_model.pb")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the pool")
    parser.add_argument("--intra-op-threads", type=int, default=0, help="TensorFlow's; 0: its default")
    parser.add_argument("--inter-op-threads", type=int, default=0, help="TensorFlow's; 0: its default")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.intra_op_threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.inter_op_threads)
    uvloop.run(serve(arguments))


if __name__ == "__main__":
    main()
