"""A traced run of each batch size as a file that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing)
open: the JSON of Chrome's Trace Event Format, a process for each batch size and a lane for each device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from fastserve.version import __version__
from fastserve.workshop.profiling.steps import OpRun, Step
from fastserve.workshop.profiling.values import Profile

Row = dict[str, Any]


def write_trace(file: IO[bytes], profile: Profile) -> None:
    head = {
        "displayTimeUnit": "ns",
        "otherData": {
            "made by": f"fastserve {__version__}",
            "model": profile.path,
            "signature": profile.signature,
            "note": "traced runs; an untraced one is shorter, see the report",
        },
    }
    file.write(json.dumps(head)[:-1].encode() + b', "traceEvents": [\n')
    file.write(b",\n".join(json.dumps(row, separators=(",", ":")).encode() for row in rows(profile)))
    file.write(b"\n]}\n")


def rows(profile: Profile) -> Iterator[Row]:
    """All events, times in microseconds from each run's beginning."""
    for number, (batch, step) in enumerate(sorted(profile.steps.items()), start=1):
        yield _named("process_name", number, 0, f"{batch} row{'' if batch == 1 else 's'} at once")
        yield _named("process_sort_index", number, 0, number, key="sort_index")
        yield _named("thread_name", number, 1, "the run")
        yield _slice(number, 1, "run", step.begin_ns, step.end_ns, step, {})
        lanes: dict[tuple[str, int], int] = {}
        for op in [*step.ops, *step.streams]:
            lane = lanes.setdefault((op.device, op.thread), len(lanes) + 2)
            yield _slice(
                number,
                lane,
                profile.labels.get(op.node, op.node),
                op.begin_ns,
                op.end_ns,
                step,
                _arguments(op),
            )
        for (device, _), lane in lanes.items():
            yield _named("thread_name", number, lane, device.rpartition("/device:")[2] or device)


def _arguments(op: OpRun) -> Row:
    made: Row = {"op": op.op, "node": op.node, "own_us": round(op.own_ns / 1e3, 3)}
    made |= {"output_bytes": op.output_bytes} if op.output_bytes else {}
    made |= {"peak_bytes": op.peak_bytes} if op.peak_bytes else {}
    return made


def _slice(pid: int, tid: int, name: str, begin_ns: int, end_ns: int, step: Step, args: Row) -> Row:
    row: Row = {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": round((begin_ns - step.begin_ns) / 1e3, 3),
        "dur": round((end_ns - begin_ns) / 1e3, 3),
    }
    return {**row, "args": args} if args else row


def _named(what: str, pid: int, tid: int, value: object, *, key: str = "name") -> Row:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {key: value}}
