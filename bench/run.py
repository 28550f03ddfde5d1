"""Runs the benchmarks: the cases in one table and one JSON file, then the programs with theirs.

    make bench                              or: python bench/run.py
    python bench/run.py --quick             short windows: rough figures, in results/dev*
    python bench/run.py --only million      one case or program; may be repeated

Exit code 0 when every row that has a bar passes, 1 when one fails, 2 when something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

import cache
import process
import report
from case import Bench, raise_file_limit
from cases import CASES
from programs import PROGRAMS
from rich.console import Console

HERE = Path(__file__).resolve().parent
QUIET = 0.05  # of the machine: more than this in other processes, and figures are noisy


def session_config() -> bytes:
    """The ConfigProto that the daemon opens these models with, made by its own code, for the bare loop."""
    from fastserve.config import TensorFlow
    from fastserve.offline.session import session_config as of_daemon

    return of_daemon(TensorFlow(), single_threaded=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short windows, few rounds")
    names = [*CASES, *PROGRAMS]
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=names, default=[], help=f"of {', '.join(names)}"
    )
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--name", help="the cases' results/NAME.json (default: latest, or dev with --quick)")
    arguments = parser.parse_args(argv)
    arguments.name = arguments.name or ("dev" if arguments.quick else "latest")
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    raise_file_limit()
    chosen = arguments.only or names
    codes = [0]
    if cases := [name for name in CASES if name in chosen]:
        codes.append(run_cases(console, cases, arguments))
    for name in PROGRAMS:
        if name in chosen:
            _wait_quiet(console, name, arguments.patience)
            codes.append(run_program(console, name, arguments.quick))
    return max(codes)


def run_cases(console: Console, chosen: list[str], arguments: argparse.Namespace) -> int:
    if not cache.is_current():
        with console.status("making models and recorded requests (bench/.cache)"):
            done = subprocess.run(
                [sys.executable, str(HERE / "cache.py")], capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            console.print(done.stderr, markup=False)
            return 2
    index, config = json.loads(cache.INDEX.read_text()), session_config()
    where = report.machine()
    rows: list[report.Row] = []
    broken: dict[str, str] = {}
    busy: dict[str, float] = {}
    started = time.monotonic()
    with console.status("") as status:
        for name in chosen:

            def say(text: str, name: str = name) -> None:
                status.update(f"{name}: {text}")

            say("waiting for a quiet machine")
            busy[name] = _wait_quiet(console, name, arguments.patience)
            say("starting")
            case_started = time.monotonic()
            try:
                rows += CASES[name](Bench(index, config, arguments.quick, say))
            except Exception as error:
                broken[name] = "".join(traceback.format_exception(error))
                notes = "\n".join(getattr(error, "__notes__", []))
                console.print(f"{name}: {type(error).__name__}: {error}\n{notes}", markup=False)
            else:
                console.print(f"{name}: {time.monotonic() - case_started:.0f} s", markup=False)

    report.show(console, rows)
    settings = {"quick": arguments.quick, "cases": chosen, "broken": broken, "busy_before": busy}
    path = report.write(arguments.name, rows, where, settings | {"seconds": time.monotonic() - started})
    console.print(f"{path}", markup=False)
    if broken:
        return 2
    return 1 if any(row.passed is False for row in rows) else 0


def run_program(console: Console, name: str, quick: bool) -> int:
    """1 where the program says so itself, 2 when it fails otherwise."""
    console.print(f"{name}: {(PROGRAMS[name].__doc__ or '').splitlines()[0]}", markup=False)
    code = subprocess.run(PROGRAMS[name](quick), check=False).returncode
    if code not in (0, 1):
        console.print(f"{name}: ended with {code}", markup=False)
    return min(abs(code), 2)


def _wait_quiet(console: Console, name: str, patience_s: float) -> float:
    busy = process.wait_quiet(QUIET, patience_s)
    if busy > QUIET:
        console.print(f"{name}: other processes use {busy:.0%} of the machine: expect noise", markup=False)
    return busy


if __name__ == "__main__":
    sys.exit(main())
