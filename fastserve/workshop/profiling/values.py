"""What a profile says. Values only; times are microseconds, memory is bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastserve.workshop.profiling.clusters import Clustering
from fastserve.workshop.profiling.graph import Node
from fastserve.workshop.profiling.host_ops import HostOp
from fastserve.workshop.profiling.steps import Step

# A larger batch is worth it as long as it makes a row this much cheaper.
WORTH = 0.10


@dataclass(frozen=True, slots=True)
class OpCost:
    """One node at one batch size. `own_us`: in one run of the model, all runs of the node together.
    `output_bytes`: what it gave; `peak_bytes`: what it allocated, at its highest; 0 where it works in place,
    or passes a tensor on."""

    node: str
    label: str
    op: str
    runs: int
    own_us: float
    output_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class TypeCost:
    """All nodes of one type at one batch size. `peak_bytes`: of the node that has the highest."""

    op: str
    nodes: int
    own_us: float
    output_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """One batch size. Every time is the mean over the fastest eighth of `rounds` runs.

    `daemon_us`: an untraced run as the daemon makes it; `same_us`: one with the executor that can be traced;
    `wall_us`: a traced one, which is before + ops + between + after, by the times in the trace and the clock
    around the run.
    """

    rows: int
    rounds: int
    daemon_us: float
    same_us: float
    wall_us: float
    before_us: float
    ops_us: float
    between_us: float
    after_us: float
    ops: tuple[OpCost, ...]

    @property
    def accounted(self) -> float:
        """What the ops add up to, of an untraced run of the daemon's. The rest is its executor's."""
        return self.ops_us / self.daemon_us

    @property
    def tracing_us(self) -> float:
        """What tracing adds to a run, RunMetadata included."""
        return self.wall_us - self.same_us

    def types(self) -> list[TypeCost]:
        """By type, the dearest first."""
        by_type: dict[str, list[OpCost]] = {}
        for op in self.ops:
            by_type.setdefault(op.op, []).append(op)
        made = [
            TypeCost(
                op,
                len(nodes),
                sum(node.own_us for node in nodes),
                sum(node.output_bytes for node in nodes),
                max(node.peak_bytes for node in nodes),
            )
            for op, nodes in by_type.items()
        ]
        return sorted(made, key=lambda cost: -cost.own_us)


@dataclass(frozen=True, slots=True)
class CostPoint:
    """What a run of so many rows takes: plain, with auto-clustering (xla = "cluster"), compiled whole (xla =
    "full")."""

    rows: int
    plain_us: float
    cluster_us: float | None = None
    compiled_us: float | None = None

    @property
    def row_us(self) -> float:
        return self.plain_us / self.rows


@dataclass(frozen=True, slots=True)
class Xla:
    """What XLA makes of the signature. `full_why`, `cluster_why`: why it does not compile so; empty when it
    does.

    `could`: what it could take, with clusters of any size; None where that is not known, and `could_why` says
    why. `served`: what xla = "cluster" takes, which leaves out clusters of a few nodes.
    """

    full_why: str
    cluster_why: str
    could_why: str
    could: Clustering | None
    served: Clustering | None


@dataclass(frozen=True)
class Profile:
    """One signature of one version. `steps`: by rows, one traced run, for the trace file. `labels`: by node,
    its name for people."""

    path: str
    signature: str
    inputs_from: str
    executor: str
    batched_why: str
    tensorflow_version: str
    machine: dict[str, Any]
    costs: tuple[CostPoint, ...]
    batches: tuple[BatchProfile, ...]
    host_ops: tuple[HostOp, ...]
    xla: Xla | None
    notes: tuple[str, ...] = ()
    steps: dict[int, Step] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


def stops_paying(costs: Sequence[CostPoint]) -> int | None:
    """The smallest number of rows from which no larger batch makes a row WORTH cheaper; None when the largest
    still does."""
    ordered = sorted(costs, key=lambda cost: cost.rows)
    for index, cost in enumerate(ordered[:-1]):
        if min(later.row_us for later in ordered[index + 1 :]) > cost.row_us * (1 - WORTH):
            return cost.rows
    return None


def as_json(profile: Profile) -> dict[str, Any]:
    """For --json: everything but the steps of the trace."""
    return {
        "path": profile.path,
        "signature": profile.signature,
        "inputs": profile.inputs_from,
        "executor": profile.executor,
        "batched": not profile.batched_why,
        "batched_why": profile.batched_why,
        "tensorflow_version": profile.tensorflow_version,
        "machine": profile.machine,
        "notes": list(profile.notes),
        "costs": [{**asdict(cost), "row_us": cost.row_us} for cost in profile.costs],
        "stops_paying_at_rows": stops_paying(profile.costs),
        "batches": [_batch(batch) for batch in profile.batches],
        "host_ops": [
            {**asdict(op), "label": profile.labels.get(op.node, op.node), "own_us": own_us(profile, op.node)}
            for op in profile.host_ops
        ],
        "xla": None if profile.xla is None else _xla(profile.xla, profile),
    }


def own_us(profile: Profile, node: str) -> dict[int, float]:
    """By batch size, what a node takes."""
    return {batch.rows: sum(op.own_us for op in batch.ops if op.node == node) for batch in profile.batches}


def _batch(batch: BatchProfile) -> dict[str, Any]:
    return {
        **asdict(batch),
        "tracing_us": batch.tracing_us,
        "accounted": batch.accounted,
        "types": [asdict(cost) for cost in batch.types()],
    }


def _xla(xla: Xla, profile: Profile) -> dict[str, Any]:
    return {
        "full_why": xla.full_why,
        "cluster_why": xla.cluster_why,
        "could_why": xla.could_why,
        "could": None if xla.could is None else _clustering(xla.could, profile),
        "served": None if xla.served is None else _clustering(xla.served, profile),
    }


def _clustering(found: Clustering, profile: Profile) -> dict[str, Any]:
    return {
        "clusters": found.clusters,
        "share_of_time": {batch.rows: share_of_time(batch, found.inside) for batch in profile.batches},
        "inside": [_node(node) for node in found.inside],
        "outside": [_node(node) for node in found.outside],
        "breakers": [{**asdict(one), "own_us": own_us(profile, one.node)} for one in found.breakers],
    }


def _node(node: Node) -> dict[str, str]:
    return {"node": node.name, "label": node.label, "op": node.op}


def share_of_time(batch: BatchProfile, nodes: Iterable[Node]) -> float:
    """What these nodes take, of the time of all ops."""
    names = {node.name for node in nodes}
    return sum(op.own_us for op in batch.ops if op.node in names) / batch.ops_us
