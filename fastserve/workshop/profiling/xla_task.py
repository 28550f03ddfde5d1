"""What `fastserve profile` asks its XLA children, and what they answer. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastserve.offline.tensors import Style, Tensor
from fastserve.workshop.profiling.sessions import Target


@dataclass(frozen=True)
class Task:
    """`what`: "clusters", the graph as XLA would cut it with clusters of any size, which compiles nothing;
    "measure", what xla = "cluster" and "full" make of the signature at `batch_sizes`. `folder`: for what is
    written meanwhile."""

    what: Literal["clusters", "measure"]
    target: Target
    rows: dict[str, tuple[Tensor, ...]]
    style: Style
    batch_sizes: tuple[int, ...]
    batched_why: str
    seconds: float
    folder: str = ""


@dataclass
class Answer:
    """`metadata`: the RunMetadata with the clustered graph. Times in microseconds, by rows. `cluster_why`,
    `full_why`: why not."""

    metadata: bytes = b""
    cluster_us: dict[int, float] = field(default_factory=dict)
    cluster_why: str = ""
    compiled_us: dict[int, float] = field(default_factory=dict)
    full_why: str = ""
