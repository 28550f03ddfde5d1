"""A recording as a file that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) open: the JSON of
Chrome's Trace Event Format, a lane for each thread.

A leaf, used by `fastserve trace`. Batches, loads, warm-up runs and turns of the loops are complete events
("X"), which nest by their times; what they consist of lies within them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from fastserve.call_names import CODES
from fastserve.trace_events import (
    COMPILED,
    SESSION_RUN,
    SOLO,
    TASKS,
    TURNS,
    Event,
    Kind,
    name_of,
)

# Lanes from top to bottom, by the beginning of the thread's name.
_ORDER = ("loop", "fs-io", "fs-exec", "fs-named", "fs-load", "fs-switch")

Slice = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """What is known of a recording besides its events."""

    tracks: Sequence[str]  # the threads' names
    pid: int
    begin_us: int
    end_us: int
    lost: int
    version: str
    note: str = ""  # why it is not all that was asked for


def write_chrome(file: IO[str], recording: Recording, events: Iterable[Event]) -> int:
    """Writes the file; the number of slices in it."""
    n = 0
    head = {
        "displayTimeUnit": "ms",
        "otherData": {
            "made by": f"fastserve {recording.version}",
            "seconds": round((recording.end_us - recording.begin_us) / 1e6, 3),
            "events lost": recording.lost,
            **({"note": recording.note} if recording.note else {}),
        },
    }
    file.write(json.dumps(head)[:-1] + ', "traceEvents": [\n')
    file.write(",\n".join(json.dumps(row) for row in _lanes(recording)))
    for row in _slices(recording, events):
        file.write(",\n" + json.dumps(row, separators=(",", ":")))
        n += 1
    file.write("\n]}\n")
    return n


def _lanes(recording: Recording) -> Iterator[Slice]:
    """Who is who."""
    pid = recording.pid
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": "fastserve core"}}
    for number, name in enumerate(recording.tracks):
        place = next((i for i, prefix in enumerate(_ORDER) if name.startswith(prefix)), len(_ORDER))
        lane = {"ph": "M", "pid": pid, "tid": number + 1}
        yield {**lane, "name": "thread_name", "args": {"name": name}}
        yield {**lane, "name": "thread_sort_index", "args": {"sort_index": place * 1000 + number}}


def _slices(recording: Recording, events: Iterable[Event]) -> Iterator[Slice]:
    begun: dict[int, Event] = {}
    for event in events:
        if event.kind == Kind.TASK_BEGUN:
            begun[event.track] = event
            continue
        if event.kind == Kind.TASK:
            begun.pop(event.track, None)
        if event.end_us < recording.begin_us:
            continue
        for name, begin_us, end_us, args in _parts(event):
            yield _slice(recording, event.track, name, begin_us, end_us, args)
    for event in begun.values():
        end_us = max(recording.end_us, event.begin_us)
        yield _slice(recording, event.track, _task(event), event.begin_us, end_us, {"unfinished": True})


def _slice(recording: Recording, track: int, name: str, begin_us: int, end_us: int, args: Slice) -> Slice:
    row: Slice = {
        "ph": "X",
        "name": name,
        "pid": recording.pid,
        "tid": track + 1,
        "ts": begin_us,
        "dur": max(end_us - begin_us, 0),
    }
    if args:
        row["args"] = args
    return row


def _task(event: Event) -> str:
    return f"{name_of(TASKS, event.detail)} {event.servable}".rstrip()


def _parts(event: Event) -> Iterator[tuple[str, int, int, Slice]]:
    """The slices of an event, the outermost first: name, begin, end, arguments."""
    begin, end = event.begin_us, event.end_us
    failed: Slice = {"code": name_of(CODES, event.code)} if event.code else {}
    match event.kind:
        case Kind.BATCH if event.method == SESSION_RUN:
            yield f"SessionRun {event.servable}", begin, end, failed
        case Kind.BATCH:
            args: Slice = {"rows": event.rows, "padded_to": event.run_rows, "calls": event.amount}
            args |= {"model": event.model, "version": event.version, "signature": event.signature}
            args |= {"xla": True} if event.flags & COMPILED else {}
            args |= {"unbatched": True} if event.flags & SOLO else {}
            yield f"{event.servable} {event.signature}", begin, end, args
            ran, done = event.at_us[:2]
            if ran:
                ran, done = min(max(ran, begin), end), min(max(done, begin), end)
                yield "gather", begin, ran, {}
                yield "run", ran, done, {"rows": event.run_rows}
                yield "encode", done, end, {}
        case Kind.TASK:
            yield _task(event), begin, end, failed
            if opened := event.at_us[0]:
                yield "open", begin, opened, {}
                yield "warm up", opened, end, {}
        case Kind.WARM_RUN:
            args = {"rows": event.rows, **failed} | ({"xla": True} if event.flags & COMPILED else {})
            yield f"warm-up run {event.signature or 'of a recorded request'}", begin, end, args
        case Kind.TURN:
            unit = "descriptors" if name_of(TURNS, event.detail) == "turn" else "bytes"
            yield name_of(TURNS, event.detail), begin, end, {unit: event.amount} if event.amount else {}
