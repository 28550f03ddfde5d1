"""Latency over time as a picture: what every switch did to both models. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.bench.switch_analysis import quantile
from fastserve.bench.switch_result import RunFound
from fastserve.bench.switch_trace import Recording, Switch, Trace
from fastserve.errors import FastServeError

_PANEL_INCHES = 2.3
_WIDTH_INCHES = 15.0
_DPI = 90
# Colour, and what a point stands for: a p99.9 needs more requests than a tenth of a second has.
_LINES = {
    "max": ("#c0392b", 1.0, 100_000_000),
    "p99.9": ("#e67e22", 0.999, 1_000_000_000),
    "p99": ("#2980b9", 0.99, 100_000_000),
    "p50": ("#2c3e50", 0.5, 100_000_000),
}
_EVENTS = (("appeared", "#7f8c8d", ":"), ("published", "#27ae60", "--"), ("old version gone", "#8e44ad", "-"))

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class PlotError(FastServeError):
    """There is no matplotlib."""


@dataclass(frozen=True)
class Line:
    """at_s: the bins' begins; values: milliseconds, nan where nothing was due."""

    at_s: Floats
    values: Floats


@dataclass(frozen=True)
class Series:
    """One model's latencies, by name of a line. failed_s: when requests were due that failed."""

    lines: dict[str, Line]
    failed_s: Floats


def series(trace: Trace, begin_ns: int) -> Series:
    """The latencies of a trace by when requests were due, from begin_ns on."""
    records = trace.records[np.argsort(trace.records["due_ns"], kind="stable")]
    good = records[records["failure"] == 0]
    at_ns = good["due_ns"] - begin_ns
    lines = {name: line(at_ns, good["took_ns"], share, bin_ns) for name, (_, share, bin_ns) in _LINES.items()}
    return Series(lines, (records["due_ns"][records["failure"] != 0] - begin_ns) / 1e9)


def line(at_ns: Integers, took_ns: Integers, share: float, bin_ns: int) -> Line:
    """A quantile in each bin. at_ns: rising."""
    bins = at_ns // bin_ns
    count = int(bins[-1]) + 1 if len(bins) else 0
    edges = np.searchsorted(bins, np.arange(count + 1))
    values: Floats = np.full(count, np.nan)
    for i in range(count):
        took: Integers = np.sort(took_ns[edges[i] : edges[i + 1]])
        if len(took):
            values[i] = quantile(took, share) / 1e6
    at_s: Floats = np.arange(count, dtype=np.float64) * (bin_ns / 1e9)
    return Line(at_s, values)


def begin_of(recording: Recording) -> int:
    return min(int(trace.records["due_ns"].min(initial=2**62)) for trace in recording.traces)


@dataclass(frozen=True)
class Panels:
    """A run, ready to be drawn: recordings are large, and not kept."""

    run: RunFound
    models: Sequence[tuple[str, Series]]
    switches: Sequence[Switch]
    begin_ns: int


def panels_of(run: RunFound, recording: Recording) -> Panels:
    begin_ns = begin_of(recording)
    models = [(trace.target, series(trace, begin_ns)) for trace in recording.traces]
    return Panels(run, models, recording.switches, begin_ns)


def plot(path: Path, runs: Sequence[Panels]) -> None:
    """Writes a PNG with a panel for each model of each run. Raises PlotError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ImportError:
        raise PlotError("a plot needs matplotlib: pip install 'fastserve[bench]'") from None
    count = sum(len(run.models) for run in runs)
    figure = Figure(figsize=(_WIDTH_INCHES, _PANEL_INCHES * count + 0.7), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(count, 1, squeeze=False)[:, 0])
    for run in runs:
        for target, lines in run.models:
            axis = next(axes)
            _panel(axis, run, target, lines)
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_minor_locator(NullLocator())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axis: Any, run: Panels, target: str, lines: Series) -> None:
    for i, switch in enumerate(run.switches):
        times = [
            (at_ns - run.begin_ns) / 1e9
            for at_ns in (switch.appeared_ns, switch.published_ns, switch.gone_ns, switch.until_ns)
        ]
        axis.axvspan(times[0], times[3], color="#f4d03f", alpha=0.22, lw=0, label=None if i else "a window")
        for (name, color, style), at_s in zip(_EVENTS, times[:3], strict=True):
            axis.axvline(at_s, color=color, ls=style, lw=0.8, label=None if i else name)
    # The greatest last: where few requests fall into a bin, lines cover each other.
    for name, (color, _, bin_ns) in reversed(_LINES.items()):
        one = lines.lines[name]
        axis.plot(one.at_s + bin_ns / 2e9, one.values, color=color, lw=0.9, ds="steps-mid", label=name)
    if len(lines.failed_s):
        top = axis.get_xaxis_transform()  # a place in the axis, whatever its scale
        axis.plot(
            lines.failed_s, np.full(len(lines.failed_s), 0.95), "kx", ms=5, transform=top, label="failed"
        )
    found = next(one for one in run.run.targets if one.target == target)
    if found.bars is not None:
        axis.axhline(found.bars.max_most, color="#c0392b", lw=0.7, ls=(0, (6, 4)), label="steady max + 5 ms")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlim(0, max(lines.lines["max"].at_s[-1:].max(initial=1.0), 1.0))
    axis.set_ylabel("ms")
    axis.grid(axis="y", which="major", lw=0.4, alpha=0.6)
    what = "the model that is switched" if target == "model" else "the model beside it"
    axis.set_title(f"{run.run.name}: {what}, {found.rate:,.0f} requests/s", loc="left", fontsize=10)
    axis.set_xlabel("seconds", fontsize=8, labelpad=1)
    axis.tick_params(labelsize=8)
