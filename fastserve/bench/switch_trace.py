"""What a switch run saw: every request of both models, and when each version came and went.

Times are nanoseconds on CLOCK_MONOTONIC. Values; made by switch_run, read by the analysis and the plot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# csrc/load.h's fs_load_record.
RECORD = np.dtype([("due_ns", "<i8"), ("took_ns", "<i8"), ("version", "<i4"), ("failure", "<i4")])
Records = npt.NDArray[Any]


@dataclass(frozen=True)
class Switch:
    """One version in place of another. published_ns, gone_ns: when they were first seen so. stages: when else
    something was first seen, by name. until_ns: where the switch's window ends."""

    version: int
    appeared_ns: int
    published_ns: int
    gone_ns: int
    until_ns: int
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """One model's load. failed: by kind, as the generator counts; unrecorded: requests that it had no room to
    record."""

    target: str
    rate: float
    saturation: float
    records: Records
    sent: int
    failed: dict[str, int]
    unanswered: int
    unrecorded: int
    first_error: str
    behind_p999_ns: int
    cpu_s: float


@dataclass(frozen=True)
class Recording:
    """A whole run. traces: of the model that is switched, then of the one beside it. ended: why not all
    switches are there; "" when they are. core_restarts: 1 when the core was not the same at the end.
    busy_before: how much of the machine was in use before, 0 to 1. stolen: at some moments, processor seconds
    that the machine's host had given to others by then."""

    traces: tuple[Trace, ...]
    switches: tuple[Switch, ...]
    # The one that was being waited for when the run ended early, with what is known of it.
    unfinished: Switch | None = None
    ended: str = ""
    core_restarts: int = 0
    busy_before: float = 0.0
    stolen: tuple[tuple[int, float], ...] = ()
