"""What a scrape costs the control process: 50 models of 3 signatures, each with traffic of two transports.

    python bench/scraping.py [--models 50] [--signatures 3] [--repeats 20] [--out bench/results/scraping.json]

Rendered as the monitor renders it, in a thread, with the figures of real histograms; and meanwhile a task on
the event loop, which stands for a health probe, is timed. Needs no core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from fastserve._native.metrics import Histogram, MetricsSnapshot, Series
from fastserve.control.telemetry_window import window
from fastserve.monitor.scrape import render
from fastserve.monitor.values import Durations, Figures, ModelFigures, ProcessFigures, VersionFigures

_VALUES = 2000


def times(lots: random.Random, median_us: float) -> Histogram:
    return Histogram.of([lots.lognormvariate(0.0, 0.7) * median_us for _ in range(_VALUES)])


def series(lots: random.Random, model: str, signature: str) -> Series:
    transports = ("grpc", "rest")
    rows = Histogram.of([lots.choice((1, 2, 4, 8, 16, 60)) for _ in range(_VALUES)], unit=1.0)
    return Series(
        model,
        1,
        signature,
        requests={
            ("Predict", transport, code): lots.randrange(1, 10**6)
            for transport in transports
            for code in ("OK", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED")
        },
        latency={("Predict", transport): times(lots, 1500.0) for transport in transports},
        queue=times(lots, 400.0),
        formation=times(lots, 8.0),
        compute=times(lots, 700.0),
        encode=times(lots, 12.0),
        batch_rows=rows,
        request_rows={"Predict": rows, "Classify": rows},
        padding={16: rows, 64: rows},
    )


def figures(models: int, signatures: int) -> Figures:
    lots = random.Random(1)
    names = [f"model_{i}" for i in range(models)]
    live = [series(lots, name, f"signature_{j}") for name in names for j in range(signatures)]
    taken = Durations((0.1, 1.0, 10.0), (1, 2, 3), 3, 4.5)
    return Figures(
        version="0",
        library="",
        uptime_s=1.0,
        ready=True,
        live=live,
        all=live,
        unresolved={("Predict", "grpc", "NOT_FOUND"): 3},
        core=ProcessFigures(True, 0, 1),
        core_bytes=1 << 30,
        memory_limit_bytes=1 << 32,
        gateway=None,
        models=[ModelFigures(name, 1, {"success": 1}, taken, taken) for name in names],
        versions=[VersionFigures(name, 1, "AVAILABLE", 1 << 20) for name in names],
        paths=[],
    )


async def measure(models: int, signatures: int, repeats: int) -> dict[str, Any]:
    shown = figures(models, signatures)
    snapshot = MetricsSnapshot({}, shown.live)
    result: dict[str, Any] = {"models": models, "signatures": signatures, "repeats": repeats}
    for name, options in (("text", {}), ("gzip", {"zipped": True}), ("openmetrics", {"openmetrics": True})):
        work = partial(render, shown, **{"openmetrics": False, **options})
        took, late, cpu = [], [], []

        def timed(work: Any = work, cpu: list[float] = cpu) -> bytes:
            began = time.thread_time()
            text: bytes = work()
            cpu.append(time.thread_time() - began)
            return text

        for _ in range(repeats):
            began = time.perf_counter()
            rendering = asyncio.create_task(asyncio.to_thread(timed), name="rendering")
            while not rendering.done():
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                late.append(time.perf_counter() - before - 0.001)
            text = await rendering
            took.append(time.perf_counter() - began)
        result[name] = {
            "bytes": len(text),
            "median_ms": round(statistics.median(took) * 1e3, 1),
            "cpu_median_ms": round(statistics.median(cpu) * 1e3, 1),
            "probe_late_p99_ms": round(statistics.quantiles(late, n=100)[-1] * 1e3, 1),
            "probe_late_max_ms": round(max(late) * 1e3, 1),
        }
        if name == "text":
            result["samples"] = sum(not line.startswith(b"#") for line in text.splitlines())
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        window(snapshot, None, 5.0)
        took.append(time.perf_counter() - began)
    result["window_median_ms"] = round(statistics.median(took) * 1e3, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--signatures", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = asyncio.run(measure(args.models, args.signatures, args.repeats))
    # Of the last minute: other processes take their share of the times, not of the processor time.
    result["load"] = os.getloadavg()[0]
    result["python"], result["machine"] = platform.python_version(), platform.machine()
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
