"""Runs of the model for a profile: traced and untraced in turn, so that a machine that slows down favours
neither.

Of a number of runs the fastest eighth counts, and of that the mean: what disturbs a run only makes it longer,
and means, unlike medians, add up.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastserve._native.runtime import Inputs, Model
from fastserve.workshop.profiling.steps import Step, read_step
from fastserve.workshop.profiling.values import BatchProfile, OpCost

T = TypeVar("T")

_ROUNDS = (8, 120)
# Of all runs, the fastest of so many count.
_COUNTED = 8
# Runs of one kind before another's turn: the first finds caches that the other has filled, and does not
# count.
_TURN = 3


@dataclass(frozen=True)
class Timed:
    """One batch size, and its traced run that took the middle of the times that count."""

    profile: BatchProfile
    step: Step


def time_ops(
    daemon: Model,
    traced: Model,
    signature: str,
    inputs: Inputs,
    rows: int,
    seconds: float,
    labels: Mapping[str, str],
    on_round: Callable[[float], None],
    *,
    devices: bool,
) -> Timed:
    """`daemon`: as the daemon runs it; `traced`: with the executor that can be traced, or the same again.
    `seconds`: about how long this may take. `on_round` is told the share that is done."""
    for model in (daemon, traced):
        model.time(signature, inputs, repeats=2)
    read_step(*traced.trace(signature, inputs, devices=devices))
    one_us = max(daemon.time(signature, inputs)[0], traced.time(signature, inputs)[0])
    least, most = _ROUNDS
    rounds = max(least, min(most, int(seconds * 1e6 / (one_us * 3 * _TURN))))
    daemon_us: list[float] = []
    same_us: list[float] = []
    told: list[tuple[bytes, int, int]] = []

    def untraced(model: Model, times_us: list[float]) -> None:
        times_us.extend(model.time(signature, inputs, repeats=_TURN)[1:])

    def with_trace() -> None:
        traced.time(signature, inputs)
        for _ in range(_TURN - 1):
            told.append(traced.trace(signature, inputs, devices=devices))

    turns = [lambda: untraced(daemon, daemon_us), lambda: untraced(traced, same_us), with_trace]
    for done in range(rounds):
        # Another one first each time: on a busy machine it is the later ones that lose the processor.
        for turn in range(len(turns)):
            turns[(done + turn) % len(turns)]()
        on_round((done + 1) / rounds)
    # Read when all is over: it takes longer than many a run.
    steps = [read_step(*one) for one in told]
    counted = _fastest(steps, lambda step: step.ops_ns)
    profile = BatchProfile(
        rows=rows,
        rounds=len(steps),
        daemon_us=statistics.fmean(_fastest(daemon_us, float)),
        same_us=statistics.fmean(_fastest(same_us, float)),
        wall_us=_mean_us(counted, lambda step: step.wall_ns),
        before_us=_mean_us(counted, lambda step: step.before_ns),
        ops_us=_mean_us(counted, lambda step: step.ops_ns),
        between_us=_mean_us(counted, lambda step: step.between_ns),
        after_us=_mean_us(counted, lambda step: step.after_ns),
        ops=costs_of(counted, labels),
    )
    return Timed(profile, counted[len(counted) // 2])


def time_runs(
    model: Model,
    signature: str,
    samples: Sequence[Inputs],
    seconds: float,
    on_round: Callable[[float], None] = lambda share: None,
    *,
    compiled: bool = False,
) -> list[float]:
    """What an untraced run takes with each of `samples`, in microseconds: measured in turn, as time_ops
    does."""
    took: list[list[float]] = [[] for _ in samples]
    once_us = 0.0
    for inputs in samples:
        once_us += model.time(signature, inputs, compiled=compiled, repeats=_TURN)[-1]
    least, most = _ROUNDS
    rounds = max(least, min(most, int(seconds * 1e6 / (once_us * _TURN))))
    for done in range(rounds):
        for turn in range(len(samples)):
            place = (done + turn) % len(samples)
            times = model.time(signature, samples[place], compiled=compiled, repeats=_TURN)
            took[place].extend(times[1:])
        on_round((done + 1) / rounds)
    return [statistics.fmean(_fastest(times, float)) for times in took]


def costs_of(steps: Sequence[Step], labels: Mapping[str, str]) -> tuple[OpCost, ...]:
    """By node, the dearest first: mean times over the steps, and the most memory in any of them."""
    own: dict[str, int] = {}
    runs: dict[str, int] = {}
    output: dict[str, int] = {}
    peak: dict[str, int] = {}
    types: dict[str, str] = {}
    for step in steps:
        output_now: dict[str, int] = {}
        for op in step.ops:
            own[op.node] = own.get(op.node, 0) + op.own_ns
            runs[op.node] = runs.get(op.node, 0) + 1
            output_now[op.node] = output_now.get(op.node, 0) + op.output_bytes
            peak[op.node] = max(peak.get(op.node, 0), op.peak_bytes)
            types[op.node] = op.op or types.get(op.node, "")
        for node, size in output_now.items():
            output[node] = max(output.get(node, 0), size)
    made = [
        OpCost(
            node=node,
            label=labels.get(node, node),
            op=types[node],
            runs=max(1, round(runs[node] / len(steps))),
            own_us=total / len(steps) / 1e3,
            output_bytes=output[node],
            peak_bytes=peak[node],
        )
        for node, total in own.items()
    ]
    return tuple(sorted(made, key=lambda cost: -cost.own_us))


def _fastest(values: Sequence[T], key: Callable[[T], float]) -> list[T]:
    return sorted(values, key=key)[: max(1, len(values) // _COUNTED)]


def _mean_us(steps: Sequence[Step], of: Callable[[Step], int]) -> float:
    return statistics.fmean(map(of, steps)) / 1e3
