"""The loads of a workload as points: each with a label that is the same wherever that load is measured."""

from __future__ import annotations

from collections.abc import Mapping

from fastserve.bench.result import Point
from fastserve.bench.workload import Closed, Load, Open, Replay, Slo


def closed_point(closed: Closed) -> Point:
    return Point(
        label=f"closed {closed.connections} x {closed.in_flight}",
        kind="closed",
        connections=closed.connections,
        in_flight=closed.in_flight,
    )


def open_points(load: Open) -> list[Point]:
    rates = [
        Point(
            label=f"open {rate:,.10g}/s{_arrivals(load.arrivals)}",
            kind="open",
            connections=load.connections,
            rate=rate,
            arrivals=load.arrivals,
        )
        for rate in load.rates
    ]
    whose = "its own highest rate" if load.of == "each" else "the slowest's highest rate"
    return rates + [
        Point(
            label=f"open {fraction:.4g} of {whose}{_arrivals(load.arrivals)}",
            kind="open",
            connections=load.connections,
            fraction=fraction,
            of=load.of,
            arrivals=load.arrivals,
        )
        for fraction in load.fractions
    ]


def slo_point(slo: Slo) -> Point:
    name, _, bound_ms = slo.objective
    return Point(
        label=f"highest rate with {quantile_label(name)} <= {bound_ms:g} ms{_arrivals(slo.arrivals)}",
        kind="slo",
        connections=slo.connections,
        arrivals=slo.arrivals,
    )


def replay_point(replay: Replay) -> Point:
    return Point(label=f"replay at {replay.speed:g}x", kind="replay", connections=replay.connections)


def quantile_label(name: str) -> str:
    return "p99.9" if name == "p999" else name


def _arrivals(arrivals: str) -> str:
    return "" if arrivals == "poisson" else f", {arrivals} arrivals"


def offered(point: Point, highest: Mapping[str, float], target: str) -> float:
    """The rate of an open loop's point for a target. highest: of each target in closed loop."""
    if point.rate:
        return point.rate
    return point.fraction * (highest[target] if point.of == "each" else min(highest.values()))


def all_points(load: Load, replay: Replay | None) -> list[Point]:
    """Every point of a workload, in the order in which they are measured."""
    points = [closed_point(closed) for closed in load.closed]
    points += open_points(load.open) if load.open else []
    points += [slo_point(load.slo)] if load.slo else []
    return points + ([replay_point(replay)] if replay else [])
