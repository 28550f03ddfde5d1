"""Load on a daemon that is told to end in the middle of it: what became of every request.

The project's own generator, in closed loops on connections that stay open: each request follows the answer
to the one before. Once the daemon takes no more, a loop has nowhere to send the next one, so whatever was
sent was sent to a daemon that served, and must have been answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from predict_client import request

from fastserve._native.load import Check, LoadResult, Running, start

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_PATIENCE_S = 120.0
_LEAST = 500  # requests that each loop has answered before the end begins


def drained_under_load(
    model: str, grpc: tuple[str, int], http: tuple[str, int], stop: Callable[[], int]
) -> tuple[int, dict[str, LoadResult]]:
    """Predicts with half_plus_two over gRPC and REST while `stop` ends the daemon and returns its status.
    That, and what either loop says."""
    message = request(model, {"x": [1.0, 2.0]}).SerializeToString()
    loops = {
        "grpc": start(
            grpc,
            [message],
            path=PREDICT,
            authority=f"{grpc[0]}:{grpc[1]}",
            connections=4,
            in_flight=4,
            duration_s=_PATIENCE_S,
            check=Check("y", [[[2.5, 3.0]]], 0.0, 0.0),
        ),
        "rest": start(
            http,
            [json.dumps({"instances": [1.0, 2.0]}).encode()],
            protocol="http",
            path=f"/v1/models/{model}:predict",
            authority=f"{http[0]}:{http[1]}",
            connections=4,
            in_flight=1,
            duration_s=_PATIENCE_S,
        ),
    }
    for loop in loops.values():
        _wait_for(loop, _LEAST)
    status = stop()
    for loop in loops.values():
        loop.finish()
    return status, {name: loop.wait() for name, loop in loops.items()}


def lost(result: LoadResult) -> list[str]:
    """Why not every request was answered; nothing when all were."""
    wrong = [f"{count} failed: {kind} ({result.first_error})" for kind, count in result.failed.items()]
    if result.unanswered:
        wrong.append(f"{result.unanswered} were not answered")
    if result.sent != result.done:
        wrong.append(f"{result.sent} sent, {result.done} done")
    return wrong


def _wait_for(loop: Running, done: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while loop.read()["done"] < done:
        assert time.monotonic() < end and not loop.over(), loop.read()
        time.sleep(0.02)
