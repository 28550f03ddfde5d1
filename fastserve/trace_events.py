"""The events of a core's trace (csrc/trace_ring.h), as values.

A leaf: the control process makes spans of them, and `fastserve trace` a file. `TraceReader.read` and a
recording's file give them as records of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from fastserve.call_names import METHODS


class Kind(IntEnum):
    """What an event tells: enum fs_trace_kind."""

    BATCH = 1
    CALL = 2
    TASK_BEGUN = 3
    TASK = 4
    WARM_RUN = 5
    TURN = 6

    @property
    def bit(self) -> int:
        """In the set of kinds that a reader asks for."""
        return 1 << self


CALLS = Kind.CALL.bit
# Of a recording.
ACTIVITY = Kind.BATCH.bit | Kind.TASK_BEGUN.bit | Kind.TASK.bit | Kind.WARM_RUN.bit | Kind.TURN.bit

# Flags: fs_trace_event.flags.
COMPILED, SOLO, PARENT = 1, 2, 4

SESSION_RUN = METHODS.index("SessionRun")
# enum fs_task_kind.
TASKS = ("load", "publish", "retire", "close", "label", "call", "route", "log")
# enum fs_trace_turn.
TURNS = ("read", "deliver", "turn")

# The track's number, then fs_trace_event.
_RECORD = Struct("<Q8B10q16s8s88s48s")
RECORD_BYTES = _RECORD.size


class Event(NamedTuple):
    """One event. Times are microseconds on CLOCK_MONOTONIC; 0: it did not come to that."""

    track: int
    kind: int
    detail: int
    flags: int
    code: int
    method: int
    transport: int
    begin_us: int
    end_us: int
    at_us: tuple[int, int, int, int]
    version: int
    rows: int
    run_rows: int
    amount: int  # of calls, bytes, rows of the batch: as the kind says
    trace_id: bytes
    parent_id: bytes
    model: str
    signature: str

    @property
    def servable(self) -> str:
        """ "ranker:3"; without a version "ranker"."""
        return f"{self.model}:{self.version}" if self.version else self.model


def name_of(names: tuple[str, ...], number: int) -> str:
    """One of the tables above, whatever a later core may send."""
    return names[number] if number < len(names) else str(number)


def events_of(records: bytes) -> Iterator[Event]:
    """The events in `records`, of which the last may be cut off."""
    whole = len(records) // RECORD_BYTES * RECORD_BYTES
    for record in _RECORD.iter_unpack(memoryview(records)[:whole]):
        track, kind, detail, flags, code, method, transport, model_len, signature_len = record[:9]
        begin, end, first, second, third, fourth, version, rows, run_rows, count = record[9:19]
        trace_id, parent_id, model, signature = record[19:]
        yield Event(
            track,
            kind,
            detail,
            flags,
            code,
            method,
            transport,
            begin,
            end,
            (first, second, third, fourth),
            version,
            rows,
            run_rows,
            count,
            trace_id,
            parent_id,
            # A name that was cut may end within a letter.
            model[:model_len].decode("utf-8", "replace"),
            signature[:signature_len].decode("utf-8", "replace"),
        )
