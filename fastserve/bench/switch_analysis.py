"""From what a switch run saw to what it means: windows against steady time, answers against versions.

A switch's window runs from when its directory appears until a few seconds after the old version is gone.
Steady is all other time. A request belongs to where it was due. Pure functions of a Recording.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from fastserve.bench.switch_plan import MODEL, Plan
from fastserve.bench.switch_result import Bars, RunFound, Stretch, SwitchFound, TargetFound
from fastserve.bench.switch_trace import Recording, Records, Switch, Trace

# The bars.
P999_RATIO = 1.5
MAX_MORE_MS = 5.0
MAX_WITHIN = 0.9

EARLY, STALE = "answered before it appeared", "answered after it was gone"
_BASE_VERSION = 1

Mask = npt.NDArray[np.bool_]
Spans = Sequence[tuple[int, int]]
# As in a Recording.
Stolen = Sequence[tuple[int, float]]


def found(plan: Plan, recording: Recording, seconds: float) -> RunFound:
    """All that a run's recording says."""
    begin_ns = min((int(trace.records["due_ns"].min(initial=2**62)) for trace in recording.traces), default=0)
    model = next((trace for trace in recording.traces if trace.target == MODEL), None)
    return RunFound(
        name=plan.name,
        model=plan.model.name,
        xla=plan.xla,
        without=plan.variant.name,
        about=plan.variant.about,
        options=dict(plan.variant.options),
        rows=plan.load.rows,
        seconds=round(seconds, 1),
        switches=[_switch(switch, model, begin_ns) for switch in recording.switches],
        targets=[_target(trace, recording, plan.timing.switches) for trace in recording.traces],
        core_restarts=recording.core_restarts,
        busy_before=round(recording.busy_before, 4),
        ended=recording.ended,
    )


# ---- where time goes ------------------------------------------------------------------------------


def windows_of(recording: Recording) -> list[tuple[int, int]]:
    return [(switch.appeared_ns, switch.until_ns) for switch in recording.switches]


