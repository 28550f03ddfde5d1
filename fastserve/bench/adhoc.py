"""Workloads without a file, from what the command line says."""

from __future__ import annotations

import os
from pathlib import Path

from fastserve.bench.runner import objective
from fastserve.bench.target import TargetError
from fastserve.bench.workload import About, Closed, Load, Open, Replay, Requests, Workload


def adhoc_workload(
    *,
    model: str,
    saved_model: str | None,
    signature: str,
    requests: Path | None,
    rows: str,
    rate: float | None,
    in_flight: int | None,
    slo: str | None,
    connections: int,
    duration_s: float,
    warmup_s: float,
    rounds: int,
) -> Workload:
    """One load on one server. Raises TargetError for what cannot be understood."""
    load = Load(window_s=duration_s, warmup_s=warmup_s, rounds=rounds)
    if slo is not None:
        try:
            found = objective(slo, connections)
        except ValueError as error:
            raise TargetError(f"--slo {slo}: {error}") from None
        load = Load(slo=found, window_s=duration_s, warmup_s=warmup_s, rounds=rounds)
    elif rate is not None:
        load = Load(
            open=Open(rates=(rate,), connections=connections),
            window_s=duration_s,
            warmup_s=warmup_s,
            rounds=rounds,
        )
    elif in_flight is not None:
        closed = (Closed(connections=connections, in_flight=in_flight),)
        load = Load(closed=closed, window_s=duration_s, warmup_s=warmup_s, rounds=rounds)
    source = Requests(rows=parse_rows(rows), count=64)
    if requests is not None:
        source = Requests(source="file", file=os.path.abspath(requests))
    return Workload(
        workload=About(
            name=model,
            model=model,
            saved_model=os.path.abspath(saved_model) if saved_model else "",
            signature=signature,
        ),
        requests=source,
        load=load,
    )


def parse_rows(text: str) -> int | tuple[int, ...]:
    """ "100" or "100:700". Raises TargetError."""
    low, colon, high = text.partition(":")
    try:
        span = (int(low), int(high)) if colon else (int(low), int(low))
    except ValueError:
        span = (0, 0)
    if not 1 <= span[0] <= span[1]:
        raise TargetError(f"--rows {text}: expected a number of rows, 1 or more, or LEAST:GREATEST")
    return span


def replay_workload(
    *,
    log: Path,
    model: str,
    saved_model: str | None,
    signature: str,
    speed: float,
    connections: int,
    rounds: int,
) -> Workload:
    """A recorded log on some servers."""
    file = os.path.abspath(log)
    return Workload(
        workload=About(
            name=f"{model} {log.stem}",
            model=model,
            saved_model=os.path.abspath(saved_model) if saved_model else "",
            signature=signature,
        ),
        requests=Requests(source="file", file=file),
        load=Load(rounds=rounds),
        replay=Replay(file=file, speed=speed, connections=connections),
    )
