"""What benchmarks have in common that let servers take turns, round by round: how much is measured, a load of
which every request must be answered, and what becomes of the figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from rich.console import Console

from fastserve._native.load import LoadResult
from fastserve._native.load import run as generate
from fastserve.whole_file import write_whole

_TIMEOUT_S = 30.0
_WIDTH = 160

Found = list[dict[str, Any]]


@dataclass(frozen=True)
class Length:
    """How much is measured."""

    rounds: int
    seconds: float
    warmup_s: float


FULL = Length(rounds=9, seconds=4.0, warmup_s=1.0)
QUICK = Length(rounds=3, seconds=1.0, warmup_s=0.5)


def arguments(about: str | None, out: Path) -> argparse.ArgumentParser:
    """`about`: the program's docstring."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def asked(
    address: tuple[str, int],
    bodies: Sequence[bytes],
    length: Length | None = None,
    **options: Any,
) -> LoadResult:
    """All of them answered well; `length`: the window and its warm-up, where `options` do not say.
    SystemExit."""
    if length is not None:
        options = {"warmup_s": length.warmup_s, "duration_s": length.seconds, **options}
    result = generate(
        address,
        bodies,
        authority=f"{address[0]}:{address[1]}",
        interval_s=0.0,
        timeout_s=_TIMEOUT_S,
        **options,
    )
    if result.failed or result.unanswered or result.first_error or not result.done:
        why = result.first_error or "no answers"
        raise SystemExit(f"{options['path']}: {result.failed}, {why}: nothing to compare")
    return result


def finish(
    console: Console, show: Callable[[Console, Found], None], found: Found, quick: bool, out: Path
) -> int:
    """Shows and writes the rows. The exit code: whether all that have a bar pass."""
    show(console if console.is_terminal else Console(highlight=False, width=_WIDTH), found)
    document = {"machine": report.machine(), "quick": quick, "rows": found}
    text = json.dumps(document, indent=1) + "\n"
    write_whole(out, lambda file: file.write(text.encode()))
    console.print(str(out), markup=False)
    return 1 if any(row.get("passed") is False for row in found) else 0
