"""Runs the benchmarks: one run, one table, one JSON file.

    make bench                              or: python bench/run.py
    python bench/run.py --quick             short windows, for development: the figures are rough
    python bench/run.py --only million      one case; may be repeated

Exit code 0 when every row that has a bar passes, 1 when one fails, 2 when a case could not be measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import cache
import process
import report
from cases import CASES, Bench, raise_file_limit
from rich.console import Console

HERE = Path(__file__).resolve().parent
QUIET = 0.05  # of the machine: more than this in other processes, and figures are noisy


def session_config() -> bytes:
    """The ConfigProto that the daemon opens these models with, made by its own code, for the bare loop."""
    from fastserve.config import TensorFlow
    from fastserve.control.trial_session import session_config as of_daemon

    return of_daemon(TensorFlow(), single_threaded=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short windows, few rounds")
    parser.add_argument("--only", metavar="CASE", action="append", choices=sorted(CASES), default=[])
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--name", default="latest", help="results/NAME.json (default: latest)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)
    if shutil.which("h2load") is None:
        console.print("h2load is missing: apt-get install nghttp2-client")
        return 2
    raise_file_limit()
    if not cache.is_current():
        with console.status("making models and recorded requests (bench/.cache)"):
            done = subprocess.run(
                [sys.executable, str(HERE / "cache.py")], capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            console.print(done.stderr, markup=False)
            return 2

    where = report.machine()
    rows: list[report.Row] = []
    broken: dict[str, str] = {}
    busy: dict[str, float] = {}
    started = time.monotonic()
    chosen = {name: case for name, case in CASES.items() if not arguments.only or name in arguments.only}
    with console.status("") as status:
        for name, case in chosen.items():

            def say(text: str, name: str = name) -> None:
                status.update(f"{name}: {text}")

            say("waiting for a quiet machine")
            busy[name] = process.wait_quiet(QUIET, arguments.patience)
            if busy[name] > QUIET:
                console.print(f"{name}: other processes use {busy[name]:.0%} of the machine: expect noise")
            say("starting")
            bench = Bench(json.loads(cache.INDEX.read_text()), session_config(), arguments.quick, say)
            case_started = time.monotonic()
            try:
                rows += case(bench)
            except Exception as error:
                broken[name] = "".join(traceback.format_exception(error))
                notes = "\n".join(getattr(error, "__notes__", []))
                console.print(f"{name}: {type(error).__name__}: {error}\n{notes}", markup=False)
            else:
                console.print(f"{name}: {time.monotonic() - case_started:.0f} s", markup=False)

    report.show(console, rows)
    settings = {"quick": arguments.quick, "cases": list(chosen), "broken": broken, "busy_before": busy}
    path = report.write(arguments.name, rows, where, settings | {"seconds": time.monotonic() - started})
    console.print(f"{path}", markup=False)
    if broken:
        return 2
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
