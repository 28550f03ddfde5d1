"""Classify and Regress with 100 examples to a request, beside the same signature in Python.

    python bench/infer.py [--quick] [--out bench/results/infer.json]

FastServe gets its requests from the native load generator over a few connections, in a closed loop, on the
same processors. The reference is a process that has opened the model with `tf.saved_model.load` and calls the
signature on lists of serialized examples that it already holds: no socket, no message, no copy but
TensorFlow's own; what it answers is taken as numpy arrays. It calls from one thread, and for comparison from
two and four. They take turns, round by round, while the others wait; a round's figure is its requests/s, and
a ratio is the median of the rounds' ratios.

Exit code 0 when the bar holds: at least 3 times the requests/s of one thread, for Classify and for Regress.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import report
from case import turn_ratio
from rich.console import Console
from rich.table import Table
from rounds import Length, arguments, asked, finish
from servers import Daemon, ServedModel, serving

from fastserve.bench.export import export

HERE = Path(__file__).resolve().parent
OUT = report.RESULTS / "infer.json"
MODEL = "parsed"
EXAMPLES = 100
BAR = 3.0
SERVICE = "/tensorflow.serving.PredictionService"
METHODS = {"Classify": "classify", "Regress": "regress"}
CONNECTIONS, IN_FLIGHT = 4, 8
THREADS = (1, 2, 4)
REQUEST_TIMEOUT_S = 30.0


FULL = Length(rounds=7, seconds=4.0, warmup_s=1.0)
QUICK = Length(rounds=2, seconds=1.0, warmup_s=0.5)


# ---- what is asked -----------------------------------------------------------------------------------


def requests(folder: Path) -> list[list[bytes]]:
    """Lists of 100 serialized examples."""
    with np.load(folder / "examples.npz", allow_pickle=True) as arrays:
        rows = list(arrays["examples"])
    return [rows[at : at + EXAMPLES] for at in range(0, len(rows) - EXAMPLES + 1, EXAMPLES)]


def _field(number: int, data: bytes) -> bytes:
    size, head = len(data), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + data


def bodies(examples: list[list[bytes]], signature: str) -> list[bytes]:
    """The requests as ClassificationRequest and RegressionRequest have them: both alike."""
    spec = _field(1, _field(1, MODEL.encode()) + _field(3, signature.encode()))
    return [spec + _field(2, _field(1, b"".join(_field(1, row) for row in rows))) for rows in examples]


# ---- FastServe ---------------------------------------------------------------------------------------


def served(daemon: Daemon, method: str, messages: list[bytes], length: Length) -> float:
    """Requests/s, all of them answered well."""
    return asked(
        ("127.0.0.1", daemon.port),
        messages,
        length,
        path=f"{SERVICE}/{method}",
        connections=CONNECTIONS,
        in_flight=IN_FLIGHT,
    ).rate


def first_answer(daemon: Daemon, method: str, message: bytes) -> bytes:
    from fastserve.client import Client

    with Client(f"127.0.0.1:{daemon.port}") as client:
        return client.call(f"{SERVICE}/{method}", message, timeout=REQUEST_TIMEOUT_S)


# ---- the reference -----------------------------------------------------------------------------------


class Reference:
    """A process that calls the signature in Python, one command a line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the reference ended early")
        return json.loads(line)


@contextmanager
def reference(folder: Path) -> Iterator[Reference]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, __file__, "--reference", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Reference(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60.0)


