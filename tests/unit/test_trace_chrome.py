"""Events of a trace as values, and as a file that Perfetto and Chrome open."""

from __future__ import annotations

import io
import json
from typing import Any

from trace_records import call, event, record

from fastserve.trace_chrome import Recording, write_chrome
from fastserve.trace_events import COMPILED, RECORD_BYTES, SESSION_RUN, SOLO, TASKS, Event, Kind, events_of

TRACKS = ("fs-exec-0", "fs-switch", "fs-load-0", "loop")
EXEC, SWITCH, LOAD, LOOP = range(4)


def written(events: list[Event], **more: Any) -> dict[str, Any]:
    """The file, read again."""
    recording = Recording(
        **{"tracks": TRACKS, "pid": 7, "begin_us": 1000, "end_us": 9000, "lost": 0, "version": "1", **more}
    )
    file = io.StringIO()
    n = write_chrome(file, recording, events)
    content: dict[str, Any] = json.loads(file.getvalue())
    assert n == len(slices(content))
    return content


def slices(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in content["traceEvents"] if row["ph"] == "X"]


def spans(content: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(row["name"], row["ts"], row["ts"] + row["dur"]) for row in slices(content)]


def test_a_record_is_read_as_it_was_written() -> None:
    one = event(
        Kind.CALL,
        track=3,
        code=5,
        transport=1,
        begin_us=10,
        end_us=20,
        at_us=(11, 12, 13, 14),
        version=4,
        rows=2,
        trace_id=b"t" * 16,
        parent_id=b"p" * 8,
        model="é" * 44,
        signature="s",
    )
    assert (one.track, one.code, one.transport, one.begin_us, one.end_us) == (3, 5, 1, 10, 20)
    assert one.at_us == (11, 12, 13, 14)
    assert (one.trace_id, one.parent_id) == (b"t" * 16, b"p" * 8)
    assert (one.model, one.signature, one.servable) == ("é" * 44, "s", "é" * 44 + ":4")
    records = record(Kind.BATCH, rows=1) + record(Kind.BATCH, rows=2) + record(Kind.BATCH, rows=3)
    assert [e.rows for e in events_of(records[:-1])] == [1, 2]
    assert len(records) == 3 * RECORD_BYTES
    cut = bytearray(record(Kind.BATCH, model="aé"))
    cut[8 + 6] = 2  # within the letter
    assert next(events_of(bytes(cut))).model == "a\ufffd"


def test_every_thread_has_a_lane_with_its_name() -> None:
    content = written([])
    rows = [row for row in content["traceEvents"] if row["ph"] == "M"]
    names = {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert names == {number + 1: name for number, name in enumerate(TRACKS)}
    order = {row["tid"]: row["args"]["sort_index"] for row in rows if row["name"] == "thread_sort_index"}
    top_down = [names[tid] for tid in sorted(names, key=lambda tid: order[tid])]
    assert top_down == ["loop", "fs-exec-0", "fs-load-0", "fs-switch"]
    assert {row["pid"] for row in rows} == {7}


def test_a_batch_has_its_stages_within() -> None:
    batch = {"begin_us": 2000, "end_us": 2100, "at_us": (2010, 2080), "model": "m", "version": 3}
    content = written(
        [event(Kind.BATCH, track=EXEC, rows=5, run_rows=8, count=2, signature="s", flags=COMPILED, **batch)]
    )
    assert spans(content) == [
        ("m:3 s", 2000, 2100),
        ("gather", 2000, 2010),
        ("run", 2010, 2080),
        ("encode", 2080, 2100),
    ]
    args = slices(content)[0]["args"]
    assert args == {
        "rows": 5, "padded_to": 8, "calls": 2, "model": "m", "version": 3, "signature": "s", "xla": True
    }  # fmt: skip
    assert {row["tid"] for row in slices(content)} == {EXEC + 1}
    solo = slices(written([event(Kind.BATCH, flags=SOLO, **batch)]))[0]
    assert solo["args"]["unbatched"] is True


def test_a_batch_that_never_ran_has_none() -> None:
    assert spans(written([event(Kind.BATCH, begin_us=2000, end_us=2005, model="m")])) == [("m ", 2000, 2005)]


def test_a_load_has_opening_and_warming_up_within() -> None:
    load = TASKS.index("load")
    content = written(
        [
            event(Kind.TASK_BEGUN, track=LOAD, detail=load, begin_us=2000, model="m", version=4),
            event(Kind.WARM_RUN, track=LOAD, begin_us=2600, end_us=2700, rows=8, signature="s"),
            event(Kind.WARM_RUN, track=LOAD, begin_us=2700, end_us=2800, code=3),
            event(
                Kind.TASK,
                track=LOAD,
                detail=load,
                begin_us=2000,
                end_us=2900,
                at_us=(2500,),
                model="m",
                version=4,
            ),
        ]
    )
    assert spans(content) == [
        ("warm-up run s", 2600, 2700),
        ("warm-up run of a recorded request", 2700, 2800),
        ("load m:4", 2000, 2900),
        ("open", 2000, 2500),
        ("warm up", 2500, 2900),
    ]
    assert slices(content)[1]["args"]["code"] == "INVALID_ARGUMENT"


def test_a_task_that_is_not_over_goes_to_the_end() -> None:
    close = TASKS.index("close")
    begun = event(Kind.TASK_BEGUN, track=LOAD, detail=close, begin_us=500, model="m", version=4)
    content = written([begun])
    assert spans(content) == [("close m:4", 500, 9000)]
    assert slices(content)[0]["args"] == {"unfinished": True}


def test_a_task_that_was_over_before_is_no_part_of_it() -> None:
    close = TASKS.index("close")
    begun = event(Kind.TASK_BEGUN, track=LOAD, detail=close, begin_us=500, model="m", version=4)
    over = event(Kind.TASK, track=LOAD, detail=close, begin_us=500, end_us=999, model="m", version=4)
    assert spans(written([begun, over])) == []


def test_turns_and_runs_by_name() -> None:
    content = written(
        [
            event(Kind.TURN, track=LOOP, detail=0, begin_us=2000, end_us=2010, count=512),
            event(Kind.TURN, track=LOOP, detail=1, begin_us=2010, end_us=2020),
            event(Kind.TURN, track=LOOP, detail=2, begin_us=2020, end_us=2030, count=3),
            event(Kind.BATCH, method=SESSION_RUN, begin_us=2000, end_us=2010, model="m", version=1, code=3),
            call(),  # no part of a recording
        ]
    )
    assert [(row["name"], row.get("args")) for row in slices(content)] == [
        ("read", {"bytes": 512}),
        ("deliver", None),
        ("turn", {"descriptors": 3}),
        ("SessionRun m:1", {"code": "INVALID_ARGUMENT"}),
    ]


def test_what_is_missing_is_said() -> None:
    content = written([], lost=12, note="ended early: why")
    assert content["otherData"] == {
        "made by": "fastserve 1",
        "seconds": 0.008,
        "events lost": 12,
        "note": "ended early: why",
    }
