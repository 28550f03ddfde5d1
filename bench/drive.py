"""Sends the recorded requests through the native generator, and refuses a run that was not answered well.

The generator checks every reply's status and length, so an error cannot pass for an answer; the cases compare
the server's own counters as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastserve._native.load import LoadResult
from fastserve._native.load import run as generate
from fastserve.bench.wire import PREDICT_PATH

TIMEOUT_S = 30.0


class DriveError(RuntimeError):
    """Not every request was answered well."""


@dataclass(frozen=True)
class Body:
    """A recorded request: a file with one PredictRequest; a good reply's message has `reply_bytes` bytes."""

    path: Path
    rows: int
    reply_bytes: int

    @cached_property
    def message(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class Answered:
    """What one run saw; all of it was answered well."""

    result: LoadResult

    @property
    def done(self) -> int:
        """Of the window; the warm-up's are not counted."""
        return self.result.done

    @property
    def per_s(self) -> float:
        return self.result.rate

    def quantile_us(self, quantile: float) -> float:
        return self.result.latency.value_at(quantile) / 1000.0


def drive(
    port: int,
    bodies: Sequence[Body],
    *,
    connections: int,
    in_flight: int = 0,
    rate: float = 0.0,
    seconds: float = 0.0,
    requests: int = 0,
    warmup_s: float = 0.5,
    echo: bool = False,
) -> Answered:
    """Sends `bodies` in turn: closed loop with `in_flight` on each connection, or open loop at `rate` a
    second, for `seconds` after the warm-up, or `requests` of them. echo: the replies are the requests.

    Raises DriveError when a request fails, in the window or in its warm-up, and LoadError when there is no
    connection.
    """
    result = generate(
        ("127.0.0.1", port),
        [body.message for body in bodies],
        path=PREDICT_PATH,
        authority=f"127.0.0.1:{port}",
        connections=connections,
        in_flight=in_flight,
        rate=rate,
        arrivals="constant",
        warmup_s=warmup_s,
        duration_s=seconds,
        requests=requests,
        interval_s=0.0,
        timeout_s=TIMEOUT_S,
        reply_bytes=[len(body.message) if echo else body.reply_bytes for body in bodies],
    )
    if result.failed or result.unanswered or result.first_error or not result.done:
        failed = ", ".join(f"{count} {kind}" for kind, count in result.failed.items()) or "none"
        raise DriveError(
            f"{result.done} of {result.sent} requests were answered well, {result.unanswered} not at all; "
            f"failed: {failed}; the first: {result.first_error or 'none'}"
        )
    return Answered(result)
