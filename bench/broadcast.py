"""One user's features beside 200 candidates: sent once, and sent in every row.

    python bench/broadcast.py [--quick] [--out bench/results/broadcast.json]

The model is bench/models/two_towers.py: 600 floats of the user, 40 of each candidate. One daemon serves it
twice, with `[models.batching] broadcast = ["user"]` and without. The native load generator asks over a few
connections, in a closed loop, on the same processors, and they take turns, round by round:

    once            the user's row once, to the model with the key
    in full         the user's row 200 times, to the same model
    without the key the same, to the other one, as a server without this feature has it

A round's figures are its rows/s and the processor time of the serving process for a row; a ratio is the
median of the rounds' ratios. Before that, every request is asked each way, alone, and the scores must be the
same bits.

Exit code 0 when the bars hold: requests at least 10 times smaller, and more rows/s than in full. What the key
costs those who send their rows in full is reported beside that.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import report
from case import turn_ratio
from process import thread_cpu_us
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rounds import FULL, QUICK, Length, arguments, asked, finish
from servers import Daemon, ServedModel, serving

from fastserve.bench.export import export
from fastserve.bench.requests import Request
from fastserve.bench.wire import PREDICT_PATH, grpc_body
from fastserve.protos import message

HERE = Path(__file__).resolve().parent
OUT = report.RESULTS / "broadcast.json"
ONCE, FULL_ROWS, WITHOUT = "once", "in full", "without the key"
MODELS = {ONCE: "ranker", FULL_ROWS: "ranker", WITHOUT: "plain"}
CANDIDATES = 200
REQUESTS = 64
CONNECTIONS, IN_FLIGHT = 4, 4  # 3200 rows, of 5120 that may wait
REQUEST_TIMEOUT_S = 30.0
SMALLER, FASTER = 10.0, 1.0


# ---- what is asked -----------------------------------------------------------------------------------


def bodies(recorded: Path) -> dict[str, list[bytes]]:
    """The same requests each way: one user each, and candidates that differ."""
    with np.load(recorded) as arrays:
        users, candidates = arrays["user"], arrays["cand"]
    made: dict[str, list[bytes]] = {way: [] for way in MODELS}
    rng = np.random.default_rng(1)
    for number in range(REQUESTS):
        user = users[number : number + 1]
        cand = candidates[rng.choice(len(candidates), CANDIDATES, replace=False)]
        for way, model in MODELS.items():
            rows = user if way == ONCE else np.repeat(user, CANDIDATES, axis=0)
            request = Request({"user": rows, "cand": cand}, CANDIDATES)
            made[way].append(grpc_body(model, "serving_default", request))
    return made


# ---- the comparison ----------------------------------------------------------------------------------


def check_answers(daemon: Daemon, asked: dict[str, list[bytes]]) -> None:
    """Ends the program where two ways of asking have other scores."""
    from fastserve.client import Client

    with Client(f"127.0.0.1:{daemon.port}") as client:
        for number in range(REQUESTS):
            scores = {
                way: _score(client.call(PREDICT_PATH, messages[number], timeout=REQUEST_TIMEOUT_S))
                for way, messages in asked.items()
            }
            if len(set(scores.values())) != 1:
                raise SystemExit(f"request {number}: the answers differ: nothing to compare")
            values = np.frombuffer(scores[ONCE], np.float32)
            if len(values) != CANDIDATES or len(set(values.tolist())) < CANDIDATES // 2:
                raise SystemExit(f"request {number}: {len(values)} scores, few of them different")


def _score(reply: bytes) -> bytes:
    """The scores' bits."""
    found = message("tensorflow.serving.PredictResponse").FromString(reply).outputs["score"]
    return np.array(found.float_val, np.float32).tobytes()


