"""Measures the load generator: its rate and its latencies beside h2load's, and what it makes of a stall.

    python bench/generator.py [--seconds 2] [--rounds 5] [--out bench/results/generator.json]

The server is memory_server.c, which answers from memory, on a processor of its own where there are two. Each
case is run by one generator after the other, in turns, so that what else the machine does meets both. h2load
(Debian's nghttp2-client) counts every HTTP 200 as a success, whatever grpc-status says, so the bytes that it
received are compared with what good replies weigh. This is the only file that knows h2load.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from compiled import compiled

from fastserve._native.load import LoadResult, run
from fastserve.bench.machine import machine as where

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "generator.json"
PATH = "/tensorflow.serving.PredictionService/Predict"
WARM_UP_S = 0.3
PREFIX = 5


class GeneratorError(RuntimeError):
    """h2load is missing or failed, or not every request was answered well."""


# ---- the server ------------------------------------------------------------------------------------


class Server:
    """memory_server; use as a context manager."""

    def __init__(self, reply_bytes: int, processor: int | None, spin_ns: int = 0) -> None:
        processor_text = str(-1 if processor is None else processor)
        self.process = subprocess.Popen(
            [compiled("memory_server"), str(reply_bytes), processor_text, str(spin_ns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


# ---- the generators --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One request, so many at once, to a server that spins so long over each."""

    connections: int
    streams: int
    request_bytes: int
    reply_bytes: int
    spin_ns: int = 0

    @property
    def name(self) -> str:
        slow = f", server {self.spin_ns / 1000:g} us" if self.spin_ns else ""
        return (
            f"{self.connections} x {self.streams} in flight, {self.request_bytes} B request, "
            f"{self.reply_bytes} B reply{slow}"
        )


@dataclass(frozen=True)
class Load:
    """What one run of either generator saw. Latencies are nan where they were not asked for; cpu_us is the
    generator's processor time for each request."""

    per_s: float
    mean_us: float
    p50_us: float
    p99_us: float
    cpu_us: float


def ours(case: Case, port: int, seconds: float, processor: int | None) -> Load:
    result = run(
        ("127.0.0.1", port),
        [bytes(case.request_bytes)],
        path=PATH,
        authority=f"127.0.0.1:{port}",
        connections=case.connections,
        in_flight=case.streams,
        warmup_s=WARM_UP_S,
        duration_s=seconds,
        reply_bytes=[case.reply_bytes],
        processor=processor,
    )
    if result.failed or result.unanswered:
        raise GeneratorError(f"{case.name}: {result.failed}, {result.first_error}")
    p50, p99 = result.latency.values_at([0.5, 0.99])
    return Load(
        result.rate,
        result.latency.mean / 1e3,
        p50 / 1e3,
        p99 / 1e3,
        result.cpu_s / max(1.0, result.rate * result.seconds) * 1e6,
    )


def h2load(case: Case, port: int, seconds: float, processor: int | None, log: bool) -> Load:
    """log: keep the time of every request, which costs it some of its rate."""
    with tempfile.TemporaryDirectory(prefix="fastserve-bench-") as folder:
        body, times = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(b"\0" + case.request_bytes.to_bytes(4, "big") + bytes(case.request_bytes))
        command = ["taskset", "-c", str(processor)] if processor is not None else []
        command += ["h2load", f"-c{case.connections}", f"-m{case.streams}", "-t1"]
        command += [f"--duration={round(seconds * 1000)}ms", f"--warm-up-time={round(WARM_UP_S * 1000)}ms"]
        command += [f"--log-file={times}"] if log else []
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body)]
        command.append(f"http://127.0.0.1:{port}{PATH}")
        before = os.times()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + WARM_UP_S + 30.0
        )
        after = os.times()
        report = parse(done.stdout)
        if done.returncode != 0 or report is None:
            raise GeneratorError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-500:]}")
        report.check(case.reply_bytes + PREFIX, case.connections * case.streams)
        latencies = sorted(read_log(times.read_text(encoding="ascii"))) if log else []
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(
        report.per_s,
        report.mean_us,
        percentile(latencies, 50),
        percentile(latencies, 99),
        cpu_s / max(1.0, report.per_s * (seconds + WARM_UP_S)) * 1e6,  # of its warm-up, too
    )


@dataclass(frozen=True)
class Report:
    """What h2load printed."""

    done: int
    per_s: float
    wire_bytes: int
    mean_us: float

    def check(self, reply_bytes: int, in_flight: int) -> None:
        """Raises GeneratorError unless at least as many bytes came as `done` good replies have, less one for
        each request that was in flight when the window ended."""
        if self.wire_bytes < (self.done - in_flight) * reply_bytes:
            raise GeneratorError(f"{self.done} replies in {self.wire_bytes} bytes: some were errors")


