"""Line charts as inline SVG: text stays text, colours come from the page, so that both follow its theme.

Coordinates are the chart's own; a viewBox scales it. Knows nothing of what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 14, 12, 46
_MOST_POINTS = 240

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Axis:
    """low and high are values; ticks are (value, text). place: what is drawn evenly, log10 say."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    place: Scale = float


@dataclass(frozen=True)
class Series:
    """points: (x, y) in rising x. color: 0 to 5, of the page's palette. dash: "" or an SVG dash pattern."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dash: str = ""
    markers: bool = False
    line: bool = True


def chart(title: str, x: Axis, y: Axis, series: Iterable[Series]) -> str:
    """One <svg>. title: for screen readers; headings are the page's."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    across = _scale(x, _LEFT, WIDTH - _RIGHT)
    up = _scale(y, HEIGHT - _BOTTOM, _TOP)
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value, text in x.ticks:
        at = f"{across(value):.1f}"
        parts.append(f'<path class="grid" d="M{at} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    for value, text in y.ticks:
        at = f"{up(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    parts.append(f'<path class="frame" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )
    for one in series:
        parts += _draw(one, across, up)
    return "".join([*parts, "</svg>"])


def _scale(axis: Axis, start: float, end: float) -> Scale:
    low, high = axis.place(axis.low), axis.place(axis.high)
    span = (high - low) or 1.0

    def scaled(value: float) -> float:
        inside = min(max(axis.place(value), low), high)
        return start + (inside - low) / span * (end - start)

    return scaled


def _draw(series: Series, across: Scale, up: Scale) -> list[str]:
    placed = simplified([(across(x), up(y)) for x, y in series.points])
    if not placed:
        return []
    parts = []
    label = f"<title>{escape(series.name)}</title>"
    if series.line and len(placed) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        parts.append(f'<path class="line c{series.color % 6}" d="{path}"{dash}>{label}</path>')
    if series.markers or len(placed) == 1:
        shape = _MARKERS[series.color % len(_MARKERS)]
        path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in placed)
        parts.append(f'<path class="mark c{series.color % 6}" d="{path}">{label}</path>')
    return parts


# A dot, a square, a diamond, a triangle, an upright bar, a lying one: told apart without colour.
_MARKERS = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "m-3 -3h6v6h-6z",
    "m0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "m0 -4.5l4.5 8h-9z",
    "m-1.5 -4.5h3v9h-3z",
    "m-4.5 -1.5h9v3h-9z",
)


def marker(color: int) -> str:
    """A legend's sign for a series."""
    shape = _MARKERS[color % len(_MARKERS)]
    return (
        '<svg class="key" viewBox="0 0 28 12" aria-hidden="true">'
        f'<path class="line c{color % 6}" d="M1 6H27"/>'
        f'<path class="mark c{color % 6}" d="M14 6{shape}"/></svg>'
    )


def simplified(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those that no one would miss at this size: closer than half a unit to a straight
    line through their neighbours; and never more than _MOST_POINTS."""
    kept = list(points)
    tolerance = 0.25
    while len(kept) > 2:
        fewer = _straightened(kept, tolerance)
        if len(fewer) <= _MOST_POINTS:
            return fewer
        kept, tolerance = fewer, tolerance * 2
    return kept


def _straightened(points: Sequence[tuple[float, float]], tolerance: float) -> list[tuple[float, float]]:
    """Douglas-Peucker, with a list for a stack."""
    keep = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        (x1, y1), (x2, y2) = points[first], points[last]
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        worst, at = tolerance, -1
        for i in range(first + 1, last):
            x, y = points[i]
            away = abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length
            if length == 1.0:
                away = max(away, math.hypot(x - x1, y - y1))
            if away > worst:
                worst, at = away, i
        if at >= 0:
            keep.add(at)
            spans += [(first, at), (at, last)]
    return [points[i] for i in sorted(keep)]


def log_axis(label: str, values: Iterable[float], text: Callable[[float], str]) -> Axis:
    """A logarithmic axis that holds all positive values, with ticks at 1, 2 and 5 or at powers of ten."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    low, high = low / 1.1, max(high * 1.1, low * 2)
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = [
        value
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
        if low <= (value := step * 10.0**power) <= high
    ]
    return Axis(label, low, high, [(value, text(value)) for value in ticks], math.log10)


def linear_axis(label: str, high: float, text: Callable[[float], str]) -> Axis:
    """From 0 to a little more than `high`, with some five ticks."""
    high = high if high > 0 else 1.0
    raw = high / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    ticks = [step * i for i in range(math.floor(high * 1.05 / step) + 1)]
    return Axis(label, 0.0, high * 1.05, [(value, text(value)) for value in ticks])
