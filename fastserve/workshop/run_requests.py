"""`python -m fastserve.workshop.run_requests`: runs requests on a SavedModel as the daemon would.

A process of its own, started by runs.py, in which there is no Python of TensorFlow's: ops and classes that
only the exporting process has are missing here, as they will be where the model is served. It is asked in
JSON (path, library_dir, op_libraries, requests, replies); `requests` is a file of PredictionLogs, as a
warm-up file is, and `replies` becomes one of PredictResponses. The answer is JSON, which says what failed: {}
is nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastserve._native.codec import decode_tensor, encode_tensor, view_tensor
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Model, Runtime, RuntimeFailure
from fastserve.config import TensorFlow
from fastserve.offline.session import session_config
from fastserve.offline.spec import servable_spec
from fastserve.protos import message
from fastserve.savedmodel import SavedModel, read
from fastserve.savedmodel.tfrecord import read_records, write_records
from fastserve.workshop.child import serve


def main() -> None:
    serve(lambda asked: json.dumps(_run(json.loads(asked))).encode())


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    """What failed: its stage, number of request, code and message."""
    try:
        runtime = Runtime(
            "tensorflow", library_dir=asked["library_dir"], op_libraries=tuple(asked["op_libraries"])
        )
    except RuntimeFailure as error:
        return _failed("library", 0, error)
    saved_model = read(asked["path"])
    try:
        model = runtime.open(ModelSpec(_spec(saved_model)))
    except RuntimeFailure as error:
        return _failed("open", 0, error)
    number = 0

    def replies() -> Iterator[bytes]:
        nonlocal number
        for record in read_records(asked["requests"]):
            yield _reply(saved_model, model, record)
            number += 1

    with open(asked["replies"], "wb") as file:
        try:
            write_records(file, replies())
        except RuntimeFailure as error:
            return _failed("run", number, error)
    return {}


def _failed(stage: str, number: int, error: RuntimeFailure) -> dict[str, Any]:
    return {"stage": stage, "request": number, "code": error.code, "message": error.message}


def _spec(saved_model: SavedModel) -> dict[str, Any]:
    # Every graph runs on this executor, the one for one thread is the faster one where it can.
    config = session_config(TensorFlow(device="cpu"), single_threaded=False)
    return servable_spec("exported", 1, saved_model.path, saved_model.tags, saved_model.signatures, config)


def _reply(saved_model: SavedModel, model: Model, record: bytes) -> bytes:
    request = message("tensorflow.serving.PredictionLog").FromString(record).predict_log.request
    signature = saved_model.signature(request.model_spec.signature_name)
    assert signature is not None
    inputs = []
    for port in signature.inputs:
        given = (
            request.inputs[port.alias].SerializeToString() if port.alias in request.inputs else port.default
        )
        assert given is not None
        view = view_tensor(given)
        inputs.append((view.dtype, view.dims, decode_tensor(given)))
    reply = message("tensorflow.serving.PredictResponse")()
    for port, output in zip(signature.outputs, model.run(signature.name, inputs), strict=True):
        reply.outputs[port.alias].ParseFromString(encode_tensor(output))
    data: bytes = reply.SerializeToString()
    return data


if __name__ == "__main__":
    main()
