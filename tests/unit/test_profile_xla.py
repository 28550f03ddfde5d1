"""What `fastserve profile` says of XLA when the children that try it answer, fail, crash and hang."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from fastserve._native.runtime import RuntimeFailure

from fastserve.config import TensorFlow
from fastserve.offline.tensors import Style
from fastserve.protos import message
from fastserve.savedmodel import Port, Signature
from fastserve.workshop import child
from fastserve.workshop.profiling import xla, xla_child
from fastserve.workshop.profiling.clusters import why_not_compiled
from fastserve.workshop.profiling.graph import read_nodes
from fastserve.workshop.profiling.report_table import xla_lines
from fastserve.workshop.profiling.sessions import Target
from fastserve.workshop.profiling.values import BatchProfile, CostPoint, OpCost, Profile, Xla
from fastserve.workshop.profiling.xla_task import ANY_SIZE, CLUSTER, FULL, Answer, Task, What

FLOAT = 1
SIGNATURE = Signature("score", "", (Port("x", "x:0", FLOAT, (-1, 2)),), (Port("y", "y:0", FLOAT, (-1,)),))
TASK = Task(Target("/m/1", ("serve",), SIGNATURE, TensorFlow()), {}, Style(2, 1), (1, 8), "", False, 0.1)
COSTS = (CostPoint(1, 10.0), CostPoint(4, 15.0), CostPoint(8, 20.0))


def graph(*nodes: tuple[str, ...]) -> bytes:
    told = message("tensorflow.RunMetadata")()
    made = told.partition_graphs.add()
    for name, op, *inputs in nodes:
        made.node.add(name=name, op=op, input=inputs)
    data: bytes = told.SerializeToString()
    return data


NODES = read_nodes(graph(("x", "_Arg"), ("a", "Tanh", "x"), ("call", "PartitionedCall", "a")))
CLUSTERED = graph(("x", "_Arg"), ("cluster_0/run", "_XlaRun", "x"), ("call", "PartitionedCall", "c"))
GOOD: dict[What, Any] = {
    ANY_SIZE: Answer(CLUSTERED),
    CLUSTER: Answer(CLUSTERED, {1: 9.0, 8: 12.0}),
    FULL: Answer(times_us={1: 5.0, 8: 6.0}),
}
CRASHES, HANGS = "crashes", "hangs"

# Answers what stands in its command line, if not by crashing or hanging.
CHILD = f"""
import os, pickle, time
from fastserve.workshop.child import serve
def answer(asked):
    made = pickle.loads(bytes.fromhex({{}}))[pickle.loads(asked).what]
    if made == {CRASHES!r}:
        os.write(2, b"a note\\nno more registers\\n")
        os.kill(os.getpid(), 11)
    if made == {HANGS!r}:
        time.sleep(60)
    if made == "flags":
        made = os.environ["TF_XLA_FLAGS"]
    return pickle.dumps(made)
