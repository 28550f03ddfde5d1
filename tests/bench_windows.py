"""Windows as the generator would have measured them, with latencies that a test plants."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastserve._native.load import Histogram, Interval, LoadResult
from fastserve.bench.result import SCHEMA, Point, Result, Run, Sent, TargetInfo, Window, latencies

CLOSED = Point(label="closed 4 x 4", kind="closed", connections=4, in_flight=4)
OPEN = Point(label="open 0.5 of its own highest rate", kind="open", connections=8, fraction=0.5, of="each")


def load_result(
    latencies_ns: np.ndarray[Any, Any], seconds: float, rate: float, **changes: Any
) -> LoadResult:
    """What the generator returns for these latencies, spread evenly over the window."""
    histogram, behind = Histogram(), Histogram()
    for value in latencies_ns:
        histogram.record(int(value))
    behind.record(1000)
    parts = np.array_split(latencies_ns, 20)
    intervals = [_interval(i * seconds / 20, part) for i, part in enumerate(parts) if len(part)]
    fields: dict[str, Any] = {
        "sent": len(latencies_ns),
        "done": len(latencies_ns),
        "failed": {},
        "unanswered": 0,
        "per_body_done": [len(latencies_ns)],
        "seconds": seconds,
        "rate": rate,
        "latency": histogram,
        "intervals": intervals,
        "cpu_s": 0.01,
        "bytes_in": 1000,
        "bytes_out": 2000,
        "behind_ns": behind,
        "reconnects": 0,
        "first_error": "",
    }
    return LoadResult(**{**fields, **changes})


def _interval(start_s: float, part: np.ndarray[Any, Any]) -> Interval:
    quantiles = (int(np.quantile(part, q)) for q in (0.5, 0.9, 0.99, 1.0))
    return Interval(start_s, len(part), len(part), 0, *quantiles)


def window(
    target: str = "ours",
    round: int = 0,
    rate: float = 1000.0,
    mean_ms: float = 2.0,
    seed: int = 0,
    point: Point = CLOSED,
    requests: int = 2000,
    cpu_s: float | None = 0.5,
    failed: int = 0,
) -> Window:
    """Exponential latencies of this mean, above a tenth of it."""
    rng = np.random.default_rng([seed, round])
    values = (0.1 + 0.9 * rng.exponential(1.0, requests)) * mean_ms * 1e6
    got = load_result(values, 1.0, rate)
    return Window(
        target=target,
        point=point.label,
        round=round,
        started_s=float(round),
        busy_before=0.01,
        offered=0.0 if point.kind == "closed" else rate,
        sent=got.sent + failed,
        done=got.done,
        failed={"UNAVAILABLE": failed} if failed else {},
        unanswered=0,
        first_error="",
        seconds=1.0,
        rate=rate,
        rows_rate=rate,
        latency=latencies(got.latency),
        intervals=[(i[0], *i[1:4], *(ns / 1e3 for ns in i[4:])) for i in got.intervals],
        bytes_in=1,
        bytes_out=1,
        cpu_s=cpu_s,
        rss_bytes=1 << 20,
        others=0.0,
        generator_cpu_s=0.1,
        behind_p99_ns=1000,
        behind_max_ns=2000,
    )


def run_of(windows: list[Window], name: str = "dcn", kinds: dict[str, str] | None = None) -> Run:
    names = list(dict.fromkeys(window.target for window in windows))
    labels = {window.point for window in windows}
    return Run(
        name=name,
        title=f"{name} <one row>",
        model=name,
        signature="serving_default",
        requests=Sent(source="rows", count=4, rows=(1, 7), body_bytes={"grpc": (10, 2000)}, seed=1),
        window_s=1.0,
        warmup_s=0.1,
        rounds=1 + max(window.round for window in windows),
        targets=[_info(name, (kinds or {}).get(name, "address")) for name in names],
        points=[point for point in (CLOSED, OPEN) if point.label in labels],
        windows=windows,
    )


def _info(name: str, kind: str) -> TargetInfo:
    return TargetInfo(name=name, kind=kind, protocol="grpc", address="127.0.0.1:1")


def result_of(*runs: Run) -> Result:
    return Result(
        schema=SCHEMA,
        started="2026-01-01T00:00:00+00:00",
        seconds=60.0,
        command="fastserve bench run x.toml",
        machine={"processor": "A & B", "memory_bytes": 1 << 33},
        versions={"fastserve": "1"},
        revision="abc",
        runs=list(runs),
    )
