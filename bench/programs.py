"""What `make bench` runs beside the cases: programs with tables and results of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def curves(quick: bool) -> list[str]:
    """Throughput and latency of every workload, FastServe beside grpc.aio with TensorFlow."""
    workloads = [str(path) for path in sorted((HERE / "workloads").glob("*.toml"))]
    command = [sys.executable, "-m", "fastserve", "bench", "run", *workloads]
    command += ["--start", "fastserve", "--start", "grpc-aio"]
    command += ["--out", str(RESULTS / "curves.json"), "--html", str(RESULTS / "curves.html")]
    return [*command, *(["--quick"] if quick else [])]


def client_codec(quick: bool) -> list[str]:
    """A request's and a reply's encoding, beside the stock client's."""
    return [sys.executable, str(HERE / "client_codec.py"), "--seconds", "1" if quick else "8"]


def client_rtt(quick: bool) -> list[str]:
    """Round trips of fastserve.client and of grpcio, and how long the import takes."""
    return [sys.executable, str(HERE / "client_rtt.py"), *(["--quick"] if quick else [])]


PROGRAMS: dict[str, Callable[[bool], list[str]]] = {
    "client_codec": client_codec,
    "client_rtt": client_rtt,
    "curves": curves,
}
