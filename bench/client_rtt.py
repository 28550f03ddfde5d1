"""Round trips of fastserve.client beside grpcio's, and how long the import takes.

    python bench/client_rtt.py [--quick] [--out bench/results/client_rtt.json]

Both call one core on the null runtime, so what is left is the client, the core's front end and the kernel. A
call is what a user writes: numpy in, numpy out; for grpcio that is TensorFlow Serving's stub with
`tf.make_tensor_proto` and `tf.make_ndarray`. "grpcio, bytes" sends a message that is encoded already and
leaves the reply as it is: the transport alone. Clients take turns, round by round; a round's figure is its
median (its rate, with threads), and the ratio is the median of the rounds' ratios.

Exit code 0 when the bars hold: one call in flight takes at most half of grpcio's time, and the import, in an
interpreter of its own and with all that it imports, less than 100 ms.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import numpy as np
import report
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from rounds import arguments, finish
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from fastserve.bench.wire import PREDICT_PATH
from fastserve.client import AsyncClient, Client

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from core_driver import Core, servable

OUT = report.RESULTS / "client_rtt.json"
RTT_BAR = 0.5
IMPORT_BAR_MS = 100.0
THREADS = 8
SHAPES = {"1 value": ("small", (1, 1)), "100 rows of 39": ("rows", (100, 39))}
WARM_UP = 200

Call = Callable[[], Any]


@dataclass(frozen=True)
class Length:
    """How much is measured."""

    rounds: int
    calls: int
    window_s: float
    imports: int


FULL = Length(rounds=21, calls=300, window_s=0.5, imports=15)
QUICK = Length(rounds=5, calls=100, window_s=0.2, imports=5)


def encode(model: str, x: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
    return request


def sync_calls(address: str, model: str, x: Any) -> dict[str, Call]:
    """The same call by each client."""
    client = Client(address)
    channel = grpc.insecure_channel(address)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    raw = channel.unary_unary(PREDICT_PATH)
    encoded = encode(model, x).SerializeToString()
    return {
        "fastserve": lambda: client.predict(model, {"x": x})["y"],
        "grpcio": lambda: tf.make_ndarray(stub.Predict(encode(model, x)).outputs["y"]),
        "grpcio, bytes": lambda: raw(encoded),
    }


def async_calls(address: str, model: str, x: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    client = AsyncClient(address)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.aio.insecure_channel(address))

    async def stock() -> Any:
        return tf.make_ndarray((await stub.Predict(encode(model, x))).outputs["y"])

    async def ours() -> Any:
        return (await client.predict(model, {"x": x}))["y"]

    return {"fastserve": ours, "grpcio": stock}


def check(who: str, answer: Any, x: Any) -> None:
    if not isinstance(answer, bytes) and not np.array_equal(answer, x * 0.5 + 2.0):
        raise SystemExit(f"{who}: a wrong answer: nothing to compare")


def one_in_flight(address: str, model: str, x: Any, length: Length) -> dict[str, list[float]]:
    """Microseconds: each round's median, by client."""
    calls = sync_calls(address, model, x)
    for who, call in calls.items():
        check(who, [call() for _ in range(WARM_UP)][-1], x)
    medians: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(length.rounds):
        for who, call in calls.items():
            medians[who].append(_median_us(call, length.calls))
    return medians


def _median_us(call: Call, calls: int) -> float:
    took = []
    for _ in range(calls):
        began = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - began)
    return statistics.median(took) / 1e3


async def one_in_flight_async(address: str, model: str, x: Any, length: Length) -> dict[str, list[float]]:
    """As one_in_flight, awaited on one loop."""
    calls = async_calls(address, model, x)
    for who, call in calls.items():
        check(who, [await call() for _ in range(WARM_UP)][-1], x)
    medians: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(length.rounds):
        for who, call in calls.items():
            took = []
            for _ in range(length.calls):
                began = time.perf_counter_ns()
                await call()
                took.append(time.perf_counter_ns() - began)
            medians[who].append(statistics.median(took) / 1e3)
    return medians


def by_threads(address: str, model: str, x: Any, length: Length) -> dict[str, list[float]]:
    """Calls a second, of THREADS threads that share a client, each with one in flight."""
    calls = {who: call for who, call in sync_calls(address, model, x).items() if who != "grpcio, bytes"}
    rates: dict[str, list[float]] = {who: [] for who in calls}
    for call in calls.values():
        _rate(call, length.window_s)
    for _ in range(length.rounds):
        for who, call in calls.items():
            rates[who].append(_rate(call, length.window_s))
    return rates


def _rate(call: Call, window_s: float) -> float:
    done = [0] * THREADS
    until = time.perf_counter() + window_s

    def work(number: int) -> None:
        while time.perf_counter() < until:
            call()
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / window_s


def import_ms(module: str, times: int) -> list[float]:
    """Each in an interpreter of its own; the first, which compiles what an installed package has compiled, is
    left out."""
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    with tempfile.TemporaryDirectory(prefix="fastserve-bench-") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        command = [sys.executable, "-c", code]
        took = [float(subprocess.check_output(command, env=environment)) * 1e3 for _ in range(times + 1)]
    return took[1:]


def ratio(values: list[float], references: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, references, strict=True))


def measure(length: Length) -> list[dict[str, Any]]:
    found = []
    with Core() as core:
        core.serve(*(servable(model, inner=shape[1]) for model, shape in SHAPES.values()))
        for title, (model, shape) in SHAPES.items():
            x = np.random.default_rng(1).uniform(-1.0, 1.0, shape).astype(np.float32)
            samples = one_in_flight(core.address, model, x, length)
            found.append({"case": f"sync, {title}", "unit": "us", "samples": samples})
            samples = asyncio.run(one_in_flight_async(core.address, model, x, length))
            found.append({"case": f"asyncio, {title}", "unit": "us", "samples": samples})
            samples = by_threads(core.address, model, x, length)
            found.append({"case": f"{THREADS} threads, {title}", "unit": "calls/s", "samples": samples})
    for row in found:
        samples = row["samples"]
        row["medians"] = {who: round(statistics.median(values), 1) for who, values in samples.items()}
        row["ratio"] = round(ratio(samples["fastserve"], samples["grpcio"]), 3)
        row["bar"] = RTT_BAR if row["case"].startswith("sync") else None
        row["passed"] = row["ratio"] <= RTT_BAR if row["bar"] else None
    imports = import_ms("fastserve.client", length.imports)
    found.append(
        {
            "case": "import fastserve.client",
            "unit": "ms",
            "samples": {"fastserve": imports},
            "medians": {"fastserve": round(statistics.median(imports), 1)},
            "ratio": None,
            "bar": IMPORT_BAR_MS,
            "passed": statistics.median(imports) < IMPORT_BAR_MS,
        }
    )
    return found


def show(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("case", "fastserve", "grpcio", "grpcio, bytes", "", "ratio", "bar", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in found:
        figures = [row["medians"].get(who) for who in ("fastserve", "grpcio", "grpcio, bytes")]
        table.add_row(
            row["case"],
            *("" if figure is None else f"{figure:,.1f}" for figure in figures),
            row["unit"],
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "" if row["bar"] is None else f"<= {row['bar']:g}",
            {True: "[green]pass[/]", False: "[red]FAIL[/]", None: ""}[row["passed"]],
        )
    console.print(table)


def main() -> int:
    given = arguments(__doc__, OUT).parse_args()
    found = measure(QUICK if given.quick else FULL)
    return finish(Console(highlight=False), show, found, given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
