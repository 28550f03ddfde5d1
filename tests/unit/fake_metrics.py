"""What a core has counted, made up: a histogram that knows every value, series, a snapshot of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


class FakeHistogram:
    """Exact. As _native.metrics.Histogram, for what the control process asks of it."""

    def __init__(self, *values: float) -> None:
        self.values = sorted(values)

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def sum(self) -> float:
        return float(sum(self.values))

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        return [self.values[max(0, math.ceil(q * self.count) - 1)] for q in qs]

    def cumulative(self, bounds: Sequence[float]) -> list[int]:
        return [sum(value <= bound for value in self.values) for bound in bounds]

    def minus(self, other: FakeHistogram) -> FakeHistogram:
        left = Counter(self.values) - Counter(other.values)
        return FakeHistogram(*left.elements())

    def plus(self, other: FakeHistogram) -> FakeHistogram:
        return FakeHistogram(*self.values, *other.values)


@dataclass
class FakeSeries:
    model: str = "m"
    version: int | None = 1
    signature: str = "serving_default"
    requests: dict[tuple[str, str, str], int] = field(default_factory=dict)
    latency: dict[tuple[str, str], FakeHistogram] = field(default_factory=dict)
    request_rows: dict[str, FakeHistogram] = field(default_factory=dict)
    queue: FakeHistogram = field(default_factory=FakeHistogram)
    formation: FakeHistogram = field(default_factory=FakeHistogram)
    compute: FakeHistogram = field(default_factory=FakeHistogram)
    encode: FakeHistogram = field(default_factory=FakeHistogram)
    batch_rows: FakeHistogram = field(default_factory=FakeHistogram)
    padding: dict[int, FakeHistogram] = field(default_factory=dict)
    rows: int = 0
    batches: int = 0
    expired: int = 0
    cancelled: int = 0
    shed: int = 0
    waiting_calls: int = 0
    waiting_rows: int = 0

    @property
    def padding_rows(self) -> int:
        return int(sum(histogram.sum for histogram in self.padding.values()))

    def plus(self, other: FakeSeries, version: int | None = None) -> FakeSeries:
        both = FakeSeries(self.model, version, self.signature)
        both.requests = dict(Counter(self.requests) + Counter(other.requests))
        for name in ("latency", "request_rows", "padding"):
            some, others, none = getattr(self, name), getattr(other, name), FakeHistogram()
            for which in some.keys() | others.keys():
                getattr(both, name)[which] = some.get(which, none).plus(others.get(which, none))
        for name in ("queue", "formation", "compute", "encode", "batch_rows"):
            setattr(both, name, getattr(self, name).plus(getattr(other, name)))
        for name in ("rows", "batches", "expired", "cancelled", "shed", "waiting_calls", "waiting_rows"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both


@dataclass
class FakeSnapshot:
    series: list[FakeSeries] = field(default_factory=list)
    unresolved: dict[tuple[str, str, str], int] = field(default_factory=dict)


def busy(
    model: str = "m",
    version: int | None = 1,
    signature: str = "serving_default",
    *,
    times_us: Sequence[float] = (100.0, 200.0, 300.0, 4000.0),
    failed: int = 1,
) -> FakeSeries:
    """A series that has answered so many Predicts of one row each in batches of two, one of them over REST
    and `failed` with INVALID_ARGUMENT."""
    grpc, rest = times_us[:-1], times_us[-1:]
    batches = (len(times_us) + 1) // 2
    return FakeSeries(
        model,
        version,
        signature,
        requests={
            ("Predict", "grpc", "OK"): len(grpc) - failed,
            ("Predict", "grpc", "INVALID_ARGUMENT"): failed,
            ("Predict", "rest", "OK"): len(rest),
        },
        latency={("Predict", "grpc"): FakeHistogram(*grpc), ("Predict", "rest"): FakeHistogram(*rest)},
        request_rows={"Predict": FakeHistogram(*[1.0] * len(times_us))},
        queue=FakeHistogram(*(time / 10 for time in times_us)),
        formation=FakeHistogram(*[5.0] * batches),
        compute=FakeHistogram(*[60.0] * batches),
        encode=FakeHistogram(*[8.0] * batches),
        batch_rows=FakeHistogram(*[2.0] * batches),
        padding={4: FakeHistogram(*[1.0] * batches)},
        rows=len(times_us),
        batches=batches,
        expired=3,
        cancelled=2,
        shed=1,
        waiting_calls=4,
        waiting_rows=7,
    )