_FINISHED = re.compile(r"finished in [\d.]+(?:us|ms|s|m|h)?, ([\d.]+) req/s")
_REQUESTS = re.compile(
    r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout"
)
_TRAFFIC = re.compile(r"traffic: \S+ \((\d+)\) total")
_TIMES = re.compile(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s|m|h)")
_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}


def parse(output: str) -> Report | None:
    """Reads h2load's report; None when it is not one, or when a request did not succeed."""
    finished, requests, traffic = (pattern.search(output) for pattern in (_FINISHED, _REQUESTS, _TRAFFIC))
    times = _TIMES.search(output)
    if not (finished and requests and traffic and times):
        return None
    done, succeeded, *bad = map(int, requests.groups())
    if done == 0 or succeeded != done or any(bad):
        return None
    mean_us = float(times.group(1)) * _UNITS_US[times.group(2)]
    return Report(done, float(finished.group(1)), int(traffic.group(1)), mean_us)


def read_log(text: str) -> list[float]:
    """The last column of h2load's log: microseconds until the end of the response."""
    times = []
    for line in text.splitlines():
        _, status, took = line.split("\t")[:3]
        if status != "200":
            raise GeneratorError(f"h2load logged HTTP status {status}")
        times.append(float(took))
    return times


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the sorted values that at least `percent` of all do not exceed; nan without any."""
    if not ordered:
        return float("nan")
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


# ---- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Which processor is whose; None: the kernel decides."""

    server: int | None
    generator: int | None


def in_turns(case: Case, where: Machine, seconds: float, rounds: int, log: bool) -> dict[str, list[Load]]:
    """Both generators, the first of each round taking turns, on one server."""
    loads: dict[str, list[Load]] = {"ours": [], "h2load": []}
    with Server(case.reply_bytes, where.server, case.spin_ns) as server:
        for number in range(rounds):
            for name in ("ours", "h2load") if number % 2 == 0 else ("h2load", "ours"):
                if name == "ours":
                    loads[name].append(ours(case, server.port, seconds, where.generator))
                else:
                    loads[name].append(h2load(case, server.port, seconds, where.generator, log))
    return loads


RATE_CASES = (
    Case(4, 64, 200, 100),
    Case(1, 64, 200, 100),
    Case(16, 16, 200, 100),
    Case(4, 16, 16000, 2000),
)
LATENCY_CASES = (
    Case(1, 1, 200, 100),
    Case(1, 1, 200, 100, spin_ns=100_000),
    Case(4, 8, 200, 100, spin_ns=20_000),
    Case(16, 1, 200, 100, spin_ns=20_000),
)


