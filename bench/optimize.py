"""`fastserve optimize` on a ranker written naively: what each pass gives, and both versions served in one
run.

    python bench/optimize.py [--quick] [--out bench/results/optimize.json]

Exports bench/models/wide_deep_naive.py, optimizes it on its recorded rows, with the user's inputs named, and
serves the original and the result from one daemon. Requests are of 100 rows, one user's candidates; the load
generator asks for one and for the other in turn, round by round, in a closed loop on the same processors. A
ratio is the median of the rounds' ratios. Answers to the same requests are compared over the wire, too. The
same is done without naming the user's inputs, to tell what that gives.

Exit code 0 when the bars hold: at least twice the rows/s, and answers within 1e-5.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
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
OPTIMIZE_TIMEOUT_S = 900.0


# Of timing each pass.
FULL_PASS_S, QUICK_PASS_S = 3.0, 0.5


def optimized(base_path: Path, recorded: Path, out: Path, pass_s: float, user_inputs: list[str]) -> Any:
    """The optimizer's report; the version is `out`/1."""
    command = [sys.executable, "-m", "fastserve", "optimize", str(base_path), str(out), "--json", "-"]
    command += ["--rows", str(recorded), "--batch-size", str(ROWS), "--seconds", str(pass_s)]
    for name in user_inputs:
        command += ["--user-input", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=OPTIMIZE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fastserve optimize ended with {done.returncode}")
    return json.loads(done.stdout)


def rate(daemon: Daemon, model: str, requests: list[Request], length: Length) -> float:
    """Rows/s, all requests answered well."""
    result = asked(
        ("127.0.0.1", daemon.port),
        [grpc_body(model, SIGNATURE, request) for request in requests],
        length,
        path=PREDICT_PATH,
        connections=CONNECTIONS,
        in_flight=IN_FLIGHT,
    )
    return result.rate * ROWS


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
            rates: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(length.rounds):
                for name, model in models.items():
                    rates[name].append(rate(daemon, model, requests, length))
                console.print(", ".join(f"{name} {values[-1]:,.0f} rows/s" for name, values in rates.items()))
            off = {name: furthest(daemon, ("original", models[name]), made.recorded) for name in variants}
    rows = [_row(name, rates, off[name], reports[name]) for name in variants]
    for row in rows[1:]:  # without the user's inputs it is reported only
        row["passed"] = None
    return rows


def _row(name: str, rates: dict[str, list[float]], off: float, made: Any) -> dict[str, Any]:
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(rates[name], rates["original"], strict=True)
    )
    return {
        "case": f"{MODEL}, {ROWS} rows, {name}",
        "unit": "rows/s",
        "samples": {key: [round(value) for value in rates[key]] for key in ("original", name)},
        "medians": {key: round(statistics.median(rates[key])) for key in ("original", name)},
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
        for name in ("pass", "before", "after", "gain", "off by", ""):
            table.add_column(name, justify="left" if name in ("pass", "") else "right")
        for each in row["report"]["passes"]:
            timing = each["timings"][0] if each["timings"] else None
            table.add_row(
                each["name"],
                f"{timing['before_us']:,.0f} us" if timing else "",
                f"{timing['after_us']:,.0f} us" if timing else "",
                f"x {each['speedup']:.2f}" if timing else "",
                f"{each['difference']:.1e}" if each["difference"] is not None else "",
                f"{'kept' if each['kept'] else 'dropped'}: {each['why']}",
            )
        console.print(table)
        before, after = row["medians"].values()
        verdict = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "reported"}[row["passed"]]
        console.print(
            f"served: {before:,} to {after:,} rows/s, x {row['ratio']:.2f} (bar {SPEED_BAR:g}), off by "
            f"{row['difference']:.1e} (bar {ACCURACY_BAR:g}): {verdict}"
        )


def main() -> int:
    given = arguments(__doc__, OUT).parse_args()
    console = Console(highlight=False)
    length, pass_s = (QUICK, QUICK_PASS_S) if given.quick else (FULL, FULL_PASS_S)
    return finish(console, show, measure(length, pass_s, console), given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
