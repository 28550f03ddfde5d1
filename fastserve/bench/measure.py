"""One window: one target under one load, through the native generator, and what the kernel says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastserve.bench.processes import busy_fraction, machine_s, usage
from fastserve.bench.requests import Log, Request
from fastserve.bench.result import Point, Window, latencies
from fastserve.bench.target import Protocol, Target
from fastserve.bench.wire import PREDICT_PATH, grpc_body, rest_body, rest_path

# fastserve._native.load.run, or what stands in for it in tests.
Generator = Callable[..., Any]

_BUSY_LOOK_S = 0.2
# Reading /proc costs milliseconds: a few times in a window are enough.
_SAMPLES = 8
_LEAST_SAMPLE_S = 0.1
_INTERVALS = 50
# HTTP/1.1 has one request at a time on each connection: fewer would make the requests wait, not the server.
_HTTP_CONNECTIONS = 64
_REPLAY_WARMUP = {"connections": 4, "in_flight": 1}


@dataclass(frozen=True)
class Bodies:
    """The requests of a workload, encoded for each protocol that a target speaks."""

    encoded: Mapping[Protocol, Sequence[bytes]]
    rows: Sequence[int]
    paths: Mapping[Protocol, str]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Least and greatest length in bytes."""
        return {
            protocol: (min(map(len, bodies)), max(map(len, bodies)))
            for protocol, bodies in self.encoded.items()
        }


def encode(requests: Sequence[Request], model: str, signature: str, protocols: set[Protocol]) -> Bodies:
    encoded: dict[Protocol, list[bytes]] = {}
    if "grpc" in protocols:
        encoded["grpc"] = [grpc_body(model, signature, request) for request in requests]
    if "http" in protocols:
        encoded["http"] = [rest_body(signature, request) for request in requests]
    paths: dict[Protocol, str] = {"grpc": PREDICT_PATH, "http": rest_path(model)}
    return Bodies(encoded, [request.rows for request in requests], paths)


@dataclass(frozen=True)
class Order:
    """What to measure. rate: of an open loop. seed: of the arrivals; the same for all targets of a round."""

    target: Target
    point: Point
    round: int
    seed: int
    window_s: float
    warmup_s: float
    timeout_s: float
    rate: float = 0.0
    log: Log | None = None


class Meter:
    """Measures windows, one after the other. began: time.monotonic() of the run's start.

    tick: called a few times a second with the seconds that the window has taken so far.
    """

    def __init__(
        self, generate: Generator, bodies: Bodies, began: float, tick: Callable[[float], None] | None = None
    ) -> None:
        self._generate = generate
        self._bodies = bodies
        self._began = began
        self._tick = tick

    def window(self, order: Order) -> Window:
        """Raises LoadError when no connection comes about."""
        busy = busy_fraction(_BUSY_LOOK_S)
        started = time.monotonic() - self._began
        if order.log is not None and order.warmup_s:
            self._run(order, {**_REPLAY_WARMUP, "duration_s": order.warmup_s}, None)
        watch = _Watch(order.target.pid, self._tick, max(_LEAST_SAMPLE_S, order.window_s / _SAMPLES))
        got = self._run(order, self._load(order), watch.look)
        rows = self._bodies.rows
        mean_rows = sum(done * rows[i] for i, done in enumerate(got.per_body_done)) / max(got.done, 1)
        return Window(
            target=order.target.name,
            point=order.point.label,
            round=order.round,
            started_s=round(started, 3),
            busy_before=round(busy, 4),
            offered=order.rate,
            sent=got.sent,
            done=got.done,
            failed=dict(got.failed),
            unanswered=got.unanswered,
            first_error=got.first_error,
            seconds=got.seconds,
            rate=got.rate,
            rows_rate=got.rate * mean_rows,
            latency=latencies(got.latency),
            intervals=[_interval(interval) for interval in got.intervals],
            bytes_in=got.bytes_in,
            bytes_out=got.bytes_out,
            cpu_s=watch.cpu_s(got.seconds),
            rss_bytes=watch.rss_bytes(),
            others=watch.others(),
            generator_cpu_s=got.cpu_s,
            behind_p99_ns=got.behind_ns.value_at(0.99),
            behind_max_ns=got.behind_ns.max,
            reconnects=got.reconnects,
        )

    def _load(self, order: Order) -> dict[str, Any]:
        point = order.point
        # HTTP/1.1 has as many in flight as connections.
        flat = order.target.protocol == "http"
        if order.log is not None:
            connections = max(point.connections, _HTTP_CONNECTIONS) if flat else point.connections
            return {"connections": connections, "times_us": order.log.at_us, "interval_s": _interval_s(order)}
        load: dict[str, Any] = {"warmup_s": order.warmup_s, "duration_s": order.window_s}
        load["interval_s"] = _interval_s(order)
        if point.kind == "closed":
            connections = point.connections * point.in_flight if flat else point.connections
            return load | {"connections": connections, "in_flight": 1 if flat else point.in_flight}
        connections = max(point.connections, _HTTP_CONNECTIONS) if flat else point.connections
        return load | {"connections": connections, "rate": order.rate, "arrivals": point.arrivals}

    def _run(self, order: Order, load: dict[str, Any], look: Callable[[Any], None] | None) -> Any:
        target = order.target
        headers = {"Content-Type": "application/json"} if target.protocol == "http" else {}
        return self._generate(
            target.address,
            self._bodies.encoded[target.protocol],
            protocol=target.protocol,
            path=self._bodies.paths[target.protocol],
            authority=target.authority,
            seed=order.seed,
            timeout_s=order.timeout_s,
            http_headers=headers,
            on_progress=look,
            **load,
        )


