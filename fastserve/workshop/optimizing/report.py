"""What `fastserve optimize` tells: the table of the passes on a terminal, and all of it as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastserve.workshop.optimizing.values import Outcome, PassResult, Timing, speedup

_MIB = 1 << 20
# What a rewritten graph may have more without a word.
_GROWN = 1.1


def show(outcome: Outcome, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pass", "changes", "before", "after", "rows/s", "gain", "off by", ""):
        table.add_column(name, justify="left" if name in ("pass", "") else "right", overflow="fold")
    for result in outcome.passes:
        table.add_row(*_row(result), style="" if result.kept else "dim")
    if outcome.total:
        table.add_section()
        table.add_row(*_total(outcome), style="bold")
    console.print(table)
    console.print(f"Compared on {outcome.inputs}, within {outcome.tolerance:g}.", highlight=False)
    if outcome.made_up:
        console.print(
            f"[yellow]warning:[/] the inputs of {', '.join(outcome.made_up)} are made up: they show "
            "neither how far answers are off in practice nor how fast it is there. Give real ones: --rows, "
            "--requests, or a warm-up file in the version.",
            highlight=False,
        )
    before, after = outcome.stored_bytes
    if after > _GROWN * before:
        console.print(
            f"[yellow]warning:[/] graph and variables have {after / _MIB:,.1f} MiB, the original's "
            f"{before / _MIB:,.1f}: tables that are put together are copies, for each signature its own.",
            highlight=False,
        )
    if outcome.path is not None:
        console.print(f"Written: {outcome.path}", highlight=False, soft_wrap=True)


def _row(result: PassResult) -> list[str]:
    verdict = f"{'kept' if result.kept else 'dropped'}: {result.why}"
    return [result.name, str(result.changes or ""), *_times(result.timings), _off(result.difference), verdict]


def _total(outcome: Outcome) -> list[str]:
    return ["all", "", *_times(outcome.total), _off(outcome.difference), ""]


def _times(timings: Sequence[Timing]) -> list[str]:
    """Before, after, rows/s after, gain; of several signatures or batch sizes, sums."""
    if not timings:
        return ["", "", "", ""]
    before, after = (sum(t.before_us for t in timings), sum(t.after_us for t in timings))
    rows = sum(t.rows for t in timings)
    gain = speedup(tuple(timings)) or 1.0
    return [_ms(before), _ms(after), f"{rows * 1e6 / after:,.0f}", f"{gain:.2f}x"]


def _ms(us: float) -> str:
    return f"{us / 1000:.3g} ms"


def _off(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.1e}" if difference else "0"


def as_json(outcome: Outcome) -> str:
    return json.dumps(document(outcome), indent=2) + "\n"


def document(outcome: Outcome) -> dict[str, Any]:
    """As plain values. Times are microseconds of one run, differences absolute."""
    return {
        "model": str(outcome.model),
        "written": str(outcome.path) if outcome.path is not None else None,
        "inputs": outcome.inputs,
        "made_up": list(outcome.made_up),
        "tolerance": outcome.tolerance,
        "tensorflow": outcome.tensorflow,
        "processor": outcome.machine,
        "passes": [
            {
                "name": result.name,
                "about": result.about,
                "changes": result.changes,
                "kept": result.kept,
                "why": result.why,
                "speedup": _rounded(result.speedup),
                "difference": result.difference,
                "nodes": result.nodes or None,
                "timings": [_timing(timing) for timing in result.timings],
            }
            for result in outcome.passes
        ],
        "total": {
            "speedup": _rounded(speedup(outcome.total)),
            "difference": outcome.difference,
            "timings": [_timing(timing) for timing in outcome.total],
        },
        "stored_bytes": dict(zip(("before", "after"), outcome.stored_bytes, strict=True)),
    }


def _timing(timing: Timing) -> dict[str, Any]:
    before, after = timing.rows_per_s
    return {
        "signature": timing.signature,
        "rows": timing.rows,
        "before_us": round(timing.before_us, 1),
        "after_us": round(timing.after_us, 1),
        "before_rows_per_s": round(before),
        "after_rows_per_s": round(after),
        "speedup": round(timing.speedup, 3),
        "confidence": [round(timing.low, 3), round(timing.high, 3)],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
