"""The lines of a report's table, the same on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastserve.bench.bootstrap import QUANTILES, mean
from fastserve.bench.result import Run, Window
from fastserve.bench.units import bytes_text, rate_text, time_text, value_text

_LEAST_ABOVE = 1.0  # requests above a quantile in each window


@dataclass(frozen=True)
class Row:
    """One target at one point. cells: offered, answers, p50, p90, p99, p99.9, max, CPU, memory, failed."""

    point: str
    target: str
    cells: tuple[str, ...]


def rows(run: Run) -> Iterator[Row]:
    """In the order in which points were measured."""
    for point in run.points:
        for target in run.targets:
            windows = run.rounds_of(target.name, point.label)
            windows = [window for window in windows if window.round >= 0]
            if windows:
                yield Row(point.label, target.name, _cells(windows))


def _cells(windows: Sequence[Window]) -> tuple[str, ...]:
    offered = sum(window.offered for window in windows) / len(windows)
    times = [_quantile(windows, name, share) for name, share in QUANTILES.items()]
    cpu = mean(windows, "cpu")
    memory = max((window.rss_bytes or 0 for window in windows), default=0)
    return (
        rate_text(offered) if offered else "",
        _spread(windows),
        *times,
        time_text(max(window.latency.max_ns for window in windows)),
        "" if math.isnan(cpu) else value_text("cpu", cpu),
        bytes_text(memory) if memory else "",
        _failed(windows),
    )


def _quantile(windows: Sequence[Window], name: str, share: float) -> str:
    """A quantile, where a window has the requests that it takes to speak of one."""
    least = min(window.done for window in windows)
    return value_text(name, mean(windows, name)) if least * (1 - share) >= _LEAST_ABOVE else "-"


def _spread(windows: Sequence[Window]) -> str:
    """The mean rate and, of several rounds, how far they are from it."""
    value = mean(windows, "rate")
    if math.isnan(value):
        return rate_text(0.0)
    away = max(abs(window.rate / value - 1) for window in windows)
    return rate_text(value) + (f" ± {away:.0%}" if len(windows) > 1 else "")


def _failed(windows: Sequence[Window]) -> str:
    lost = sum(sum(window.failed.values()) + window.unanswered for window in windows)
    sent = sum(window.sent for window in windows)
    return f"{lost:,} ({lost / sent:.2%})" if lost else "0"


def base_target(run: Run) -> str | None:
    """Whom the others are compared with: the first that is not FastServe, or else the first; None alone."""
    if len(run.targets) < 2:
        return None
    return next((info.name for info in run.targets if info.kind != "fastserve"), run.targets[0].name)