def steady_spans(recording: Recording, begin_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """[begin, end) without the windows, and without the switch that was not seen to its end."""
    if recording.unfinished is not None:
        end_ns = min(end_ns, recording.unfinished.appeared_ns)
    spans, at = [], begin_ns
    for first, last in windows_of(recording):
        if first > at:
            spans.append((at, first))
        at = max(at, last)
    if end_ns > at:
        spans.append((at, end_ns))
    return spans


def within(records: Records, spans: Spans) -> Mask:
    """Which records were due in one of the spans, [begin, end)."""
    due = records["due_ns"]
    mask = np.zeros(len(records), bool)
    for first, last in spans:
        mask |= (due >= first) & (due < last)
    return mask


def stretch(records: Records, spans: Spans, stolen: Stolen = ()) -> Stretch | None:
    """Of the good answers among `records`, which are those due in `spans`; None when there are none."""
    took = np.sort(records["took_ns"][records["failure"] == 0])
    if not len(took):
        return None
    seconds = sum(last - first for first, last in spans) / 1e9
    values = {name: _ms(quantile(took, share)) for name, share in _QUANTILES.items()}
    return Stretch(
        seconds=round(seconds, 3),
        done=len(took),
        max=_ms(took[-1]),
        stolen=round(stolen_share(stolen, spans), 4),
        **values,
    )


_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def stolen_share(stolen: Stolen, spans: Spans) -> float:
    """Of all processors' time in the spans, what the host gave to others, as if evenly between two looks."""
    seconds = sum(last - first for first, last in spans) / 1e9
    if not stolen or not seconds:
        return 0.0
    at_ns, sums = np.array(stolen, np.float64).T
    took = sum(np.interp(last, at_ns, sums) - np.interp(first, at_ns, sums) for first, last in spans)
    return float(took) / seconds / (os.cpu_count() or 1)


def quantile(ordered: npt.NDArray[np.int64], share: float) -> int:
    """The value that this share of all is not above."""
    rank = max(1, math.ceil(share * len(ordered) - 1e-9))
    return int(ordered[rank - 1])


def span_maxima(records: Records, spans: Spans, length_ns: int) -> list[float]:
    """The maxima, in ms, of stretches of the spans that are so long. What is left over at a span's end goes
    with the next span's begin."""
    maxima, took = [], 0
    left_ns = length_ns
    for first, last in spans:
        at = first
        while last - at >= left_ns:
            took = max(took, _longest(records, at, at + left_ns))
            maxima.append(_ms(took))
            at, took, left_ns = at + left_ns, 0, length_ns
        took = max(took, _longest(records, at, last))
        left_ns -= last - at
    return maxima


def _longest(records: Records, first: int, last: int) -> int:
    chosen = records[within(records, [(first, last)]) & (records["failure"] == 0)]
    return int(chosen["took_ns"].max(initial=0))


# ---- which version answered -------------------------------------------------------------------------


def wrong_times(trace: Trace, switches: Sequence[Switch]) -> dict[str, int]:
    """Good answers by a version that was not there: before its directory appeared, or to a request that was
    due when it was known to be gone."""
    good = trace.records[trace.records["failure"] == 0]
    if not len(good):
        return {}
    appeared, gone = _lifetimes(switches if trace.target == MODEL else ())
    answered = good["due_ns"] + good["took_ns"]
    early = stale = 0
    for version in np.unique(good["version"]):
        mine = good["version"] == version
        early += int((answered[mine] < appeared.get(int(version), 2**62)).sum())
        stale += int((good["due_ns"][mine] > gone.get(int(version), 2**62)).sum())
    return {kind: count for kind, count in ((EARLY, early), (STALE, stale)) if count}


def _lifetimes(switches: Sequence[Switch]) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """By version, when it appeared and when it was gone: the next one's switch says that."""
    appeared = {_BASE_VERSION: 0} | {switch.version: switch.appeared_ns for switch in switches}
    order = [_BASE_VERSION, *(switch.version for switch in switches)]
    gone = {before: switch.gone_ns for before, switch in zip(order, switches, strict=False)}
    return appeared, gone


# ---- what it comes to -------------------------------------------------------------------------------


def _target(trace: Trace, recording: Recording, asked: int) -> TargetFound:
    records = trace.records[np.argsort(trace.records["due_ns"], kind="stable")]
    windows = windows_of(recording)
    spans: list[tuple[int, int]] = []
    if len(records):
        spans = steady_spans(recording, int(records["due_ns"][0]), int(records["due_ns"][-1]) + 1)
    stolen = recording.stolen
    steady = stretch(records[within(records, spans)], spans, stolen)
    each = [stretch(records[within(records, [window])], [window], stolen) for window in windows]
    span_ns = int(median(last - first for first, last in windows)) if windows else 0
    # A switch that did not end has an open window: until it does, versions are as they are.
    switches = [*recording.switches, *([recording.unfinished] if recording.unfinished else [])]
    failed = {**trace.failed, **wrong_times(trace, switches)}
    good = records[records["failure"] == 0]
    versions, counts = np.unique(good["version"], return_counts=True)
    wrong = sum(failed.values()) + trace.unanswered + trace.unrecorded
    whole = [one for one in each if one is not None]
    complete = steady is not None and len(whole) == len(windows) == asked
    return TargetFound(
        target=trace.target,
        rate=round(trace.rate, 1),
        saturation=round(trace.saturation, 1),
        sent=trace.sent,
        done=len(good),
        failed=failed,
        unanswered=trace.unanswered,
        unrecorded=trace.unrecorded,
        by_version={str(v): int(n) for v, n in zip(versions, counts, strict=True)},
        first_error=trace.first_error,
        steady=steady,
        windows=whole,
        steady_span_s=round(span_ns / 1e9, 3),
        steady_span_max=span_maxima(records, spans, span_ns) if span_ns > 0 else [],
        behind_p999=_ms(trace.behind_p999_ns),
        generator_cpu_s=round(trace.cpu_s, 3),
        bars=bars(steady, whole, wrong) if complete and steady is not None else None,
    )


def bars(steady: Stretch, windows: Sequence[Stretch], wrong: int) -> Bars:
    """Whether the switches went unnoticed. There is at least one window."""
    ratio = median(window.p999 for window in windows) / steady.p999
    most = steady.max + MAX_MORE_MS
    inside = sum(window.max <= most for window in windows)
    least = math.ceil(MAX_WITHIN * len(windows) - 1e-9)
    return Bars(
        p999_ratio=round(ratio, 3),
        p999_ratio_most=P999_RATIO,
        p999_passes=ratio <= P999_RATIO,
        max_within=inside,
        max_within_least=least,
        max_most=round(most, 3),
        max_passes=inside >= least,
        wrong=wrong,
        wrong_passes=wrong == 0,
    )


def _switch(switch: Switch, model: Trace | None, begin_ns: int) -> SwitchFound:
    first_ns = last_old_ns = None
    if model is not None:
        good = model.records[model.records["failure"] == 0]
        answered = good["due_ns"] + good["took_ns"]
        new = answered[good["version"] == switch.version]
        old = answered[good["version"] == switch.version - 1]
        first_ns = int(new.min()) if len(new) else None
        last_old_ns = int(old.max()) if len(old) else None

    def after(at_ns: int) -> float:
        return round((at_ns - switch.appeared_ns) / 1e9, 3)

    return SwitchFound(
        version=switch.version,
        at_s=round((switch.appeared_ns - begin_ns) / 1e9, 3),
        stages={name: after(at_ns) for name, at_ns in switch.stages.items()},
        published_s=after(switch.published_ns),
        first_answer_s=after(first_ns) if first_ns is not None else None,
        last_old_answer_s=after(last_old_ns) if last_old_ns is not None else None,
        gone_s=after(switch.gone_ns),
        window_s=after(switch.until_ns),
    )


def _ms(nanoseconds: float) -> float:
    return round(float(nanoseconds) / 1e6, 4)