def _interval_s(order: Order) -> float:
    seconds = order.window_s
    if order.log is not None:
        seconds = max(1.0, float(order.log.at_us[-1]) / 1e6)
    return max(0.02, round(seconds / _INTERVALS, 2))


def _interval(interval: Any) -> tuple[float, int, int, int, float, float, float, float]:
    start_s, sent, done, failed, *times_ns = interval
    p50, p90, p99, most = (round(ns / 1e3, 1) for ns in times_ns)
    return (round(start_s, 3), sent, done, failed, p50, p90, p99, most)


@dataclass(frozen=True)
class _Sample:
    """Readings of one moment; all but the first are CPU seconds."""

    now_s: float
    server: float
    own: float
    machine: float
    in_use: float


class _Watch:
    """CPU time while the generator measures, from samples in its progress calls."""

    def __init__(self, pid: int | None, tick: Callable[[float], None] | None, every_s: float) -> None:
        self._pid = pid
        self._every_s = every_s
        self._tick = tick
        self._began = time.monotonic()
        self._samples: list[_Sample] = []

    def look(self, progress: Any) -> None:
        now = time.monotonic()
        if self._tick is not None:
            self._tick(now - self._began)
        if self._pid is None or not progress["measuring"]:
            return
        if not self._samples or now - self._samples[-1].now_s >= self._every_s:
            used = usage(self._pid)
            if used is not None:
                self._samples.append(_Sample(now, used.cpu_s, time.process_time(), *machine_s()))

    def cpu_s(self, seconds: float) -> float | None:
        """The server's in a window of so many seconds; None when it was not watched long enough to say."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        return round((last.server - first.server) / (last.now_s - first.now_s) * seconds, 4)

    def others(self) -> float | None:
        """How much of the machine neither the server nor this process used; None as above."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        ours = last.server - first.server + last.own - first.own
        share = (last.in_use - first.in_use - ours) / max(last.machine - first.machine, 0.01)
        return round(min(max(share, 0.0), 1.0), 4)

    def rss_bytes(self) -> int | None:
        used = usage(self._pid) if self._pid is not None else None
        return used.rss_bytes if used else None


def replay_log(log: Log, speed: float) -> Log:
    """`log` as the generator takes it: int64 microseconds, contiguous, `speed` times as fast."""
    return Log(log.requests, np.ascontiguousarray(log.faster(speed).at_us, np.int64))
