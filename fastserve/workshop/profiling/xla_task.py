"""What `fastserve profile` asks its XLA children, and what they answer. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastserve.offline.tensors import Style, Tensor
from fastserve.workshop.profiling.sessions import Target

# ANY_SIZE: the graph as XLA would cut it with clusters of any size, which compiles nothing. CLUSTER, FULL:
# what xla = "cluster" and "full" make of the signature.
What = Literal["any size", "cluster", "full"]
ANY_SIZE: What = "any size"
CLUSTER: What = "cluster"
FULL: What = "full"


@dataclass(frozen=True)
class Task:
    """`single_threaded`: whether the daemon has the executor for one thread. `seconds`: about how long each
    of `batch_sizes` is run. `folder`: for what is written meanwhile."""

    target: Target
    rows: dict[str, tuple[Tensor, ...]]
    style: Style
    batch_sizes: tuple[int, ...]
    batched_why: str
    single_threaded: bool
    seconds: float
    what: What = ANY_SIZE
    folder: str = ""


@dataclass(frozen=True)
class Answer:
    """`metadata`: the RunMetadata with the clustered graph, of a session that clusters. `times_us`: of a run,
    in microseconds, by rows."""

    metadata: bytes = b""
    times_us: dict[int, float] = field(default_factory=dict)
