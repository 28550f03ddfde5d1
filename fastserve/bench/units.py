"""Figures for people: times, rates, sizes, ratios, each with its unit."""

from __future__ import annotations

import math

from fastserve.bench.bootstrap import Estimate

_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))


def time_text(nanoseconds: float) -> str:
    """ "12.3 ms": three digits."""
    if not math.isfinite(nanoseconds):
        return "-"
    for size, unit in _TIMES:
        if nanoseconds >= size * 0.9995:
            return f"{digits(nanoseconds / size)} {unit}"
    return "0 ns"


def time_tick(nanoseconds: float) -> str:
    """As time_text, without digits that say nothing: "10 ms"."""
    for size, unit in _TIMES:
        if nanoseconds >= size * 0.9995:
            return f"{nanoseconds / size:.4g} {unit}"
    return "0"


def number_tick(value: float) -> str:
    return f"{value:,.10g}"


def digits(value: float) -> str:
    """Three digits, more before the point: "1,234", "12.3", "0.123"."""
    if not math.isfinite(value):
        return "-"
    value = value if abs(value) >= 1000 else float(f"{value:.3g}")
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def rate_text(per_second: float) -> str:
    return f"{digits(per_second)}/s"


def bytes_text(count: float) -> str:
    """ "1.5 MiB"."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{digits(count / 1024**power)} {unit}"
    return f"{count:,.0f} B"


def value_text(statistic: str, value: float) -> str:
    """A value of bootstrap.STATISTICS."""
    if statistic == "rate":
        return rate_text(value)
    return time_text(value * 1e3) if statistic == "cpu" else time_text(value)


def ratio_text(ratio: Estimate) -> str:
    """ "1.52 (1.48 to 1.57)"; "1.52 (unsure)" where the interval says nothing."""
    if not math.isfinite(ratio.value):
        return "-"
    if ratio.high > 100 * ratio.low:
        return f"{ratio.value:.3g} (unsure)"
    return f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"