def run_reference(folder: Path) -> None:
    """The reference's own process: {"signature", "threads", "seconds", "warmup_s"} gives requests/s, and
    "first" the values of the first request's answer."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "1"))
    examples = requests(folder)

    def answer(signature: Any, rows: list[bytes]) -> dict[str, Any]:
        return {name: tensor.numpy() for name, tensor in signature(inputs=tf.constant(rows)).items()}

    for line in sys.stdin:
        command = json.loads(line)
        signature = loaded.signatures[command["signature"]]
        if command.get("first"):
            answers = answer(signature, examples[0])
            print(
                json.dumps({name: a.tolist() for name, a in answers.items() if a.dtype != object}), flush=True
            )
            continue
        done = [0] * command["threads"]
        begin = time.perf_counter() + command["warmup_s"]
        end = begin + command["seconds"]

        def work(
            number: int,
            signature: Any = signature,
            begin: float = begin,
            end: float = end,
            done: list[int] = done,
        ) -> None:
            at = number
            while (now := time.perf_counter()) < end:
                answer(signature, examples[at % len(examples)])
                at += len(done)
                done[number] += now >= begin

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(sum(done) / command["seconds"]), flush=True)


# ---- the comparison ----------------------------------------------------------------------------------


def python_with(threads: int) -> str:
    return f"python, {threads} thread{'s' if threads > 1 else ''}"


def check(python: Reference, daemon: Daemon, examples: list[list[bytes]]) -> None:
    """Both answer the first request alike."""
    from fastserve.client.messages import classifications, regressions

    wanted = python.ask(signature="classify", first=True)["scores"]
    found = classifications(first_answer(daemon, "Classify", bodies(examples[:1], "classify")[0]))
    np.testing.assert_allclose([[score for _, score in row] for row in found], wanted, rtol=1e-4)
    values = regressions(first_answer(daemon, "Regress", bodies(examples[:1], "regress")[0]))
    np.testing.assert_allclose(values, python.ask(signature="regress", first=True)["outputs"], rtol=1e-4)


def measure(length: Length) -> list[dict[str, Any]]:
    folder = export(HERE / "models" / f"{MODEL}.py").base_path
    examples = requests(folder)
    found = []
    with reference(folder) as python, serving([ServedModel(MODEL, str(folder))]) as daemon:
        check(python, daemon, examples)
        for method, signature in METHODS.items():
            messages = bodies(examples, signature)
            samples: dict[str, list[float]] = {"fastserve": []}
            samples |= {python_with(threads): [] for threads in THREADS}
            for _ in range(length.rounds):
                samples["fastserve"].append(served(daemon, method, messages, length))
                for threads in THREADS:
                    command = {"threads": threads, "seconds": length.seconds, "warmup_s": length.warmup_s}
                    samples[python_with(threads)].append(python.ask(signature=signature, **command))
            ratios = {
                name: turn_ratio(samples["fastserve"], values)
                for name, values in samples.items()
                if name != "fastserve"
            }
            ratio = ratios[python_with(1)]
            found.append(
                {
                    "case": f"{method}, {EXAMPLES} examples",
                    "unit": "requests/s",
                    "samples": samples,
                    "medians": {
                        name: round(statistics.median(values), 1) for name, values in samples.items()
                    },
                    "ratios": {name: round(value, 2) for name, value in ratios.items()},
                    "bar": BAR,
                    "passed": ratio >= BAR,
                }
            )
        batches = [
            {key: row[key] for key in ("signature", "batches", "rows", "reruns", "failed")}
            for row in daemon.stats()["signatures"]
        ]
    return [*found, {"case": "what the daemon counted", "signatures": batches}]


def show(console: Console, found: list[dict[str, Any]]) -> None:
    rows = [row for row in found if "samples" in row]
    table = Table()
    for name in ("case", *rows[0]["samples"], "bar", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['medians']['fastserve']:,.0f}",
            *(f"{row['medians'][name]:,.0f} (x {ratio:.2f})" for name, ratio in row["ratios"].items()),
            f">= {row['bar']:g}",
            "[green]pass[/]" if row["passed"] else "[red]FAIL[/]",
        )
    console.print(table)


def main() -> int:
    parser = arguments(__doc__, OUT)
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reference is not None:
        run_reference(given.reference)
        return 0
    found = measure(QUICK if given.quick else FULL)
    return finish(Console(highlight=False), show, found, given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
