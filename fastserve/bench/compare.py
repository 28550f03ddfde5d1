"""What changed from one run to another, and between the targets of one, beyond the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastserve.bench.bootstrap import CONFIDENCE, HIGHER_IS_BETTER, STATISTICS, Estimate, mean, ratio
from fastserve.bench.result import Result, Run, Window

# A change that is certain, and still too small to matter.
THRESHOLD = 0.02
# What --fail-on-regression looks at: the far tail of a run is a matter of luck.
JUDGED = ("rate", "p50", "p90", "p99")

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no change beyond noise", "one round only"


@dataclass(frozen=True)
class Change:
    """One statistic of one target at one point, before and after, or of two targets.

    ratio: after / before. verdict: BETTER, WORSE, SAME, or UNKNOWN: of one round there is no telling.
    note: what else one should know.
    """

    workload: str
    target: str
    point: str
    statistic: str
    before: float
    after: float
    ratio: Estimate
    verdict: str
    note: str = ""

    @property
    def words(self) -> str:
        """ "faster", "slower", of CPU time "less" or "more", or the verdict."""
        better, worse = ("less", "more") if self.statistic == "cpu" else ("faster", "slower")
        return {BETTER: better, WORSE: worse}.get(self.verdict, self.verdict)


def compare_results(
    before: Result, after: Result, confidence: float = CONFIDENCE, threshold: float = THRESHOLD
) -> list[Change]:
    """Every statistic of what both files have: workload, target and point by their names."""
    runs = {run.name: run for run in after.runs}
    return [
        change
        for run in before.runs
        if run.name in runs
        for change in _compare_runs(run, runs[run.name], confidence, threshold)
    ]


def _compare_runs(before: Run, after: Run, confidence: float, threshold: float) -> Iterator[Change]:
    for target in before.targets:
        for point in before.points:
            old, new = (run.rounds_of(target.name, point.label) for run in (before, after))
            old, new = ([window for window in windows if window.round >= 0] for windows in (old, new))
            if old and new:
                yield from changes(before.name, target.name, point.label, old, new, confidence, threshold)


def compare_targets(
    run: Run, base: str, confidence: float = CONFIDENCE, threshold: float = THRESHOLD
) -> list[Change]:
    """Each other target of a run against the one called `base`, round by round."""
    found = []
    for target in run.targets:
        for point in run.points:
            old, new = run.rounds_of(base, point.label), run.rounds_of(target.name, point.label)
            rounds = {window.round for window in old} & {window.round for window in new}
            old, new = ([window for window in windows if window.round in rounds] for windows in (old, new))
            if target.name != base and rounds:
                found += list(
                    changes(run.name, target.name, point.label, old, new, confidence, threshold, paired=True)
                )
    return found


def changes(
    workload: str,
    target: str,
    point: str,
    old: Sequence[Window],
    new: Sequence[Window],
    confidence: float,
    threshold: float,
    paired: bool = False,
) -> Iterator[Change]:
    """One for each statistic that both have."""
    note = _note(old, new)
    for name in STATISTICS:
        before, after = mean(old, name), mean(new, name)
        if math.isnan(before) or math.isnan(after):
            continue
        how = ratio(new, old, name, confidence, paired)
        rounds = min(len(old), len(new))
        verdict = UNKNOWN if rounds < 2 else judge(how, name, threshold)
        yield Change(workload, target, point, name, before, after, how, verdict, note)


def judge(how: Estimate, name: str, threshold: float) -> str:
    """BETTER or WORSE where the whole interval is on one side of 1 and the change is not negligible."""
    if how.low <= 1 <= how.high or abs(how.value - 1) < threshold:
        return SAME
    return BETTER if (how.value > 1) == (name in HIGHER_IS_BETTER) else WORSE


def _note(old: Sequence[Window], new: Sequence[Window]) -> str:
    notes = []
    before, after = (sum(window.offered for window in windows) / len(windows) for windows in (old, new))
    if before and abs(after / before - 1) > 0.02:
        notes.append(f"offered {before:,.0f}/s before, {after:,.0f}/s after")
    before, after = (
        sum(sum(window.failed.values()) + window.unanswered for window in windows) for windows in (old, new)
    )
    if before or after:
        notes.append(f"failed {before:,.0f} before, {after:,.0f} after")
    return "; ".join(notes)


def regressions(found: Sequence[Change]) -> list[Change]:
    """The changes for the worse in what is judged."""
    return [change for change in found if change.verdict == WORSE and change.statistic in JUDGED]
