"""Prometheus' text format and OpenMetrics, written line by line.

prometheus-client writes both, too, from a registry of objects: one for each sample, and with counters that
always end in _total, which TensorFlow Serving's do not. A large daemon has tens of thousands of samples, and
whoever writes them takes the processor from who answers requests; so here a line is one string operation on
labels that were put together once. What is written is read back with that library's parsers by the tests.
Pure; on any thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def wants_openmetrics(accept: str) -> bool:
    """Whether a request with this Accept header gets OpenMetrics: if it names that at all, as
    prometheus-client decides it."""
    return accepts(accept, "application/openmetrics-text")


def accepts(header: str, what: str) -> bool:
    """Whether an Accept or Accept-Encoding header names `what`, and not to refuse it."""
    return any(
        part.split(";", 1)[0].strip().lower() == what and not _refused(part) for part in header.split(",")
    )


def _refused(part: str) -> bool:
    return any(option.strip() in ("q=0", "q=0.0", "q=0.00", "q=0.000") for option in part.split(";")[1:])


def escaped(text: str) -> str:
    """A label's value."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def labels(**values: object) -> str:
    """Labels as they stand between the braces."""
    return ",".join(f'{name}="{escaped(str(value))}"' for name, value in values.items())


def number(value: float) -> str:
    """A sample's value."""
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


@dataclass(frozen=True)
class Bounds:
    """Upper ends of buckets, in the unit in which they are counted, and as both formats write them."""

    counted: tuple[float, ...]
    text: tuple[str, ...]
    openmetrics: tuple[str, ...]

    @staticmethod
    def of(bounds: Sequence[float], *, counted_per_unit: float = 1.0) -> Bounds:
        """`counted_per_unit`: 1e6 for seconds that are counted as microseconds."""
        return Bounds(
            tuple(bound * counted_per_unit for bound in bounds),
            tuple(number(float(bound)).removesuffix(".0") for bound in bounds),
            tuple(number(float(bound)) for bound in bounds),
        )

    @staticmethod
    def of_rows(bounds: Sequence[int]) -> Bounds:
        """Of whole numbers that are counted to 1 %. A bucket of those ends within the next 1 % above a bound,
        so what is just the bound, as batch sizes are, is below it."""
        return Bounds(
            tuple(bound * (1 + 1 / 128) for bound in bounds),
            tuple(str(bound) for bound in bounds),
            tuple(number(float(bound)) for bound in bounds),
        )

    @staticmethod
    def exponential(first: float, factor: float, how_many: int) -> Bounds:
        """As TensorFlow's monitoring::Buckets::Exponential has them and its exporter writes them: with six
        digits."""
        bounds, bound = [], first
        for _ in range(how_many):
            bounds.append(bound)
            bound *= factor
        text = tuple(f"{bound:g}" for bound in bounds)
        return Bounds(tuple(bounds), text, tuple(number(float(t)) for t in text))


class Exposition:
    """A text in the making. `family` begins one, and the lines after it are that family's.

    `only`: the families that are wanted, by their names or those of their samples; empty: all of them."""

    def __init__(self, *, openmetrics: bool, only: Collection[str] = ()) -> None:
        self.openmetrics = openmetrics
        self._only = frozenset(only)
        self._parts: list[str] = []
        self._name = ""

    def family(self, name: str, kind: str, text: str) -> bool:
        """Begins a family; `name` is that of its samples, a counter's with _total if it has that. False:
        nobody wants it, and nothing may be written to it."""
        family = name
        if self.openmetrics and kind == "counter":
            # There a counter's samples end with _total or it is none; TensorFlow Serving's do not.
            kind, family = (
                ("counter", name.removesuffix("_total")) if name.endswith("_total") else ("unknown", name)
            )
        if self._only and not self._only & {
            name,
            family,
            *((f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else ()),
        }:
            return False
        self._name = name
        self._parts.append(f"# HELP {family} {text}\n# TYPE {family} {kind}\n")
        return True

    def sample(self, labels_text: str, value: float) -> None:
        """A counter's or a gauge's line."""
        self._parts.append(f"{self._name}{{{labels_text}}} {number(value)}\n")

    def histogram(
        self, labels_text: str, bounds: Bounds, counts: Sequence[int], count: int, sum_: float
    ) -> None:
        """The lines of one histogram. `counts`: up to each bound."""
        name = self._name
        comma = "," if labels_text else ""
        ends = bounds.openmetrics if self.openmetrics else bounds.text
        head = f'{name}_bucket{{{labels_text}{comma}le="'
        lines = [f'{head}{end}"}} {so_many}\n' for end, so_many in zip(ends, counts, strict=True)]
        lines.append(
            f'{head}+Inf"}} {count}\n{name}_sum{{{labels_text}}} {number(sum_)}\n'
            f"{name}_count{{{labels_text}}} {count}\n"
        )
        self._parts.append("".join(lines))

    def bytes(self) -> bytes:
        return ("".join(self._parts) + ("# EOF\n" if self.openmetrics else "")).encode()
