"""What XLA makes of the signature: asks child processes (xla_child.py) and puts their answers together."""

from __future__ import annotations

import ctypes
import pickle
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace

from fastserve.environment import child_argv, child_environment
from fastserve.workshop.profiling.clusters import Clustering, read_clusters
from fastserve.workshop.profiling.graph import Node, read_nodes
from fastserve.workshop.profiling.values import CostPoint, Xla
from fastserve.workshop.profiling.xla_task import Answer, Task

_MODULE = "fastserve.workshop.profiling.xla_child"
_TIMEOUT_S = 1800
_NO_KERNEL = re.compile(r"No registered '(\w+)' OpKernel.*?\{\{node ([^}]+)\}\}")
_PR_SET_PDEATHSIG = 1
# For the graph alone: nodes that are compilable are in clusters, however few there are together, and none is
# compiled.
_ANY_SIZE = "--tf_xla_min_cluster_size=1"
_EAGERLY = "--tf_xla_enable_lazy_compilation=false"


def examine_xla(task: Task, nodes: Sequence[Node]) -> tuple[Xla, Answer]:
    """What XLA takes of the graph with these `nodes`, and what it costs by rows. A child that fails says so
    in the result."""
    cut = _ask(replace(task, what="clusters"), any_size=True)
    could: Clustering | None = None
    if isinstance(cut, Answer):
        could = read_clusters(nodes, read_nodes(cut.metadata))
    with tempfile.TemporaryDirectory(prefix="fastserve-profile-") as folder:
        measured = _ask(replace(task, what="measure", folder=folder), any_size=False)
    if isinstance(measured, str):
        return Xla(full_why=measured, cluster_why=measured, could=could, served=None), Answer()
    served = read_clusters(nodes, read_nodes(measured.metadata)) if measured.metadata else None
    cluster_why = measured.cluster_why or (cut if isinstance(cut, str) else "")
    return Xla(_shorter(measured.full_why), _shorter(cluster_why), could, served), measured


def _shorter(why: str) -> str:
    """The ops that XLA has no kernel for, of a message that says much more."""
    missing = _NO_KERNEL.findall(why)
    if not missing:
        return why
    return "XLA has no kernel for " + ", ".join(f"{op} ({node})" for op, node in dict.fromkeys(missing))


def with_xla_costs(costs: tuple[CostPoint, ...], answer: Answer) -> tuple[CostPoint, ...]:
    return tuple(
        replace(
            cost,
            cluster_us=answer.cluster_us.get(cost.rows),
            compiled_us=answer.compiled_us.get(cost.rows),
        )
        for cost in costs
    )


def _ask(task: Task, *, any_size: bool) -> Answer | str:
    """The child's answer, or why there is none."""
    environment = child_environment(task.target.settings)
    if any_size:
        flags = [flag for flag in environment["TF_XLA_FLAGS"].split() if flag != _EAGERLY]
        environment["TF_XLA_FLAGS"] = " ".join([*flags, _ANY_SIZE])
    libc = ctypes.CDLL(None)
    child = subprocess.Popen(
        child_argv(_MODULE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    try:
        out, err = child.communicate(pickle.dumps(task), timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"XLA took longer than {_TIMEOUT_S // 60} minutes"
    finally:
        # Ctrl-C, too: nobody waits for its answer any more.
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode != 0 or not out:
        return f"the process that tried XLA ended with {_how(child.returncode)}{_last_line(err)}"
    made: Answer | str = pickle.loads(out)
    return made


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""
