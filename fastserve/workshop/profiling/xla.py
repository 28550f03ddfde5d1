"""What XLA makes of the signature: asks child processes (xla_child.py), one for each thing, so that one that
crashes takes nothing else with it, and puts their answers together."""

from __future__ import annotations

import pickle
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace

from fastserve.environment import child_environment
from fastserve.workshop.child import ChildDied, ask
from fastserve.workshop.profiling.clusters import Clustering, read_clusters
from fastserve.workshop.profiling.graph import Node, read_nodes
from fastserve.workshop.profiling.values import CostPoint, Xla
from fastserve.workshop.profiling.xla_task import ANY_SIZE, CLUSTER, FULL, Answer, Task

_MODULE = "fastserve.workshop.profiling.xla_child"
_NO_KERNEL = re.compile(r"No registered '(\w+)' OpKernel.*?\{\{node ([^}]+)\}\}")
# For the graph alone: nodes that are compilable are in clusters, however few there are together, and none is
# compiled.
_ANY_SIZE_FLAG = "--tf_xla_min_cluster_size=1"
_EAGERLY = "--tf_xla_enable_lazy_compilation=false"


def examine_xla(
    task: Task, nodes: Sequence[Node], costs: Sequence[CostPoint]
) -> tuple[Xla, tuple[CostPoint, ...]]:
    """What XLA takes of the graph, whose own nodes are `nodes`, and `costs` with what it costs by rows. A
    child that fails says so in the result."""
    could = _ask(task)
    cluster = _ask(replace(task, what=CLUSTER))
    with tempfile.TemporaryDirectory(prefix="fastserve-profile-") as folder:
        full = _ask(replace(task, what=FULL, folder=folder))
    xla = Xla(
        full_why=_why_not(full),
        cluster_why=_why_not(cluster),
        could_why=_why_not(could),
        could=_clustering(nodes, could),
        served=_clustering(nodes, cluster),
    )
    return xla, tuple(
        replace(cost, cluster_us=_time(cluster, cost.rows), compiled_us=_time(full, cost.rows))
        for cost in costs
    )


def _ask(task: Task) -> Answer | str:
    """The child's answer, or why there is none."""
    environment = child_environment(task.target.settings)
    if task.what == ANY_SIZE:
        flags = [flag for flag in environment["TF_XLA_FLAGS"].split() if flag != _EAGERLY]
        environment["TF_XLA_FLAGS"] = " ".join([*flags, _ANY_SIZE_FLAG])
    try:
        made: Answer | str = pickle.loads(ask(_MODULE, environment, pickle.dumps(task)))
    except ChildDied as died:
        return f"the process that tried XLA {died}"
    return made


def _why_not(made: Answer | str) -> str:
    """Of a message that says much more, the ops that XLA has no kernel for. Empty when there is an answer."""
    if isinstance(made, Answer):
        return ""
    missing = _NO_KERNEL.findall(made)
    if not missing:
        return made
    return "XLA has no kernel for " + ", ".join(f"{op} ({node})" for op, node in dict.fromkeys(missing))


def _clustering(nodes: Sequence[Node], made: Answer | str) -> Clustering | None:
    return read_clusters(nodes, read_nodes(made.metadata)) if isinstance(made, Answer) else None


def _time(made: Answer | str, rows: int) -> float | None:
    return made.times_us.get(rows) if isinstance(made, Answer) else None
