"""Checks the daemon on a GPU: what a machine without one cannot show.

    python bench/gpu.py                     needs an NVIDIA GPU and `pip install tensorflow[and-cuda]`

For each XLA mode the ranker is served with device = "gpu", a memory fraction and growth as configured. Its
scores are compared with TensorFlow's own, nvidia-smi says whether the core runs there and within its share,
and a short load gives requests/s and batch sizes. Writes results/gpu.json. Exit code 0 when all of it holds,
1 when not, 2 without a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import cache
import report
from case import CONNECTIONS, STREAMS, Bench, raise_file_limit
from drive import drive
from rich.console import Console
from servers import serving
from stock_client import verify

MEMORY_FRACTION = 0.25
SECONDS = 3
MODES = ("off", "full", "cluster", "auto")
CONTEXT_MIB = 2048  # CUDA's own, beside TensorFlow's allocator


def gpu() -> dict[str, Any] | None:
    """The first GPU's name and memory; None when there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    name, memory = done.stdout.splitlines()[0].rsplit(",", 1)
    return {"name": name.strip(), "memory_mib": int(memory)}


def used_mib(pid: int) -> int:
    """GPU memory of a process; 0 when it has none there."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    lines = (line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1)
    return sum(int(memory) for owner, memory in lines if int(owner) == pid)


def check(mode: str, bench: Bench, card: dict[str, Any]) -> list[report.Row]:
    """One daemon with this XLA mode: its answers, its memory, its rate."""
    tensorflow = {
        "device": "gpu",
        "visible_devices": "0",
        "gpu_memory_fraction": MEMORY_FRACTION,
        "gpu_allow_growth": True,
    }
    parameters = {"xla": mode, "gpu": card["name"], **tensorflow}
    with serving([bench.served("ranker", {"xla": mode})], tensorflow=tensorflow) as daemon:
        answers = verify(daemon.port, "ranker")
        memory = used_mib(daemon.core_pid())
        before = daemon.counters("ranker")
        got = drive(
            daemon.port,
            bench.bodies("ranker"),
            connections=CONNECTIONS,
            in_flight=STREAMS,
            seconds=SECONDS,
        )
        counted = daemon.counters("ranker") - before
        said = [line for line in daemon.log_lines() if "compiled" in line or "ready" in line]
    allowed = card["memory_mib"] * MEMORY_FRACTION + CONTEXT_MIB
    return [
        report.Row(
            f"gpu, xla = {mode}: scores against TensorFlow's",
            parameters,
            f"max abs difference {answers['max_abs_diff']:.2g}",
            bar="<= 1e-5",
            passed=answers["max_abs_diff"] <= 1e-5,
            samples={"log": said},
        ),
        report.Row(
            f"gpu, xla = {mode}: memory of the core",
            parameters,
            f"{memory} MiB",
            bar=f"> 0, <= {allowed:.0f}",
            passed=0 < memory <= allowed,
        ),
        report.Row(
            f"gpu, xla = {mode}: one row per request, {CONNECTIONS} x {STREAMS}",
            parameters,
            f"{got.per_s:,.0f} req/s, mean batch {counted.mean_batch:.1f}",
        ),
    ]


def main() -> int:
    console = Console(highlight=False)
    card = gpu()
    if card is None:
        console.print("no NVIDIA GPU here (nvidia-smi finds none): nothing was checked")
        return 2
    # The recorded scores are full float32; TF32's products have ten bits.
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    raise_file_limit()
    if not cache.is_current():
        subprocess.run([sys.executable, str(cache.HERE / "cache.py")], check=True)
    from run import session_config

    bench = Bench(json.loads(cache.INDEX.read_text()), session_config(), False, lambda text: None)
    rows = [row for mode in MODES for row in check(mode, bench, card)]
    report.show(console, rows)
    report.write("gpu", rows, report.machine() | {"gpu": card}, {"seconds": SECONDS})
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