def rates(where: Machine, seconds: float, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for case in RATE_CASES:
        loads = in_turns(case, where, seconds, rounds, log=False)
        ratios = [our.per_s / their.per_s for our, their in zip(loads["ours"], loads["h2load"], strict=True)]
        row = {
            "case": case.name,
            "ours_per_s": round(statistics.median(load.per_s for load in loads["ours"])),
            "h2load_per_s": round(statistics.median(load.per_s for load in loads["h2load"])),
            "ours_cpu_us": round(statistics.median(load.cpu_us for load in loads["ours"]), 2),
            "h2load_cpu_us": round(statistics.median(load.cpu_us for load in loads["h2load"]), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
        rows.append(row)
        print(
            f"rate     {case.name:56} {row['ours_per_s']:>9,} /s  h2load {row['h2load_per_s']:>9,} /s"
            f"  {row['ratio']:5.2f} times; a request costs {row['ours_cpu_us']:5.2f} us of its processor,"
            f" h2load {row['h2load_cpu_us']:5.2f}",
            flush=True,
        )
    return rows


def latencies(where: Machine, seconds: float, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for case in LATENCY_CASES:
        loads = in_turns(case, where, seconds, rounds, log=True)
        row: dict[str, Any] = {"case": case.name}
        for what in ("mean_us", "p50_us", "p99_us", "per_s"):
            values = {name: [getattr(load, what) for load in of] for name, of in loads.items()}
            medians = {name: statistics.median(of) for name, of in values.items()}
            row[what] = {
                "ours": round(medians["ours"], 1),
                "h2load": round(medians["h2load"], 1),
                "ratio": round(medians["ours"] / medians["h2load"], 3),
                "range": {name: [round(min(of), 1), round(max(of), 1)] for name, of in values.items()},
            }
        rows.append(row)
        print(
            f"latency  {case.name:56} "
            + "  ".join(
                f"{what[:-3]} {one['ours']:7.1f} us (h2load {one['h2load']:7.1f}, {one['ratio']:.2f})"
                for what, one in row.items()
                if what in ("mean_us", "p50_us", "p99_us")
            ),
            flush=True,
        )
    return rows


def open_loop(where: Machine, seconds: float) -> list[dict[str, Any]]:
    """How late the generator is itself, at rates of Poisson arrivals."""
    rows = []
    with Server(100, where.server) as server:
        for per_s in (1_000, 10_000, 100_000, 200_000):
            result = run(
                ("127.0.0.1", server.port),
                [bytes(200)],
                path=PATH,
                authority="x",
                connections=4,
                rate=float(per_s),
                warmup_s=WARM_UP_S,
                duration_s=seconds,
                reply_bytes=[100],
                processor=where.generator,
            )
            p50, p99 = result.behind_ns.values_at([0.5, 0.99])
            row = {
                "asked_per_s": per_s,
                "answered_per_s": round(result.rate),
                "failed": result.failed,
                "behind_p50_us": round(p50 / 1e3, 1),
                "behind_p99_us": round(p99 / 1e3, 1),
                "latency_p50_us": round(result.latency.value_at(0.5) / 1e3, 1),
                "latency_p99_us": round(result.latency.value_at(0.99) / 1e3, 1),
                "cpu_share": round(result.cpu_s / result.seconds, 3),
            }
            rows.append(row)
            print(
                f"open     {per_s:>7,} /s asked, {row['answered_per_s']:>7,} /s answered, behind p50 "
                f"{row['behind_p50_us']} us p99 {row['behind_p99_us']} us, "
                f"{row['cpu_share']:.0%} of a processor",
                flush=True,
            )
    return rows


def frozen(where: Machine, **how: Any) -> LoadResult:
    """Two seconds, in the middle of which the server is stopped for 200 ms."""
    with Server(100, where.server) as server:

        def freeze() -> None:
            time.sleep(WARM_UP_S + 1.0)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGCONT)

        thread = threading.Thread(target=freeze)
        thread.start()
        result = run(
            ("127.0.0.1", server.port),
            [bytes(200)],
            path=PATH,
            authority="x",
            warmup_s=WARM_UP_S,
            duration_s=2.0,
            processor=where.generator,
            **how,
        )
        thread.join()
    return result


def stall(where: Machine) -> dict[str, Any]:
    row: dict[str, Any] = {"frozen_ms": 200}
    for name, how in (("open", {"rate": 2000.0}), ("closed", {"in_flight": 4})):
        latency = frozen(where, **how).latency
        at = latency.values_at([0.5, 0.9, 0.95, 0.99, 1.0])
        row[f"{name}_loop_ms"] = dict(
            zip(("p50", "p90", "p95", "p99", "max"), (round(value / 1e6, 2) for value in at), strict=True)
        )
        print(f"stall    {name} loop: {row[f'{name}_loop_ms']} ms", flush=True)
    return row


def machine() -> dict[str, Any]:
    version = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=False).stdout
    return {**where(), "h2load": version.strip(), "load_average": os.getloadavg()}


def agree(pair: dict[str, Any]) -> bool:
    """Whether two medians differ by no more than a tenth, or than the runs of one generator differ."""
    noise = max(high - low for low, high in pair["range"].values())
    return bool(abs(pair["ours"] - pair["h2load"]) <= max(0.1 * pair["h2load"], noise))


def verdicts(report: dict[str, Any]) -> dict[str, bool]:
    """What the generator must show."""
    pairs = [row[what] for row in report["latencies"] for what in ("mean_us", "p50_us", "p99_us")]
    return {
        "at least h2load's rate in every case": all(row["ratio"] >= 1.0 for row in report["rates"]),
        "over 100,000 a second on one processor": report["rates"][0]["ours_per_s"] > 100_000,
        "latencies agree with h2load's within the noise": all(map(agree, pairs)),
        "a stall of 200 ms shows in the open loop": report["stall"]["open_loop_ms"]["p99"] > 100.0,
        "and hides from the closed loop's percentiles": report["stall"]["closed_loop_ms"]["p99"] < 10.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each generator a case (default 5)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT.relative_to(HERE.parent)}")
    args = parser.parse_args()
    if shutil.which("h2load") is None:
        print("h2load is missing: apt-get install nghttp2-client", file=sys.stderr)
        return 2
    processors = sorted(os.sched_getaffinity(0))
    where = Machine(processors[0], processors[1]) if len(processors) > 1 else Machine(None, None)
    report: dict[str, Any] = {
        "what": "the load generator beside h2load, against a server that answers from memory",
        "command": f"python bench/generator.py --seconds {args.seconds:g} --rounds {args.rounds}",
        "machine": machine(),
        "rates": rates(where, args.seconds, args.rounds),
        "latencies": latencies(where, args.seconds, args.rounds),
        "open_loop": open_loop(where, args.seconds),
        "stall": stall(where),
    }
    report["verdicts"] = verdicts(report)
    for what, holds in report["verdicts"].items():
        print(f"{'yes' if holds else 'NO ':4} {what}")
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(report["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
