"""Figures as `fastserve top` has them: short, with their unit, in the same words as the live page."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "\u2013"
_BARS = "▁▂▃▄▅▆▇█"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def amount(value: float | None) -> str:
    """A count or a rate, to three digits: 0, 0.4, 12.5, 840, 12.4 k, 1.20 M."""
    if value is None or not value >= 0:
        return NOTHING
    if value == 0:
        return "0"
    if value < 0.05:
        return "<0.1"
    if value < 99.95:
        return f"{value:.0f}" if value % 1 == 0 else f"{value:.1f}"
    if value < 999.5:
        return f"{value:.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6)):
        if value < 999.5 * scale:
            return f"{_three(value / scale)} {unit}"
    return f"{_three(value / 1e9)} G"


def latency(us: float | None) -> str:
    """A time in microseconds: 8.4 µs, 840 µs, 1.24 ms, 12.4 s."""
    if us is None or not us >= 0:
        return NOTHING
    if us < 999.5:
        return f"{us:.1f} µs" if us < 9.95 else f"{us:.0f} µs"
    if us < 999.5e3:
        return f"{_three(us / 1e3)} ms"
    return f"{_three(us / 1e6)} s"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None or not value >= 0:
        return NOTHING
    unit = 0
    while value >= 1023.5 and unit < len(_BYTES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_BYTES[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_BYTES[unit]}"


def duration(s: float | None) -> str:
    """How long: 12 ms, 0.8 s, 42 s, 3 min 12 s, 3 h 12 min, 4 d 3 h."""
    if s is None or not s >= 0:
        return NOTHING
    if 0 < s < 0.1:
        return f"{s * 1000:.1f} ms" if s < 0.01 else f"{s * 1000:.0f} ms"
    if s < 10:
        return f"{s:.1f} s"
    whole = int(s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last values as a line of blocks, the highest full; several share a block when there are too many to
    see, and the highest of them counts. A gap where there was nothing to measure."""
    if width <= 0 or not values:
        return " " * max(width, 0)
    share = max(1, math.ceil(len(values) / width))
    blocks = [values[max(0, end - share) : end] for end in range(len(values), 0, -share)][:width][::-1]
    highest = [max((v for v in block if v is not None), default=None) for block in blocks]
    top = max((v for v in highest if v is not None), default=0.0)
    text = "".join(
        " " if v is None else _BARS[min(len(_BARS) - 1, round(v / top * (len(_BARS) - 1)) if top > 0 else 0)]
        for v in highest
    )
    return text.rjust(width)


def bar(share: float, width: int) -> str:
    """How full: ████░░░░"""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
