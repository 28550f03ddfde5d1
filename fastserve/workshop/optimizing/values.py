"""What the optimizer's two processes say to each other, and what they found. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastserve.config import TensorFlow
from fastserve.offline.tensors import Tensor
from fastserve.savedmodel import Signature

Inputs = list[Tensor]
Pairs = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which inputs to run with. `batch_sizes`: the smallest is a request, the others are several.
    `user_inputs`: the same in all rows of a request, as far as a signature has them."""

    rows: Path | None
    requests: tuple[Path, ...]
    batch_sizes: tuple[int, ...]
    user_inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pools:
    """By signature: rows, as one tensor for each input, and requests as they came. `origin`: for people."""

    origin: str
    rows: dict[str, Inputs]
    requests: dict[str, tuple[Inputs, ...]]


@dataclass(frozen=True, slots=True)
class Load:
    """What a signature is run with. `checked`: inputs whose outputs are compared. `timed`: by rows, batches
    that are timed in turn."""

    signature: Signature
    checked: tuple[Inputs, ...] = ()
    timed: dict[int, tuple[Inputs, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """`path`: the original. `paths`: two to be timed against each other; the second one's answers are
    compared with those in the file `expected`, if `checked`. Without them: answers and inputs are found and
    returned. `seconds`: of timing, for each batch size. `new_first`: the second is opened before the
    first."""

    tags: tuple[str, ...]
    path: Path
    pools: Pools
    wanted: Wanted
    signatures: tuple[str, ...]
    settings: TensorFlow
    seconds: float
    paths: tuple[Path, Path] | None = None
    expected: Path | None = None
    checked: bool = True
    new_first: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """The original's answers. `made_up`: signatures whose inputs are."""

    loads: tuple[Load, ...]
    answers: tuple[tuple[Inputs, ...], ...]
    made_up: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`worst`: by signature, the value that is furthest from the original's: its distance relative to 1 + the
    value, its distance, its output. `openings`: by signature and rows, for each time that the two were
    opened, pairs: microseconds that a run took, of one and of the other, measured right after each other."""

    worst: dict[str, tuple[float, float, str]]
    openings: dict[tuple[str, int], tuple[Pairs, ...]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one signature and batch size. `before_us`, `after_us`: medians. With 95 % confidence for all that
    were compared together, `speedup` is more than `low`, and with the same it is less than `high`."""

    signature: str
    rows: int
    before_us: float
    after_us: float
    speedup: float
    low: float
    high: float

    @property
    def rows_per_s(self) -> tuple[float, float]:
        return self.rows * 1e6 / self.before_us, self.rows * 1e6 / self.after_us


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass gave. `changes`: places. `difference`: the largest from the original's answers, absolute;
    None where nothing was run. `why`: one sentence."""

    name: str
    about: str
    changes: int
    kept: bool
    why: str
    timings: tuple[Timing, ...] = ()
    difference: float | None = None
    nodes: int = 0

    @property
    def speedup(self) -> float | None:
        """Over all signatures and batch sizes: the geometric mean."""
        return speedup(self.timings)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`path`: the version that was written; None where nothing was gained. `total`: the original beside
    it. `stored_bytes`: graph and variables, before and after."""

    model: Path
    path: Path | None
    inputs: str
    made_up: tuple[str, ...]
    tolerance: float
    passes: tuple[PassResult, ...]
    total: tuple[Timing, ...]
    difference: float
    tensorflow: str
    machine: str
    stored_bytes: tuple[int, int]


def speedup(timings: tuple[Timing, ...]) -> float | None:
    if not timings:
        return None
    product = 1.0
    for timing in timings:
        product *= timing.speedup
    return float(product ** (1.0 / len(timings)))
