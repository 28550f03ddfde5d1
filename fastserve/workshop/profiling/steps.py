"""What TensorFlow tells of one traced run, op by op: from a RunMetadata to times and memory. Pure.

Times are of the host: where ops run on an accelerator they are what starting them took, and what the
accelerator did stands in `Step.streams`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastserve.protos import message
from fastserve.workshop.profiling.names import op_type

_LABEL = re.compile(r"= (\w+)\(")
# Devices under such names repeat what the host started, with the accelerator's own times.
_STREAM = re.compile(r"/stream:|/memcpy|/gpu:\d+ \(|sync", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OpRun:
    """One run of one node. Times of day, in nanoseconds. `own_ns`: its kernel's time without that of ops that
    it ran meanwhile, as a function call does. `peak_bytes`: what it allocated, at its highest."""

    node: str
    op: str
    # TensorFlow's own words: "name = Op(inputs)".
    says: str
    device: str
    thread: int
    begin_ns: int
    end_ns: int
    own_ns: int
    output_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a session. `begin_ns`, `end_ns`: around it, by the caller's clock."""

    ops: tuple[OpRun, ...]
    streams: tuple[OpRun, ...]
    begin_ns: int
    end_ns: int
    # Until TensorFlow takes the first op up, and after it has put the last one down.
    before_ns: int
    after_ns: int
    # While it was busy with ops, and none of them ran: the executor, with what tracing costs it.
    between_ns: int

    @property
    def wall_ns(self) -> int:
        return self.end_ns - self.begin_ns

    @property
    def ops_ns(self) -> int:
        return sum(op.own_ns for op in self.ops)


def read_step(metadata: bytes, begin_ns: int, end_ns: int) -> Step:
    """The step that a serialized RunMetadata tells of. ValueError where it tells of no op."""
    stats = message("tensorflow.RunMetadata").FromString(metadata).step_stats
    hosts: list[OpRun] = []
    streams: list[OpRun] = []
    taken_up: list[int] = []
    put_down: list[int] = []
    for device in stats.dev_stats:
        for node in device.node_stats:
            start = node.all_start_nanos or node.all_start_micros * 1000
            run = OpRun(
                node=node.node_name,
                op=_op(node.timeline_label),
                says=node.timeline_label,
                device=device.device,
                thread=node.thread_id,
                begin_ns=start + (node.op_start_rel_nanos or node.op_start_rel_micros * 1000),
                end_ns=start + (node.op_end_rel_nanos or node.op_end_rel_micros * 1000),
                own_ns=0,
                output_bytes=sum(_output_bytes(output) for output in node.output),
                peak_bytes=max(
                    sum(used.peak_bytes for used in node.memory), node.memory_stats.temp_memory_size, 0
                ),
            )
            if _STREAM.search(device.device):
                streams.append(run)
                continue
            hosts.append(run)
            taken_up.append(start)
            put_down.append(start + (node.all_end_rel_nanos or node.all_end_rel_micros * 1000))
    if not hosts:
        raise ValueError("TensorFlow tells of no op in this run")
    first, last = min(taken_up), max(put_down)
    return Step(
        ops=tuple(_with_own_times(hosts)),
        streams=tuple(streams),
        begin_ns=begin_ns,
        end_ns=end_ns,
        before_ns=first - begin_ns,
        after_ns=end_ns - last,
        between_ns=(last - first) - _covered_ns((run.begin_ns, run.end_ns) for run in hosts),
    )


def _op(label: str) -> str:
    """Of "name = Op(inputs)"."""
    found = _LABEL.search(label)
    return op_type(found[1]) if found else ""


def _output_bytes(output: Any) -> int:
    described = output.tensor_description.allocation_description
    size: int = max(described.allocated_bytes, described.requested_bytes, 0)
    return size


def _with_own_times(runs: Sequence[OpRun]) -> list[OpRun]:
    """The runs in the order of their beginnings, each with the time that no run inside it, on its thread,
    had."""
    ordered = sorted(runs, key=lambda run: (run.thread, run.begin_ns, -run.end_ns))
    own = [run.end_ns - run.begin_ns for run in ordered]
    open_runs: list[int] = []
    for index, run in enumerate(ordered):
        while open_runs and (
            ordered[open_runs[-1]].thread != run.thread or ordered[open_runs[-1]].end_ns <= run.begin_ns
        ):
            open_runs.pop()
        if open_runs:
            around = ordered[open_runs[-1]]
            own[open_runs[-1]] -= min(run.end_ns, around.end_ns) - run.begin_ns
        open_runs.append(index)
    made = [replace(run, own_ns=max(own_ns, 0)) for run, own_ns in zip(ordered, own, strict=True)]
    return sorted(made, key=lambda run: run.begin_ns)


def _covered_ns(spans: Iterable[tuple[int, int]]) -> int:
    """How much of the time at least one of the spans covers."""
    covered = 0
    until: int | None = None
    for begin, end in sorted(spans):
        if until is None or begin >= until:
            covered += end - begin
            until = end
        elif end > until:
            covered += end - until
            until = end
    return covered