serve(answer)
"""


def examined(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> tuple[Xla, tuple[CostPoint, ...]]:
    """With children that answer as GOOD, and as `changed`, which has spaces of names left out."""
    answers = {what: changed.get(what.replace(" ", "_"), good) for what, good in GOOD.items()}
    code = CHILD.format(repr(pickle.dumps(answers).hex()))
    whole = child.ask

    def ask(module: str, environment: dict[str, str], asked: bytes) -> bytes:
        assert module == "fastserve.workshop.profiling.xla_child"
        hangs = answers[pickle.loads(asked).what] == HANGS
        return whole(module, environment, asked, 1.0 if hangs else 60.0)

    monkeypatch.setattr(child, "child_argv", lambda module: [sys.executable, "-c", code])
    monkeypatch.setattr(xla, "ask", ask)
    return xla.examine_xla(TASK, NODES, COSTS)


def lines(found: Xla, costs: tuple[CostPoint, ...]) -> str:
    ops = (OpCost("a", "a", "Tanh", 1, 6.0, 1, 1), OpCost("in", "in", "AsString", 1, 4.0, 1, 1))
    batch = BatchProfile(8, 16, 20.0, 20.0, 30.0, 1.0, 10.0, 2.0, 3.0, ops)
    profile = Profile("/m/1", "score", "", "", "", "", {}, costs, (batch,), (), found)
    return "\n".join(xla_lines(profile))


def test_children_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found, costs = examined(monkeypatch)
    assert (found.full_why, found.cluster_why, found.could_why) == ("", "", "")
    assert [(cost.rows, cost.plain_us, cost.cluster_us, cost.compiled_us) for cost in costs] == [
        (1, 10.0, 9.0, 5.0),
        (4, 15.0, None, None),
        (8, 20.0, 12.0, 6.0),
    ]
    for cut in (found.could, found.served):
        assert cut is not None
        assert [node.name for node in cut.inside] == ["a"]
        assert [node.name for node in cut.outside] == ["call"]
    said = lines(found, costs)
    assert '"full": the whole signature compiles' in said
    assert '"cluster": 1 node in 1 cluster, 60% of' in said and "could take 1 node" in said


CRASHED = "the process that tried XLA ended with signal SIGSEGV: no more registers"


@pytest.mark.parametrize(
    ("what", "made", "why"),
    [
        (ANY_SIZE, CRASHES, CRASHED),
        (CLUSTER, CRASHES, CRASHED),
        (FULL, CRASHES, CRASHED),
        (FULL, HANGS, "the process that tried XLA gave no answer within 1 s"),
        (ANY_SIZE, "XLA cannot", "XLA cannot"),
        (
            CLUSTER,
            "No registered 'AsString' OpKernel for XLA_CPU_JIT devices {{node in/AsString}} and more",
            "XLA has no kernel for AsString (in/AsString)",
        ),
    ],
)
def test_what_one_child_says_is_said_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch, what: What, made: str, why: str
) -> None:
    found, costs = examined(monkeypatch, **{what.replace(" ", "_"): made})
    whys = {ANY_SIZE: found.could_why, CLUSTER: found.cluster_why, FULL: found.full_why}
    assert whys == {ANY_SIZE: "", CLUSTER: "", FULL: ""} | {what: why}
    assert (found.could is None) == (what == ANY_SIZE)
    assert (found.served is None) == (what == CLUSTER)
    assert (costs[-1].cluster_us is None) == (what == CLUSTER)
    assert (costs[-1].compiled_us is None) == (what == FULL)
    said = lines(found, costs)
    assert ('xla = "cluster": no. ' + why in said) == (what == CLUSTER)
    assert ('xla = "full": no. ' + why in said) == (what == FULL)
    assert ("What XLA could take is not known. " + why in said) == (what == ANY_SIZE)


def test_only_clusters_of_any_size_have_flags_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = examined(monkeypatch, any_size="flags", cluster="flags", full="flags")
    assert "--tf_xla_min_cluster_size=1" in found.could_why and "lazy" not in found.could_why
    assert found.cluster_why == found.full_why
    assert "min_cluster" not in found.full_why and "lazy_compilation=false" in found.full_why


@pytest.mark.parametrize("single_threaded", [False, True])
def test_full_has_the_daemons_executor(monkeypatch: pytest.MonkeyPatch, single_threaded: bool) -> None:
    opened = []

    def open_session(runtime: object, target: Target, **asked: Any) -> None:
        opened.append(asked["single_threaded"])
        raise RuntimeFailure("INTERNAL", "no session\nof many lines")

    prepared = SimpleNamespace(path="/p", refused={}, compiled_outputs={})
    monkeypatch.setattr(xla_child, "open_runtime", lambda settings: None)
    monkeypatch.setattr(xla_child, "prepare", lambda path, tags, folder: prepared)
    monkeypatch.setattr(xla_child, "open_session", open_session)
    task = Task(TASK.target, {}, TASK.style, (1,), "", single_threaded, 0.1, what=FULL, folder="/f")
    assert xla_child.answer(task) == "no session"
    assert opened == [single_threaded]


def test_why_a_node_is_left_out_is_no_guess() -> None:
    """Auto-clustering leaves out more than XLA has no kernels for."""
    assert why_not_compiled("PartitionedCall") == "auto-clustering leaves it out"
