"""Requests run on a SavedModel in a process like the one that will serve it: see run_requests."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastserve.config import TensorFlow
from fastserve.environment import child_environment, tensorflow_dir
from fastserve.offline.tensors import Tensor, from_proto
from fastserve.protos import message
from fastserve.savedmodel.tfrecord import read_records, write_records
from fastserve.workshop.child import ChildDied, ask
from fastserve.workshop.errors import WorkshopError

_MODULE = "fastserve.workshop.run_requests"


class RunFailed(Exception):
    """`stage`: "library", "open" or "run"; `request` counts from 0, `code` is a gRPC status name."""

    def __init__(self, stage: str, request: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.stage = stage
        self.request = request
        self.code = code
        self.message = message


def run_requests(
    path: Path, requests: Sequence[bytes], op_libraries: Sequence[str] = ()
) -> list[dict[str, Tensor]]:
    """The answers to `requests`, PredictionLogs of Predict, by the SavedModel in `path`: outputs by alias.

    RunFailed: TensorFlow refused something. WorkshopError: it crashed, or is not there.
    """
    settings = TensorFlow(device="cpu", op_libraries=tuple(op_libraries))
    with tempfile.TemporaryDirectory(prefix="fastserve-workshop-") as folder:
        asked, answers = Path(folder, "requests"), Path(folder, "replies")
        with open(asked, "wb") as file:
            write_records(file, requests)
        failed = _run(
            settings,
            {
                "path": str(path),
                "library_dir": tensorflow_dir(settings),
                "op_libraries": list(op_libraries),
                "requests": str(asked),
                "replies": str(answers),
            },
        )
        if failed:
            raise RunFailed(failed["stage"], failed["request"], failed["code"], failed["message"])
        return [_outputs(record) for record in read_records(answers)]


def _run(settings: TensorFlow, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        said = ask(_MODULE, child_environment(settings), json.dumps(asked).encode())
    except ChildDied as died:
        raise WorkshopError(
            f"the process that ran the exported model {died.how}, as the one that serves it would: "
            f"{died.said or 'it said nothing'}"
        ) from None
    failed: dict[str, Any] = json.loads(said)
    return failed


def _outputs(record: bytes) -> dict[str, Tensor]:
    reply = message("tensorflow.serving.PredictResponse").FromString(record)
    return {alias: from_proto(proto.SerializeToString()) for alias, proto in reply.outputs.items()}
