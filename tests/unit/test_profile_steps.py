"""What is made of a RunMetadata: own times, what lies between ops, memory."""

from __future__ import annotations

from typing import Any

import pytest

from fastserve.protos import message
from fastserve.workshop.profiling.runs import costs_of
from fastserve.workshop.profiling.steps import read_step
from fastserve.workshop.profiling.values import BatchProfile, CostPoint, OpCost, stops_paying

T0 = 1_700_000_000_000_000_000
HOST = "/job:localhost/replica:0/task:0/device:CPU:0"


def run_metadata(*ops: tuple[str, int, int], device: str = HOST, thread: int = 1, **more: Any) -> Any:
    """`ops`: node, begin and end of its kernel after T0. Each is taken up 10 before and put down 10 after."""
    told = message("tensorflow.RunMetadata")()
    add_device(told, *ops, device=device, thread=thread)
    return told


def add_device(told: Any, *ops: tuple[str, int, int], device: str, thread: int = 1) -> None:
    stats = told.step_stats.dev_stats.add(device=device)
    for node, begin, end in ops:
        stats.node_stats.add(
            node_name=node,
            timeline_label=f"[cpu 1.0KB] {node} = {node.partition('_')[0]}(x, y)",
            all_start_nanos=T0 + begin - 10,
            op_start_rel_nanos=10,
            op_end_rel_nanos=10 + end - begin,
            all_end_rel_nanos=20 + end - begin,
            thread_id=thread,
        )


def test_the_parts_of_a_run_are_its_whole() -> None:
    told = run_metadata(("MatMul_1", 100, 400), ("Relu_1", 500, 550))
    step = read_step(told.SerializeToString(), T0, T0 + 1000)
    assert [(op.node, op.op, op.own_ns) for op in step.ops] == [
        ("MatMul_1", "MatMul", 300),
        ("Relu_1", "Relu", 50),
    ]
    assert (step.before_ns, step.between_ns, step.after_ns) == (90, 10 + 100 + 10, 440)
    assert step.before_ns + step.ops_ns + step.between_ns + step.after_ns == step.wall_ns == 1000


def test_a_call_has_only_the_time_that_what_it_calls_has_not() -> None:
    told = run_metadata(
        ("Call_1", 100, 500), ("MatMul_1", 150, 350), ("Inner_1", 200, 250), ("Relu_1", 350, 400)
    )
    step = read_step(told.SerializeToString(), T0, T0 + 1000)
    assert {op.node: op.own_ns for op in step.ops} == {
        "Call_1": 400 - 200 - 50,
        "MatMul_1": 200 - 50,
        "Inner_1": 50,
        "Relu_1": 50,
    }
    assert step.ops_ns == 400
    assert step.between_ns == 20


def test_ops_of_other_threads_are_not_inside() -> None:
    told = run_metadata(("Call_1", 100, 500))
    add_device(told, ("MatMul_1", 200, 400), device=HOST, thread=2)
    step = read_step(told.SerializeToString(), T0, T0 + 1000)
    assert {op.node: op.own_ns for op in step.ops} == {"Call_1": 400, "MatMul_1": 200}
    assert step.between_ns == 20


def test_times_of_an_accelerator_stand_apart() -> None:
    told = run_metadata(("MatMul_1", 100, 110), device="/job:localhost/replica:0/task:0/device:GPU:0")
    add_device(told, ("MatMul_1:MatMul", 105, 400), device="/device:GPU:0/stream:all")
    step = read_step(told.SerializeToString(), T0, T0 + 1000)
    assert [op.own_ns for op in step.ops] == [10]
    assert [op.node for op in step.streams] == ["MatMul_1:MatMul"]


def test_times_in_microseconds_do_where_there_are_no_others() -> None:
    told = message("tensorflow.RunMetadata")()
    told.step_stats.dev_stats.add(device=HOST).node_stats.add(
        node_name="x",
        all_start_micros=T0 // 1000,
        op_start_rel_micros=2,
        op_end_rel_micros=5,
        all_end_rel_micros=6,
    )
    step = read_step(told.SerializeToString(), T0, T0 + 10_000)
    assert (step.ops_ns, step.between_ns, step.after_ns) == (3000, 3000, 4000)


def test_a_run_without_ops_is_refused() -> None:
    with pytest.raises(ValueError, match="tells of no op"):
        read_step(b"", 0, 1)


def test_memory_is_what_was_given_and_what_was_held() -> None:
    told = run_metadata(("MatMul_1", 100, 400))
    node = told.step_stats.dev_stats[0].node_stats[0]
    node.memory.add(allocator_name="cpu", total_bytes=900, peak_bytes=700, live_bytes=400)
    node.output.add().tensor_description.allocation_description.requested_bytes = 400
    (op,) = read_step(told.SerializeToString(), T0, T0 + 1000).ops
    assert (op.output_bytes, op.peak_bytes) == (400, 700)


def test_costs_are_means_that_add_up_and_the_most_memory() -> None:
    first = run_metadata(("Add_1", 100, 200), ("Add_1", 300, 400), ("Relu_1", 500, 600))
    second = run_metadata(("Add_1", 100, 300), ("Add_1", 300, 400), ("Relu_1", 500, 800))
    first.step_stats.dev_stats[0].node_stats[0].memory.add(peak_bytes=64)
    steps = [read_step(told.SerializeToString(), T0, T0 + 1000) for told in (first, second)]
    costs = costs_of(steps, {"Add_1": "layer/add"})
    assert [(cost.label, cost.runs, cost.own_us) for cost in costs] == [
        ("layer/add", 2, 0.25),
        ("Relu_1", 1, 0.2),
    ]
    assert costs[0].peak_bytes == 64
    assert sum(cost.own_us for cost in costs) * 1e3 == pytest.approx(sum(step.ops_ns for step in steps) / 2)


def test_types_gather_their_nodes() -> None:
    ops = (
        OpCost("a", "a", "MatMul", 1, 5.0, 100, 200),
        OpCost("b", "b", "Relu", 1, 4.0, 10, 10),
        OpCost("c", "c", "MatMul", 1, 3.0, 50, 400),
    )
    batch = BatchProfile(8, 10, 13.0, 14.0, 20.0, 1.0, 12.0, 1.0, 6.0, ops)
    first, second = batch.types()
    assert (first.op, first.nodes, first.own_us, first.output_bytes, first.peak_bytes) == (
        "MatMul",
        2,
        8.0,
        150,
        400,
    )
    assert second.op == "Relu"
    assert batch.accounted == pytest.approx(12.0 / 13.0)
    assert batch.tracing_us == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("costs", "rows"),
    [
        ({1: 100.0}, None),
        ({1: 100.0, 2: 110.0, 4: 130.0}, None),  # still cheaper at the largest
        ({1: 100.0, 2: 200.0, 4: 400.0}, 1),  # nothing to gain at all
        ({1: 100.0, 8: 160.0, 16: 300.0, 32: 590.0}, 8),
        ({1: 100.0, 8: 160.0, 16: 330.0, 32: 400.0}, None),  # worse for a while only
    ],
)
def test_where_batching_stops_paying(costs: dict[int, float], rows: int | None) -> None:
    assert stops_paying([CostPoint(n, us) for n, us in costs.items()]) == rows
