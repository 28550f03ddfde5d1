"""The gateway: how little it disturbs gRPC, and how many REST requests it answers.

    python bench/gateway.py [--quick] [--out bench/results/gateway.json]

Isolation: gRPC requests at a fixed rate, in windows that take turns: alone; while the gateway is saturated by
REST; while a route's hook burns what processor it gets in Python; while an unrelated process does, at the
gateway's nice value. All are processes of one session: kernels with autogroups share processors between
sessions first, whatever their nice values. A ratio is the median of the rounds' ratios of the 99th
percentiles.

REST: 100 rows to a request, beside the Flask server of fastserve.bench.reference_flask with as many processes
as there are processors and at the same priority; they take turns. For a ranker whose run is most of the work,
for a model with 60,000 numbers to a request, and for one whose run costs nothing.

Exit code 0 when the bars hold: gRPC's p99 beside a saturated gateway is at most 1.3 times that beside the
burner, and REST answers at least 3 times Flask's requests/s.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from rich.console import Console
from rich.table import Table
from rounds import FULL, QUICK, Length, arguments, asked, finish

from fastserve.bench.daemon_config import toml_value
from fastserve.bench.export import export
from fastserve.bench.processes import tree, usage
from fastserve.bench.requests import Request, make_requests
from fastserve.bench.start import started
from fastserve.bench.target import parse_start
from fastserve.bench.wire import PREDICT_PATH, grpc_body, rest_body, rest_path
from fastserve.bench.workload import Requests

HERE = Path(__file__).resolve().parent
OUT = report.RESULTS / "gateway.json"
NICE = 10
ISOLATION_BAR, REST_BAR = 1.3, 3.0
SIGNATURE = "serving_default"
RANKER, WIDE, CHEAP = "dcn", "wide_deep", "half_plus_two"
# A hook that does nothing but compute, some 5 ms of it, and its route.
HOOK = """
from fastserve.web import Response

def preprocess(request):
    return Response({"sum": sum(i * i for i in range(80_000))})

def postprocess(outputs, request):
    raise AssertionError
"""
HOOK_PATH = "/burn"
ROWS = 100
# Of gRPC's saturated rate, in the windows of isolation.
SHARE = 0.25
REST_CONNECTIONS = 8
READY_TIMEOUT_S = 180.0

# Starts a load that disturbs, for so many seconds; returns what waits for its end.
Disturb = Callable[[float], Callable[[], Any]]


# ---- what is served and asked ----------------------------------------------------------------------


def model(name: str) -> tuple[Path, list[Request], list[Request]]:
    """Its base path, requests of one row, and of 100."""
    made = export(HERE / "models" / f"{name}.py")
    one, many = (
        make_requests(Requests(source="rows", rows=rows, count=32), None, made.recorded) for rows in (1, ROWS)
    )
    return made.base_path, one, many


@dataclass(frozen=True)
class Daemon:
    """A running `fastserve serve`, in this session."""

    process: subprocess.Popen[bytes]
    grpc: tuple[str, int]
    rest: tuple[str, int]

    def gateway_cpu_s(self) -> float:
        """Processor time that the gateway's processes have used."""
        total = 0.0
        for pid in tree(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = {b"fastserve.gateway", b"fastserve.gateway.worker"} & {*command}
            used = usage(pid) if ours else None
            total += used.cpu_s if used is not None else 0.0
        return total


@contextmanager
def serving(models: dict[str, Path], **gateway: Any) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="fastserve-bench-") as folder:
        ready = Path(folder, "ready.json")
        gateway = {"listen": ["127.0.0.1:0"], "nice": NICE, **gateway}
        text = f'[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "{folder}/state"\n[gateway]\n'
        text += "".join(f"{key} = {toml_value(value)}\n" for key, value in gateway.items())
        for name, path in models.items():
            text += f'[[models]]\nname = "{name}"\nbase_path = "{path}"\n'
        text += f'[[routes]]\npath = "{HOOK_PATH}"\nfile = "hook.py"\n'
        Path(folder, "hook.py").write_text(HOOK)
        Path(folder, "config.toml").write_text(text)
        command = [sys.executable, "-m", "fastserve", "serve", "config.toml", "--strict"]
        with open(Path(folder, "log"), "wb") as log:
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready)], cwd=folder, stdout=log, stderr=log, process_group=0
            )
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"fastserve did not start:\n{Path(folder, 'log').read_text()[-3000:]}")
                time.sleep(0.05)
            told = json.loads(ready.read_text())
            yield Daemon(process, where(told["addresses"][0]), where(told["gateway_addresses"][0]))
        finally:
            process.terminate()
            if process.wait(60.0) != 0:
                print(f"fastserve ended with {process.returncode}", file=sys.stderr)


