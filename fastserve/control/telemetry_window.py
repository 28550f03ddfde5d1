"""What went on between two moments, from what had been counted at each: rates and percentiles.

Pure functions of two snapshots of the core's counters. A series whose counters have gone down is of another
core, and counts from nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from fastserve.monitor import values
from fastserve.monitor.exposition import Bounds

Key = tuple[str, int, str]


class Histogram(values.Histogram, Protocol):
    """Also what is done with two of them."""

    def quantiles(self, qs: Sequence[float]) -> Sequence[float]: ...

    def minus(self, other: Self) -> Self: ...

    def plus(self, other: Self) -> Self: ...


class Snapshot(Protocol):
    """Everything that had been counted at one moment."""

    @property
    def unresolved(self) -> values.Requests: ...

    @property
    def series(self) -> Sequence[Any]: ...


@dataclass
class Traffic:
    """Of some series, in so many seconds. Histograms are None while they are empty."""

    seconds: float
    requests: int = 0
    errors: int = 0
    rows: int = 0
    padding_rows: int = 0
    expired: int = 0
    cancelled: int = 0
    shed: int = 0
    waiting_rows: int = 0
    by_transport: Counter[str] = field(default_factory=Counter)
    latency: Any = None
    queue: Any = None
    compute: Any = None
    batch_rows: Any = None

    def add(self, other: Traffic) -> None:
        for name in ("requests", "errors", "rows", "padding_rows", "expired", "cancelled", "shed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.waiting_rows += other.waiting_rows
        self.by_transport.update(other.by_transport)
        for name in ("latency", "queue", "compute", "batch_rows"):
            setattr(self, name, together((getattr(self, name), getattr(other, name))))

    def per_s(self, count: float) -> float:
        return round(count / self.seconds, 3) if self.seconds > 0 else 0.0


@dataclass
class Window:
    """By model and version, by model, and in all."""

    versions: dict[tuple[str, int], Traffic]
    models: dict[str, Traffic]
    total: Traffic


def live_series(snapshot: Snapshot | None) -> dict[Key, Any]:
    """The series of versions that are there, by model, version and signature. What a version has counted goes
    to its model's series without one when it closes; see `sums`."""
    if snapshot is None:
        return {}
    return {(s.model, s.version, s.signature): s for s in snapshot.series if s.version is not None}


def sums(snapshot: Snapshot | None) -> dict[tuple[str, str], Any]:
    """What all versions of a model have counted, closed ones included, by model and signature. The difference
    of two of these is what went on, whatever has closed or was loaded anew in between."""
    found: dict[tuple[str, str], Any] = {}
    for series in snapshot.series if snapshot is not None else ():
        key = series.model, series.signature
        found[key] = found[key].plus(series) if key in found else series
    return found


def window(new: Snapshot | None, old: Snapshot | None, seconds: float) -> Window:
    """`old`: the moment that it began. None: nothing had been counted."""
    before, total = live_series(old), Traffic(seconds)
    versions: dict[tuple[str, int], Traffic] = defaultdict(lambda: Traffic(seconds))
    models: dict[str, Traffic] = defaultdict(lambda: Traffic(seconds))
    for key, series in live_series(new).items():
        model, version, _ = key
        versions[model, version].add(_series(series, before.get(key), seconds))
    earlier = sums(old)
    for (model, signature), series in sums(new).items():
        models[model].add(_series(series, earlier.get((model, signature)), seconds))
    for traffic in models.values():
        total.add(traffic)
    _add_unresolved(total, new, old)
    return Window(dict(versions), dict(models), total)


def _series(new: Any, old: Any, seconds: float) -> Traffic:
    if old is not None and _went_down(new, old):
        old = None
    traffic = Traffic(seconds, waiting_rows=new.waiting_rows)
    for name in ("rows", "batches", "padding_rows", "expired", "cancelled", "shed"):
        setattr(traffic, name, getattr(new, name) - (getattr(old, name) if old is not None else 0))
    for (_, transport, status), count in new.requests.items():
        more = count - (old.requests.get((_, transport, status), 0) if old is not None else 0)
        if more > 0:
            traffic.requests += more
            traffic.by_transport[transport] += more
            traffic.errors += more if status != "OK" else 0
    traffic.latency = together(
        since(histogram, old.latency.get(which) if old is not None else None)
        for which, histogram in new.latency.items()
    )
    for name in ("queue", "compute", "batch_rows"):
        setattr(traffic, name, since(getattr(new, name), getattr(old, name) if old is not None else None))
    return traffic


def _went_down(new: Any, old: Any) -> bool:
    return bool(new.rows < old.rows or sum(new.requests.values()) < sum(old.requests.values()))


def since(new: Any, old: Any) -> Any:
    """What a histogram has more than it had; None when that is nothing."""
    if new.count == (old.count if old is not None else 0):
        return None
    return new if old is None else new.minus(old)


def together(histograms: Iterable[Any]) -> Any:
    """One of all of them; None of none."""
    found = None
    for histogram in histograms:
        if histogram is not None:
            found = histogram if found is None else found.plus(histogram)
    return found


def _add_unresolved(total: Traffic, new: Snapshot | None, old: Snapshot | None) -> None:
    """Requests that were for no version are requests, too."""
    if new is None:
        return
    before: Mapping[Any, int] = old.unresolved if old is not None else {}
    if sum(before.values()) > sum(new.unresolved.values()):
        before = {}
    for key, count in new.unresolved.items():
        more = count - before.get(key, 0)
        if more > 0:
            total.requests += more
            total.errors += more if key[2] != "OK" else 0


_QUANTILES = (0.5, 0.9, 0.99, 0.999)


def quantiles(histogram: Any, qs: Sequence[float] = _QUANTILES) -> list[float | None]:
    """Microseconds; None where nothing came."""
    if histogram is None:
        return [None] * len(qs)
    return [round(float(value), 1) for value in histogram.quantiles(qs)]


def batch_sizes(histogram: Any, seconds: float) -> list[list[float]]:
    """[rows up to, batches per second], by powers of two up to the largest there were."""
    if histogram is None or seconds <= 0:
        return []
    bounds = Bounds.of_rows([1 << i for i in range(15)])
    counts = list(histogram.cumulative(bounds.counted))
    sizes, below = [], 0
    for i, count in enumerate(counts):
        sizes.append([1 << i, round((count - below) / seconds, 3)])
        below = count
        if count >= histogram.count:
            break
    return sizes