def served(daemon: Daemon, model: str, messages: list[bytes], length: Length) -> tuple[float, float]:
    """Rows/s, all of them answered well, and the core's processor time for a row in us."""
    pid = daemon.core_pid()
    rows, cpu_us = daemon.counters(model).rows, sum(thread_cpu_us(pid).values())
    result = asked(
        ("127.0.0.1", daemon.port),
        messages,
        length,
        path=PREDICT_PATH,
        connections=CONNECTIONS,
        in_flight=IN_FLIGHT,
    )
    rows = daemon.counters(model).rows - rows
    return float(result.rate * CANDIDATES), (sum(thread_cpu_us(pid).values()) - cpu_us) / rows


def measure(length: Length) -> list[dict[str, Any]]:
    model = export(HERE / "models" / "two_towers.py")
    assert model.recorded is not None
    wanted = bodies(model.recorded)
    samples: dict[str, list[float]] = {way: [] for way in MODELS}
    cpu_us: dict[str, list[float]] = {way: [] for way in MODELS}
    models = [
        ServedModel("ranker", str(model.base_path), {"batching": {"broadcast": ["user"]}}),
        ServedModel("plain", str(model.base_path)),
    ]
    with serving(models) as daemon, Progress(transient=True) as progress:
        check_answers(daemon, wanted)
        task = progress.add_task("rounds", total=length.rounds * len(MODELS))
        ways = list(MODELS)
        for number in range(length.rounds):
            first = number % len(ways)  # nobody always comes after the same one
            for way in ways[first:] + ways[:first]:
                rate, cost_us = served(daemon, MODELS[way], wanted[way], length)
                samples[way].append(rate)
                cpu_us[way].append(cost_us)
                progress.advance(task)
    sizes = {way: round(statistics.mean(map(len, messages))) for way, messages in wanted.items()}
    faster = turn_ratio(samples[ONCE], samples[FULL_ROWS])
    alike = turn_ratio(samples[FULL_ROWS], samples[WITHOUT])
    smaller = sizes[FULL_ROWS] / sizes[ONCE]
    return [
        {
            "case": f"one user and {CANDIDATES} candidates: bytes of a request",
            "bytes": sizes,
            "ratio": round(smaller, 2),
            "bar": SMALLER,
            "passed": smaller >= SMALLER,
        },
        {
            "case": "rows/s, once beside in full",
            "unit": "rows/s",
            "samples": {way: [round(rate) for rate in rates] for way, rates in samples.items()},
            "medians": {way: round(statistics.median(rates)) for way, rates in samples.items()},
            "ratio": round(faster, 3),
            "bar": FASTER,
            "passed": faster > FASTER,
        },
        {
            "case": "the core's processor time for a row, once beside in full",
            "unit": "us",
            "samples": {way: [round(us, 3) for us in costs] for way, costs in cpu_us.items()},
            "medians": {way: round(statistics.median(costs), 2) for way, costs in cpu_us.items()},
            "ratio": round(turn_ratio(cpu_us[ONCE], cpu_us[FULL_ROWS]), 3),
        },
        {
            "case": "rows/s in full, with the key beside without",
            "ratio": round(alike, 3),
            "cpu_ratio": round(turn_ratio(cpu_us[FULL_ROWS], cpu_us[WITHOUT]), 3),
        },
        {"case": "equal answers, bit for bit", "requests": REQUESTS, "passed": True},
    ]


def show(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("case", *MODELS, "ratio", "bar", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in found:
        figures = row.get("bytes") or row.get("medians") or {}
        table.add_row(
            row["case"],
            *(f"{figures[way]:,}" if way in figures else "" for way in MODELS),
            f"{row['ratio']:g}" if "ratio" in row else "",
            f"{row['bar']:g}" if "bar" in row else "",
            {True: "[green]pass[/]", False: "[red]FAIL[/]", None: ""}[row.get("passed")],
        )
    console.print(table)


def main() -> int:
    given = arguments(__doc__, OUT).parse_args()
    found = measure(QUICK if given.quick else FULL)
    return finish(Console(highlight=False), show, found, given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
