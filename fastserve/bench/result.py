"""What a run found, as it is kept in JSON: every window of every target, with its whole histogram.

Everything that reports and comparisons need is here. Times are seconds unless a name says otherwise. A file
has a schema version; what this program cannot read is refused.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from fastserve.errors import FastServeError

if TYPE_CHECKING:
    from fastserve._native.load import Histogram

SCHEMA = 1


class ResultError(FastServeError):
    """A file of results cannot be read."""


class Latencies(Struct, frozen=True, kw_only=True):
    """A histogram of nanoseconds. pairs: (slot, count), packed: see pack_pairs."""

    total: int
    min_ns: int
    max_ns: int
    sum_ns: float
    pairs: str

    def histogram(self) -> Histogram:
        from fastserve._native.load import Histogram

        return Histogram.from_pairs(unpack_pairs(self.pairs), self.min_ns, self.max_ns, self.sum_ns)


class Window(Struct, frozen=True, kw_only=True):
    """One target under one load for one window. Counts are of requests that were due inside it."""

    target: str
    point: str
    round: int
    # Since the run began, and how much of the machine was in use before: 0 to 1.
    started_s: float
    busy_before: float
    # Requests per second that were asked for; 0 in closed loop.
    offered: float
    sent: int
    done: int
    failed: dict[str, int]
    unanswered: int
    first_error: str
    seconds: float
    # Good answers per second, and the rows in them.
    rate: float
    rows_rate: float
    latency: Latencies
    # (start_s, sent, done, failed, p50_us, p90_us, p99_us, max_us) of each interval.
    intervals: list[tuple[float, int, int, int, float, float, float, float]]
    bytes_in: int
    bytes_out: int
    # Of the server and its children, in the window; None for a server that is not ours.
    cpu_s: float | None
    rss_bytes: int | None
    # How much of the machine others used meanwhile, 0 to 1: neither the server nor the generator.
    others: float | None
    # Of the generator: its CPU time, and how late it was itself.
    generator_cpu_s: float
    behind_p99_ns: int
    behind_max_ns: int
    reconnects: int = 0

    @property
    def cpu_us(self) -> float | None:
        """CPU microseconds of the server for each good answer."""
        return None if self.cpu_s is None or not self.rate else 1e6 * self.cpu_s / (self.rate * self.seconds)


class Point(Struct, frozen=True, kw_only=True):
    """A load. label: unique in its run, and the same in other runs of the same load."""

    label: str
    kind: str  # "closed", "open", "slo", "replay"
    connections: int
    in_flight: int = 0
    rate: float = 0.0
    fraction: float = 0.0
    of: str = ""
    arrivals: str = "poisson"


class Step(Struct, frozen=True, kw_only=True):
    """One try of a search. share: of the requests that were answered in time."""

    rate: float
    value_ms: float
    share: float
    kept: bool


class Found(Struct, frozen=True, kw_only=True):
    """The highest rate at which a target kept its objective; refused: the lowest at which it did not, 0 if
    there was none. limit: what ended the search, when that was not the target."""

    target: str
    point: str
    objective: str
    bound_ms: float
    rate: float
    refused: float
    steps: list[Step]
    limit: str = ""


class TargetInfo(Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    protocol: str
    address: str
    options: dict[str, Any] = {}


class Sent(Struct, frozen=True, kw_only=True):
    """The requests of a run."""

    source: str
    count: int
    rows: tuple[int, int]
    body_bytes: dict[str, tuple[int, int]]
    seed: int


class Run(Struct, frozen=True, kw_only=True):
    """One workload."""

    name: str
    title: str
    model: str
    signature: str
    requests: Sent
    window_s: float
    warmup_s: float
    rounds: int
    targets: list[TargetInfo]
    points: list[Point]
    windows: list[Window]
    found: list[Found] = []
    # Whether it ended by itself; else why it did not.
    complete: bool = True
    ended: str = ""
    verified: int = 0

    def rounds_of(self, target: str, point: str) -> list[Window]:
        return sorted(
            (window for window in self.windows if (window.target, window.point) == (target, point)),
            key=lambda window: window.round,
        )


class Result(Struct, frozen=True, kw_only=True):
    """A whole file."""

    schema: int
    started: str
    seconds: float
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    revision: str
    runs: list[Run]


def write_result(path: Path, result: Result) -> None:
    """As JSON, in one piece."""
    fresh = path.with_name(path.name + ".new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_bytes(msgspec.json.encode(result) + b"\n")
    fresh.replace(path)


def read_result(path: Path) -> Result:
    """Raises ResultError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema")
        if schema != SCHEMA:
            raise ResultError(f"{path}: has schema {schema}; this FastServe reads {SCHEMA}: measure again")
        return msgspec.json.decode(data, type=Result)
    except msgspec.DecodeError as error:
        raise ResultError(f"{path}: not a file of `fastserve bench`: {error}") from None


def latencies(histogram: Histogram) -> Latencies:
    return Latencies(
        total=histogram.total,
        min_ns=histogram.min,
        max_ns=histogram.max,
        sum_ns=histogram.sum,
        pairs=pack_pairs(histogram.pairs()),
    )


def pack_pairs(pairs: Iterable[tuple[int, int]]) -> str:
    """(slot, count) in rising order of slots: steps and counts as LEB128, deflated, in base64."""
    data = bytearray()
    last = 0
    for slot, count in pairs:
        for number in (slot - last, count):
            while number > 127:
                data.append(number & 127 | 128)
                number >>= 7
            data.append(number)
        last = slot
    return base64.b64encode(zlib.compress(bytes(data), 9)).decode()


def unpack_pairs(text: str) -> list[tuple[int, int]]:
    """Raises ResultError when it is not what pack_pairs wrote."""
    try:
        numbers = _numbers(zlib.decompress(base64.b64decode(text, validate=True)))
    except (ValueError, zlib.error):
        raise ResultError("a histogram in the results is damaged") from None
    pairs, slot = [], 0
    for step, count in zip(numbers[::2], numbers[1::2], strict=False):
        slot += step
        pairs.append((slot, count))
    return pairs


def _numbers(data: bytes) -> Sequence[int]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return numbers


def merged(windows: Iterable[Window]) -> Histogram:
    """All latencies of several windows in one histogram."""
    from fastserve._native.load import Histogram

    total = Histogram()
    for window in windows:
        total.merge(window.latency.histogram())
    return total