def where(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


# ---- who disturbs ----------------------------------------------------------------------------------


@contextmanager
def helper(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This program as another process of the session, at the gateway's nice value."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def orders(process: subprocess.Popen[str]) -> Disturb:
    def disturb(seconds: float) -> Callable[[], Any]:
        assert process.stdin is not None
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return lambda: said(process)

    return disturb


def burn() -> None:
    """The unrelated process: burns for as long as it is told, and says how much processor time it got."""
    os.nice(NICE)
    print("ready", flush=True)
    for line in sys.stdin:
        end, before = time.monotonic() + float(line), time.process_time()
        while time.monotonic() < end:
            for _ in range(10_000):
                pass
        print(json.dumps({"cpu_s": time.process_time() - before}), flush=True)


def load(port: int, path: str) -> None:
    """Callers of REST or of a route: as many requests as are answered, for as long as they are told."""
    os.nice(NICE)
    bodies = [rest_body(SIGNATURE, request) for request in model(CHEAP)[2]]
    print("ready", flush=True)
    for line in sys.stdin:
        result = asked(
            ("127.0.0.1", port),
            bodies,
            protocol="http",
            path=path,
            connections=REST_CONNECTIONS,
            in_flight=1,
            duration_s=float(line),
        )
        print(json.dumps({"requests_per_s": result.rate}), flush=True)


# ---- isolation -------------------------------------------------------------------------------------


def isolation(length: Length, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """gRPC's p99 beside each disturbance, in turns."""
    ranker, one, _ = model(RANKER)
    bodies = [grpc_body(RANKER, SIGNATURE, request) for request in one]
    cheap = model(CHEAP)[0]
    with ExitStack() as stack:
        daemon = stack.enter_context(serving({RANKER: ranker, CHEAP: cheap}))
        port = str(daemon.rest[1])
        rest = stack.enter_context(helper("--load", port, rest_path(CHEAP)))
        hook = stack.enter_context(helper("--load", port, HOOK_PATH))
        burner = stack.enter_context(helper("--burn"))
        variants: dict[str, Disturb] = {
            "alone": lambda seconds: dict,
            "burner": orders(burner),
            "REST": orders(rest),
            "a hook": orders(hook),
        }
        saturated = asked(
            daemon.grpc, bodies, path=PREDICT_PATH, connections=4, in_flight=4, warmup_s=1.0, duration_s=2.0
        ).rate
        rate = SHARE * saturated
        say(f"gRPC: {saturated:,.0f} requests/s saturated, {rate:,.0f} in what follows")
        p99: dict[str, list[float]] = {name: [] for name in variants}
        told: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for number in range(length.rounds):
            names = list(variants)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                cpu_s = daemon.gateway_cpu_s()
                wait = variants[name](length.warmup_s + length.seconds + 0.5)
                result = asked(
                    daemon.grpc,
                    bodies,
                    length,
                    path=PREDICT_PATH,
                    connections=4,
                    rate=rate,
                )
                told[name].append({**wait(), "gateway_cpu_s": daemon.gateway_cpu_s() - cpu_s})
                p99[name].append(result.latency.value_at(0.99) / 1000.0)
            say(", ".join(f"{name} {values[-1]:,.0f} us" for name, values in p99.items()))
    return [
        compared(
            f"gRPC p99 beside {name}", "us", {key: p99[key] for key in (name, "burner", "alone")},
            "burner", ISOLATION_BAR, at_most=True, told=told, rate=rate,
        )
        for name in variants
        if name not in ("alone", "burner")
    ]  # fmt: skip


# ---- REST beside Flask -----------------------------------------------------------------------------


def beside_flask(served: str, length: Length, say: Callable[[str], None]) -> dict[str, Any]:
    """Requests/s of 100 rows of one model."""
    path, _, many = model(served)
    bodies = [rest_body(SIGNATURE, request) for request in many]
    processes = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {"fastserve": [], "flask": []}
    p50: dict[str, list[float]] = {name: [] for name in rates}
    with ExitStack() as stack:
        daemon = stack.enter_context(serving({served: path}, processes=processes, nice=0))
        flask, _child = stack.enter_context(started(parse_start("flask"), served, path, SIGNATURE, {}))
        places = {"fastserve": daemon.rest, "flask": (str(flask.address[0]), int(flask.address[1]))}
        for _ in range(length.rounds):
            for name, place in places.items():
                result = asked(
                    place,
                    bodies,
                    length,
                    protocol="http",
                    path=rest_path(served),
                    connections=REST_CONNECTIONS,
                    in_flight=1,
                )
                rates[name].append(result.rate)
                p50[name].append(result.latency.value_at(0.5) / 1000.0)
            say(", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()))
    return compared(
        f"REST, {ROWS} rows of {served}", "requests/s", rates, "flask", REST_BAR, at_most=False, p50_us=p50,
        processes=processes,
    )  # fmt: skip


def compared(
    case: str,
    unit: str,
    samples: dict[str, list[float]],
    against: str,
    bar: float,
    *,
    at_most: bool,
    **more: Any,
) -> dict[str, Any]:
    """The first of `samples` against another, round by round."""
    first = next(iter(samples))
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(samples[first], samples[against], strict=True)
    )
    return {
        "case": case,
        "unit": unit,
        "samples": samples,
        "medians": {name: round(statistics.median(values), 1) for name, values in samples.items()},
        "against": against,
        "ratio": round(ratio, 3),
        "bar": f"<= {bar:g}" if at_most else f">= {bar:g}",
        "passed": ratio <= bar if at_most else ratio >= bar,
        **more,
    }


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("case", "medians", "ratio", "bar", "")
    for row in rows:
        medians = ", ".join(f"{name} {value:,.0f}" for name, value in row["medians"].items())
        verdict = "[green]pass[/]" if row["passed"] else "[red]FAIL[/]"
        table.add_row(row["case"], f"{medians} {row['unit']}", f"{row['ratio']:.2f}", row["bar"], verdict)
    console.print(table)


def main() -> int:
    parser = arguments(__doc__, OUT)
    parser.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, metavar=("PORT", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.burn:
        burn()
        return 0
    if given.load:
        load(int(given.load[0]), given.load[1])
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False)

    length = QUICK if given.quick else FULL
    rows = isolation(length, say)
    rows += [beside_flask(served, length, say) for served in (RANKER, WIDE, CHEAP)]
    return finish(console, show, rows, given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
