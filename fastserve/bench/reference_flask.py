"""A Flask server with TensorFlow behind gunicorn, as many teams deploy it: what FastServe is compared with.

    python -m fastserve.bench.reference_flask --model ranker --saved-model /models/ranker/1

TensorFlow Serving's REST predict, in rows ("instances") and in columns ("inputs"). One worker process for
each processor, each with the model and some threads. Each worker prints "ready ADDRESS WORKERS".
"""

from __future__ import annotations

import argparse
import base64
import os
import socket
from typing import Any

import flask
from gunicorn.app.base import BaseApplication


def make_app(model: str, saved_model: str, signature: str) -> flask.Flask:
    """The application, with the model loaded."""
    # Not before the worker has been forked: TensorFlow's threads do not survive that.
    import tensorflow as tf

    loaded = tf.saved_model.load(saved_model)
    run = loaded.signatures[signature]
    specs = run.structured_input_signature[1]
    app = flask.Flask(__name__)
    app.extensions["model"] = loaded  # kept: the signature holds its variables weakly

    @app.post(f"/v1/models/{model}:predict")
    def predict() -> Any:
        body = flask.request.get_json()
        rows = body.get("instances")
        try:
            columns = body["inputs"] if rows is None else _columns(rows, list(specs))
            if not isinstance(columns, dict):
                columns = {next(iter(specs)): columns}
            inputs = {name: tf.constant(_plain(value), specs[name].dtype) for name, value in columns.items()}
            outputs = {name: _json(tensor.numpy()) for name, tensor in run(**inputs).items()}
        except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}, 400
        if rows is None:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {
            "predictions": [
                dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)
            ]
        }

    @app.get(f"/v1/models/{model}")
    def status() -> Any:
        return {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}

    return app


def _columns(rows: list[Any], names: list[str]) -> dict[str, Any]:
    if rows and isinstance(rows[0], dict) and "b64" not in rows[0]:
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {names[0]: rows}


def _plain(value: Any) -> Any:
    """Lists as they are; {"b64": ...} as bytes."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return [_plain(item) for item in value]
    return value


def _json(array: Any) -> Any:
    if array.dtype == object:
        return [_json(item) if hasattr(item, "dtype") else item.decode() for item in array]
    return array.tolist()


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, with its settings from the command line."""

    def __init__(self, arguments: argparse.Namespace, listener: socket.socket) -> None:
        self._arguments = arguments
        self._listener = listener
        super().__init__()

    def load_config(self) -> None:
        arguments = self._arguments
        host, port = self._listener.getsockname()[:2]

        def loaded(worker: Any) -> None:
            print(f"ready {host}:{port} {arguments.workers}", flush=True)

        settings = {
            "bind": f"fd://{self._listener.fileno()}",
            "workers": arguments.workers,
            "threads": arguments.threads,
            "worker_class": "gthread",
            "keepalive": 75,
            "timeout": 120,
            "graceful_timeout": 2,
            "loglevel": "warning",
            "post_worker_init": loaded,
        }
        for key, value in settings.items():
            self.cfg.set(key, value)

    def load(self) -> flask.Flask:
        return make_app(self._arguments.model, self._arguments.saved_model, self._arguments.signature)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="the name it is served under")
    parser.add_argument("--saved-model", required=True, help="a directory that holds saved_model.pb")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=4, help="of each worker")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=2048)
    Server(arguments, listener).run()


if __name__ == "__main__":
    main()
