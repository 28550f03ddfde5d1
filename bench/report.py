"""Results: rows, the machine they come from, one table on the terminal and one JSON file."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import fastserve.bench.machine

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table. A row with a bar passes or fails; one without is reported.

    measured, against: texts with units. ratio: what the bar is about. samples: every single figure
    behind the medians, so that the spread can be judged.
    """

    case: str
    parameters: dict[str, Any]
    measured: str
    against: str = ""
    ratio: float | None = None
    bar: str = ""
    passed: bool | None = None
    samples: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return {True: "pass", False: "FAIL", None: "reported"}[self.passed]


def spread(values: Sequence[float]) -> str:
    """The median and, in brackets, the smallest and largest."""
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    where = fastserve.bench.machine
    return {
        **where.machine(),
        "load_average": os.getloadavg(),
        "versions": where.versions(),
        "revision": where.revision(),
        "command": where.command_line(["python", *sys.argv]),
    }


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(show_lines=False)
    for name in ("case", "spin_us", "measured", "against", "ratio", "bar", ""):
        table.add_column(name, justify="right" if name in ("spin_us", "ratio") else "left")
    colours = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: ""}
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        spin = str(row.parameters.get("spin_us", ""))
        table.add_row(row.case, spin, row.measured, row.against, ratio, row.bar, colours[row.passed])
    console.print(table)


def write(name: str, rows: Sequence[Row], where: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Replaces results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"machine": where, "settings": settings, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
