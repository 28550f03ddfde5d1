"""Records of a core's trace, made up: what `fastserve.trace_events` reads."""

from __future__ import annotations

import struct
from typing import Any

from fastserve.trace_events import Event, Kind, events_of

_RECORD = struct.Struct("<Q8B10q16s8s88s48s")


def record(kind: Kind, **fields: Any) -> bytes:
    """One record; what is left out is 0 or empty."""
    model, signature = fields.get("model", "").encode(), fields.get("signature", "").encode()
    small = [fields.get(name, 0) for name in ("detail", "flags", "code", "method", "transport")]
    times = [*fields.get("at_us", ()), 0, 0, 0, 0][:4]
    numbers = [fields.get(name, 0) for name in ("version", "rows", "run_rows", "count")]
    return _RECORD.pack(
        fields.get("track", 0),
        kind,
        *small,
        len(model),
        len(signature),
        fields.get("begin_us", 0),
        fields.get("end_us", 0),
        *times,
        *numbers,
        fields.get("trace_id", b""),
        fields.get("parent_id", b""),
        model,
        signature,
    )


def event(kind: Kind, **fields: Any) -> Event:
    return next(events_of(record(kind, **fields)))


def call(**fields: Any) -> Event:
    """A Predict of two rows that took ten microseconds in all."""
    usual: dict[str, Any] = {
        "begin_us": 1000,
        "end_us": 1010,
        "at_us": (1001, 1003, 1007, 1009),
        "model": "ranker",
        "signature": "serving_default",
        "version": 3,
        "rows": 2,
        "count": 6,
        "run_rows": 8,
    }
    return event(Kind.CALL, **{**usual, **fields})
