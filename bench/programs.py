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
    command += ["--out", _result("curves.json", quick), "--html", _result("curves.html", quick)]
    return [*command, *(["--quick"] if quick else [])]


def generator(quick: bool) -> list[str]:
    """The load generator beside h2load, and what it makes of a stall."""
    command = [
        sys.executable,
        str(HERE / "generator.py"),
        *(["--seconds", "1", "--rounds", "2"] if quick else []),
    ]
    return [*command, "--out", _result("generator.json", quick)]


def client_codec(quick: bool) -> list[str]:
    """A request's encoding and a reply's decoding, beside the stock client's."""
    command = [sys.executable, str(HERE / "client_codec.py"), "--seconds", "1" if quick else "8"]
    return [*command, "--out", _result("client_codec.json", quick)]


def client_rtt(quick: bool) -> list[str]:
    """Round trips of fastserve.client and of grpcio, and how long the import takes."""
    command = [sys.executable, str(HERE / "client_rtt.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("client_rtt.json", quick)]


def features(quick: bool) -> list[str]:
    """Packing features, beside TensorFlow's eager ops, numpy and Python."""
    command = [sys.executable, str(HERE / "features.py"), *(["--seconds", "10"] if quick else [])]
    return [*command, "--out", _result("features.json", quick)]


def infer(quick: bool) -> list[str]:
    """Classify and Regress, beside the same signature in Python."""
    command = [sys.executable, str(HERE / "infer.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("infer.json", quick)]


def broadcast(quick: bool) -> list[str]:
    """A user's features sent once, beside the same in every row."""
    command = [sys.executable, str(HERE / "broadcast.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("broadcast.json", quick)]


def counting(quick: bool) -> list[str]:
    """What counting costs, beside a build without it."""
    command = [sys.executable, str(HERE / "counting.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("counting.json", quick)]


def gateway(quick: bool) -> list[str]:
    """gRPC beside a busy gateway, and REST beside Flask."""
    command = [sys.executable, str(HERE / "gateway.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("gateway.json", quick)]


def optimize(quick: bool) -> list[str]:
    """A ranker written naively and what `fastserve optimize` makes of it, served in one run."""
    command = [sys.executable, str(HERE / "optimize.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("optimize.json", quick)]


def trials(quick: bool) -> list[str]:
    """What a version's trial costs the processor, started from nothing and forked."""
    command = [sys.executable, str(HERE / "trials.py"), *(["--quick"] if quick else [])]
    return [*command, "--out", _result("trials.json", quick)]


def _result(name: str, quick: bool) -> str:
    """Rough figures do not replace the others: git ignores results/dev*."""
    return str(RESULTS / (f"dev_{name}" if quick else name))


PROGRAMS: dict[str, Callable[[bool], list[str]]] = {
    "generator": generator,
    "client_codec": client_codec,
    "client_rtt": client_rtt,
    "features": features,
    "infer": infer,
    "broadcast": broadcast,
    "counting": counting,
    "gateway": gateway,
    "optimize": optimize,
    "trials": trials,
    "curves": curves,
}
