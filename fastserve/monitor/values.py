"""The values that are shown: figures of one moment, and who gives them. No logic.

Times in figures that the core counts are microseconds, all others are seconds; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# (method, transport, name of the gRPC code)
Requests = Mapping[tuple[str, str, str], int]


class Histogram(Protocol):
    """Values that have been counted, in fine buckets."""

    @property
    def count(self) -> int: ...

    @property
    def sum(self) -> float: ...

    def cumulative(self, bounds: Sequence[float]) -> Sequence[int]:
        """How many were up to each of the bounds, which increase."""


class Series(Protocol):
    """What the core has counted for a signature of a version. `version` None: of all that have closed."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> int | None: ...

    @property
    def signature(self) -> str: ...

    @property
    def requests(self) -> Requests: ...

    @property
    def latency(self) -> Mapping[tuple[str, str], Histogram]: ...

    @property
    def request_rows(self) -> Mapping[str, Histogram]: ...

    @property
    def queue(self) -> Histogram: ...

    @property
    def formation(self) -> Histogram: ...

    @property
    def compute(self) -> Histogram: ...

    @property
    def encode(self) -> Histogram: ...

    @property
    def batch_rows(self) -> Histogram: ...

    @property
    def padding(self) -> Mapping[int, Histogram]: ...

    @property
    def rows(self) -> int: ...

    @property
    def batches(self) -> int: ...

    @property
    def padding_rows(self) -> int: ...

    @property
    def expired(self) -> int: ...

    @property
    def cancelled(self) -> int: ...

    @property
    def shed(self) -> int: ...

    @property
    def waiting_calls(self) -> int: ...

    @property
    def waiting_rows(self) -> int: ...


@dataclass(frozen=True)
class Durations:
    """A coarse histogram: `counts` of what was up to each of the `bounds`, cumulative."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    count: int
    sum: float


@dataclass(frozen=True)
class PathFigures:
    """Loads from one version's directory."""

    path: str
    succeeded: int = 0
    failed: int = 0
    load_s: float = 0.0  # of those that succeeded, together
    warmup_records: int = 0
    warmup_s: Durations | None = None  # of runs through its recorded requests, at LATENCY_US's bounds


@dataclass(frozen=True)
class VersionFigures:
    """A version that is there. By (signature, rows of a batch): how long its trial took for the first run and
    for compiling."""

    model: str
    version: int
    state: str
    memory_bytes: int
    open_s: float | None = None
    warmup_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    compile_s: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFigures:
    """A configured model. `loads`: attempts by result, "success" or "failure". `rollout`: the one that goes
    on, with its figures. `log`: of its request log, as the core tells it."""

    name: str
    available_versions: int
    loads: Mapping[str, int] = field(default_factory=dict)
    load_s: Durations | None = None
    switch_s: Durations | None = None
    rollout: Mapping[str, Any] | None = None
    log: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ProcessFigures:
    up: bool
    restarts: int
    processes: int


@dataclass(frozen=True)
class Figures:
    """Everything that a scrape shows. `live`: versions that are there, or were a moment ago; `all`: those and
    the ones that have closed. `unresolved`: requests that were for no version."""

    version: str
    library: str
    uptime_s: float
    ready: bool
    live: Sequence[Series]
    all: Sequence[Series]
    unresolved: Requests
    core: ProcessFigures
    core_bytes: int
    memory_limit_bytes: int
    gateway: ProcessFigures | None
    models: Sequence[ModelFigures]
    versions: Sequence[VersionFigures]
    paths: Sequence[PathFigures]


@dataclass(frozen=True)
class Health:
    """`why`: what is wrong, "" when nothing is or it is only models, which `models` says by name."""

    ok: bool
    why: str = ""
    models: Mapping[str, str] = field(default_factory=dict)


class View(Protocol):
    """What the monitor shows. All but `figures` are answered at once, on the event loop."""

    def health(self) -> Health:
        """Whether the daemon and its core live."""

    def readiness(self) -> Health:
        """Whether every model that is configured can be asked."""

    def status(self) -> bytes:
        """JSON, of this second."""

    def history(self) -> bytes:
        """JSON, of the last minutes."""

    async def figures(self) -> Figures:
        """Of this moment."""
