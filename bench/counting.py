"""What counting costs: the saturated ranker on this build and on one that has it compiled out, in turn.

    python bench/counting.py [--quick] [--out FILE.json]

The second build is made in build/uncounted (FASTSERVE_NO_METRICS=1) from the same sources. Both daemons are
up all the time, one of them is loaded at a time; who goes first changes with every round. The interval is of
the mean of the rounds' ratios, resampled. Exit code 1 when counting costs more than 2 %. The core's CPU time
for each request is compared, too: it says something on a machine that has other things to do as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cache
import report
from case import SPIN_US, Bench, raise_file_limit, saturate, verify
from rich.console import Console
from rich.table import Table
from servers import Daemon, serving

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
UNCOUNTED = REPO / "build/uncounted"
BAR = 0.98
RESAMPLES = 20000


def build_uncounted() -> Path:
    """Builds what does not count; the folder that PYTHONPATH has to begin with."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(UNCOUNTED.relative_to(REPO))],
        cwd=REPO,
        env={**os.environ, "FASTSERVE_NO_METRICS": "1"},
        check=True,
    )
    (library,) = UNCOUNTED.glob("lib.*")
    return library


@contextmanager
def python_path(first: Path) -> Iterator[None]:
    """Children that are started meanwhile find `first` before anything else."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(first), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def mapped(daemon: Daemon) -> tuple[str, bool]:
    """Which engine the core runs, and whether it has the memory to count in."""
    maps = Path(f"/proc/{daemon.core_pid()}/maps").read_text().splitlines()
    engine = next(line.split()[-1] for line in maps if "/fastserve/_native/engine." in line)
    return engine, any("memfd:fastserve-metrics" in line for line in maps)


def cpu_ns(pid: int) -> int:
    """CPU time of a process's threads so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


def interval(ratios: list[float]) -> tuple[float, float]:
    """The middle 95 % of the mean of the ratios, resampled."""
    draw = random.Random(1)
    means = sorted(statistics.fmean(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return means[RESAMPLES // 40], means[-RESAMPLES // 40]


def measure(bench: Bench, rounds: int, console: Console) -> dict[str, Any]:
    """Requests a second of both, round by round."""
    bodies = bench.bodies("ranker")
    models = [bench.served("ranker")]
    rates: dict[str, list[float]] = {"counting": [], "without": []}
    cpu_us: dict[str, list[float]] = {"counting": [], "without": []}  # of the core, for each request
    library = build_uncounted()
    settings = {"spin_us": SPIN_US}
    with (
        serving(models, executor=settings) as counting,
        python_path(library),
        serving(models, executor=settings) as without,
    ):
        daemons = {"counting": counting, "without": without}
        for name, daemon in daemons.items():
            engine, counts = mapped(daemon)
            if engine.startswith(str(UNCOUNTED)) is (name == "counting"):
                raise RuntimeError(f"{name}: the core runs {engine}")
            if not counts and name == "counting":
                raise RuntimeError("counting: the core has no memory to count in")
            verify(daemon, "ranker")
            saturate(daemon.port, bodies, 1.0)
        for number in range(rounds):
            names = list(daemons) if number % 2 == 0 else list(daemons)[::-1]
            for name in names:
                pid = daemons[name].core_pid()
                before, before_ns = daemons[name].counters("ranker"), cpu_ns(pid)
                got = saturate(daemons[name].port, bodies, bench.window_s)
                counted = daemons[name].counters("ranker") - before
                counted.check(got.done)
                rates[name].append(got.per_s)
                cpu_us[name].append((cpu_ns(pid) - before_ns) / counted.ok / 1000)
            console.print(
                f"round {number + 1} of {rounds}: "
                f"{rates['counting'][-1]:,.0f} and {rates['without'][-1]:,.0f} req/s",
                markup=False,
            )
    ratios = [one / other for one, other in zip(rates["counting"], rates["without"], strict=True)]
    low, high = interval(ratios)
    costs = [one / other for one, other in zip(cpu_us["counting"], cpu_us["without"], strict=True)]
    return {
        "requests_per_s": rates,
        "ratios": ratios,
        "ratio": statistics.fmean(ratios),
        "interval": [low, high],
        "core_cpu_us_per_request": cpu_us,
        "core_cpu_ratio": statistics.fmean(costs),
        "core_cpu_interval": list(interval(costs)),
        "bar": BAR,
        "passed": statistics.fmean(ratios) >= BAR,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short windows, few rounds")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    raise_file_limit()
    if not cache.is_current():
        subprocess.run([sys.executable, str(HERE / "cache.py")], check=True)
    bench = Bench(json.loads(cache.INDEX.read_text()), b"", arguments.quick, console.print)
    where, began = report.machine(), time.monotonic()
    result = measure(bench, 4 if arguments.quick else 24, console)
    table = Table(title="ranker, 1 row, 8 x 16, saturated")
    for name in ("counting, req/s", "compiled out, req/s", "ratio (95 %)", "bar", ""):
        table.add_column(name)
    low, high = result["interval"]
    table.add_row(
        report.spread(result["requests_per_s"]["counting"]),
        report.spread(result["requests_per_s"]["without"]),
        f"{result['ratio']:.4f} ({low:.4f} to {high:.4f})",
        f">= {BAR}",
        "pass" if result["passed"] else "FAIL",
    )
    console.print(table)
    low, high = result["core_cpu_interval"]
    console.print(
        f"CPU time of the core for each request: {result['core_cpu_ratio']:.4f} ({low:.4f} to {high:.4f}) "
        f"of that without; {statistics.median(result['core_cpu_us_per_request']['counting']):.2f} us",
        markup=False,
    )
    if arguments.out is not None:
        document = {
            "machine": where,
            "settings": {"quick": arguments.quick, "window_s": bench.window_s, "spin_us": SPIN_US},
            "seconds": time.monotonic() - began,
            **result,
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
