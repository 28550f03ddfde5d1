"""`fastserve optimize` on a ranker written naively: what each pass gives, and both versions served in one
run.

    python bench/optimize.py [--quick] [--out bench/results/optimize.json]

Exports bench/models/wide_deep_naive.py, optimizes it on its recorded rows, with the user's inputs named, and
serves the original and the result from one daemon, with the same settings: the defaults, with which several
requests share a batch, which is what the original needs most. Requests are of 100 rows, one user's
candidates; the load generator asks for each of the models in turn, another one first in each round, in a
closed loop on the same processors. A ratio is the median of the rounds' ratios. Rows to a batch and the
serving process's processor time are reported beside it, and answers to the same requests are compared over
the wire. The same is done without naming the user's inputs, to tell what that gives.

Exit code 0 when the bars hold: at least twice the rows/s, and answers within 1e-5.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
from case import turn_ratio
from process import thread_cpu_us
from rich.console import Console
from rich.table import Table
from rounds import FULL, QUICK, Length, arguments, asked, finish
from servers import Daemon, ServedModel, serving

from fastserve.bench.export import export
from fastserve.bench.requests import Request, make_requests
from fastserve.bench.wire import PREDICT_PATH, grpc_body
from fastserve.bench.workload import Requests
from fastserve.client import Client

HERE = Path(__file__).resolve().parent
OUT = report.RESULTS / "optimize.json"
MODEL = "wide_deep_naive"
SIGNATURE = "serving_default"
ROWS = 100
SPEED_BAR, ACCURACY_BAR = 2.0, 1e-5
CONNECTIONS, IN_FLIGHT = 4, 2
OPTIMIZE_TIMEOUT_S = 1800.0
# Of timing each pass.
FULL_PASS_S, QUICK_PASS_S = 3.0, 0.5


def optimized(base_path: Path, recorded: Path, out: Path, pass_s: float, user_inputs: list[str]) -> Any:
    """The optimizer's report; the version is `out`/1."""
    command = [sys.executable, "-m", "fastserve", "optimize", str(base_path), str(out), "--json", "-"]
    command += ["--rows", str(recorded), "--seconds", str(pass_s)]
    for name in user_inputs:
        command += ["--user-input", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=OPTIMIZE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fastserve optimize ended with {done.returncode}")
    return json.loads(done.stdout)


@dataclass
class Samples:
    """Of one model, round by round: rows/s, rows to a batch, and microseconds of the serving process's for a
    row."""

    rates: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def ask(daemon: Daemon, model: str, requests: list[Request], length: Length, samples: Samples) -> None:
    """A round, all requests answered well."""
    pid, before = daemon.core_pid(), daemon.counters(model)
    cpu_us = sum(thread_cpu_us(pid).values())
    result = asked(
        ("127.0.0.1", daemon.port),
        [grpc_body(model, SIGNATURE, request) for request in requests],
        length,
        path=PREDICT_PATH,
        connections=CONNECTIONS,
        in_flight=IN_FLIGHT,
    )
    counted = daemon.counters(model) - before
    samples.rates.append(result.rate * ROWS)
    samples.batches.append(counted.mean_batch)
    samples.cpu_us.append((sum(thread_cpu_us(pid).values()) - cpu_us) / counted.rows)


def furthest(daemon: Daemon, names: tuple[str, str], recorded: Path) -> float:
    """Between answers to the recorded rows: the largest difference, relative to 1 + the value."""
    with np.load(recorded) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    worst = 0.0
    with Client(f"127.0.0.1:{daemon.port}") as client:
        for first in range(0, len(rows["poi_id"]) - ROWS + 1, ROWS):
            inputs = {name: values[first : first + ROWS] for name, values in rows.items()}
            one, other = (client.predict(name, inputs)["score"].astype(np.float64) for name in names)
            worst = max(worst, float((np.abs(one - other) / (1.0 + np.abs(one))).max()))
    return worst


def measure(length: Length, pass_s: float, console: Console) -> list[dict[str, Any]]:
    made = export(HERE / "models" / f"{MODEL}.py")
    assert made.recorded is not None
    requests = make_requests(Requests(source="rows", rows=ROWS, run=ROWS, count=32), None, made.recorded)
    with np.load(made.recorded) as arrays:
        user_inputs = sorted(name for name in arrays.files if name.startswith("user_"))
    variants = {"optimized": user_inputs, "optimized, no --user-input": []}
    with tempfile.TemporaryDirectory(prefix="fastserve-bench-") as folder:
        outs = {name: Path(folder, str(number)) for number, name in enumerate(variants)}
        reports = {
            name: optimized(made.base_path, made.recorded, outs[name], pass_s, inputs)
            for name, inputs in variants.items()
        }
        models = {"original": "original", **{name: f"optimized_{i}" for i, name in enumerate(variants)}}
        served = [ServedModel("original", str(made.base_path))]
        served += [ServedModel(models[name], str(out)) for name, out in outs.items()]
        with serving(served) as daemon:
            samples = {name: Samples() for name in models}
            names = list(models)
            for number in range(length.rounds):
                first = number % len(names)  # nobody always comes after the same one
                for name in names[first:] + names[:first]:
                    ask(daemon, models[name], requests, length, samples[name])
                console.print(", ".join(f"{name} {s.rates[-1]:,.0f} rows/s" for name, s in samples.items()))
            off = {name: furthest(daemon, ("original", models[name]), made.recorded) for name in variants}
    rows = [_row(name, samples, off[name], reports[name]) for name in variants]
    for row in rows[1:]:  # without the user's inputs it is reported only
        row["passed"] = None
    return rows


def _row(name: str, samples: dict[str, Samples], off: float, made: Any) -> dict[str, Any]:
    both = {key: samples[key] for key in ("original", name)}
    ratio = turn_ratio(samples[name].rates, samples["original"].rates)
    return {
        "case": f"{MODEL}, {ROWS} rows, {name}",
        "unit": "rows/s",
        "samples": {key: [round(value) for value in each.rates] for key, each in both.items()},
        "medians": {key: round(statistics.median(each.rates)) for key, each in both.items()},
        "rows_per_batch": {key: round(statistics.median(each.batches), 1) for key, each in both.items()},
        "cpu_us_per_row": {key: round(statistics.median(each.cpu_us), 2) for key, each in both.items()},
        "ratio": round(ratio, 3),
        "speed_bar": SPEED_BAR,
        "difference": off,
        "accuracy_bar": ACCURACY_BAR,
        "passed": ratio >= SPEED_BAR and off <= ACCURACY_BAR,
        "report": {key: value for key, value in made.items() if key not in ("model", "written", "inputs")},
    }


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        table = Table(title=row["case"], title_justify="left")
        sizes = [timing["rows"] for timing in row["report"]["total"]["timings"]]
        for name in ("pass", *(f"{size} rows" for size in sizes), "off by", ""):
            table.add_column(name, justify="left" if name in ("pass", "") else "right")
        for each in row["report"]["passes"]:
            gains = {timing["rows"]: f"x {timing['speedup']:.2f}" for timing in each["timings"]}
            table.add_row(
                each["name"],
                *(gains.get(size, "") for size in sizes),
                f"{each['difference']:.1e}" if each["difference"] is not None else "",
                f"{'kept' if each['kept'] else 'dropped'}: {each['why']}",
            )
        console.print(table)
        before, after = row["medians"].values()
        batches, costs = row["rows_per_batch"].values(), row["cpu_us_per_row"].values()
        verdict = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "reported"}[row["passed"]]
        console.print(
            f"served: {before:,} to {after:,} rows/s, x {row['ratio']:.2f} (bar {SPEED_BAR:g}), "
            f"{' and '.join(f'{each:g}' for each in batches)} rows to a batch, "
            f"{' and '.join(f'{each:g} us' for each in costs)} of the server's for a row, off by "
            f"{row['difference']:.1e} (bar {ACCURACY_BAR:g}): {verdict}"
        )


def main() -> int:
    given = arguments(__doc__, OUT).parse_args()
    console = Console(highlight=False)
    length, pass_s = (QUICK, QUICK_PASS_S) if given.quick else (FULL, FULL_PASS_S)
    return finish(console, show, measure(length, pass_s, console), given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
