"""A workload: which model, what requests, under which load. Read from TOML.

Table and key names are the file's; units are in the names; relative paths start at the file's directory.
The example is a whole file, with every key.

    [workload]
    name = "dcn_candidates"             # also the default of title and model
    title = "DCN-v2, 100 to 700 rows"
    model = "dcn"                       # the name it is served under
    export = "../models/dcn.py"         # run as `python FILE OUT_DIR`: writes OUT_DIR/1/, a SavedModel, and
                                        # maybe OUT_DIR/requests.npz: recorded inputs, arrays of N rows each
    # saved_model = "/models/dcn"       # instead of export: a base path or a version's directory
    signature = "serving_default"
    rtol = 1e-3                         # how far the targets' answers to one request may differ:
    atol = 1e-4                         # |a - b| <= atol + rtol * |b|; smaller than 0: not compared

    [requests]
    source = "rows"                     # "signature": random; "rows": rows of requests.npz, drawn at random;
                                        # "file": whole requests
    file = "rows.npz"                   # of "rows" without export, of "file" (.npz, .jsonl; see requests.py)
    rows = [100, 700]                   # per request, drawn evenly; or one number
    run = 50                            # of "rows": rows come in runs of so many, which stay together
    count = 64                          # distinct requests
    seed = 1

    [requests.dims]                     # inner dims that several inputs share: drawn once for each request
    history = [50, 200]

    [requests.inputs.history_items]
    dims = ["history"]                  # one for each inner dim of unknown size: N, [low, high], or a name
    low = 1                             # of "signature": numbers from low to high
    high = 300000
    distribution = "zipf"               # "uniform", "normal" (low and high are three sigma away) or "zipf"
    trim = 0                            # of "rows": cut trailing columns in which all rows hold this value;
                                        # inputs that share a named dim are cut to the same length

    [load]
    closed = [{ connections = 1, in_flight = 1 }, { connections = 8, in_flight = 4 }]
    open = { fractions = [0.3, 0.6, 0.9], of = "slowest", connections = 8, arrivals = "poisson" }
    slo = { p99_ms = 10, connections = 8 }
    window_s = 5
    warmup_s = 1
    rounds = 3
    timeout_s = 10

    [replay]
    file = "log.jsonl"
    speed = 1.0

    [serve.executor]                    # config.toml of the FastServe that the harness starts;
    spin_us = 300                       # [serve.model] is its [[models]] table
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from fastserve.toml_tables import Problem, Schema, build, parse, read_text, refuse

Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
Number = Annotated[float, Meta(description="a number")]
Positive = Annotated[float, Meta(gt=0, le=1e9, description="a number more than 0")]
Seconds = Annotated[float, Meta(ge=0, le=1e6, description="a number of seconds, 0 or more")]
PositiveSeconds = Annotated[float, Meta(gt=0, le=1e6, description="a number of seconds, more than 0")]
Count = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number, 1 or more")]
Connections = Annotated[int, Meta(ge=1, le=10_000, description="a number of connections, 1 to 10000")]
_Pair = Annotated[tuple[Count, ...], Meta(min_length=2, max_length=2)]
Range = Annotated[_Pair | Count, Meta(description="a whole number, 1 or more, or [least, greatest]")]
Dim = Annotated[
    str | _Pair | Count,
    Meta(description="a size, [least, greatest], or a name from [requests.dims]"),
]
Fraction = Annotated[float, Meta(gt=0, le=2, description="a fraction of the highest rate, above 0, up to 2")]
Milliseconds = Annotated[float, Meta(gt=0, le=1e6, description="a number of milliseconds, more than 0")]


class About(Struct, frozen=True, kw_only=True):
    """[workload]: what is served and how answers are compared."""

    name: Text
    title: str = ""
    model: str = ""
    export: str = ""
    saved_model: str = ""
    signature: Text = "serving_default"
    rtol: Number = 1e-3
    atol: Number = 1e-4


class Input(Struct, frozen=True, kw_only=True):
    """[requests.inputs.NAME]: the values and unknown inner dims of one input."""

    low: Number | None = None
    high: Number | None = None
    distribution: Literal["uniform", "normal", "zipf"] = "uniform"
    dims: tuple[Dim, ...] = ()
    trim: Number | None = None


class Requests(Struct, frozen=True, kw_only=True):
    """[requests]: where they come from and how large they are."""

    source: Literal["signature", "rows", "file"] = "signature"
    file: str = ""
    rows: Range = 1
    run: Count = 1
    count: Annotated[int, Meta(ge=1, le=100_000, description="a number of requests, 1 to 100000")] = 16
    seed: Annotated[int, Meta(ge=0, le=1 << 62, description="a whole number, 0 or more")] = 1
    dims: dict[str, Range] = {}
    inputs: dict[str, Input] = {}


class Closed(Struct, frozen=True, kw_only=True):
    """Each connection has so many requests in flight, each followed by the next."""

    connections: Connections = 1
    in_flight: Annotated[int, Meta(ge=1, le=100_000, description="requests in flight, 1 to 100000")] = 1


class Open(Struct, frozen=True, kw_only=True):
    """Requests fall due whether or not the server keeps up."""

    # Requests per second.
    rates: tuple[Positive, ...] = ()
    # Of the highest rate in closed loop: of the slowest target for all, or of each its own.
    fractions: tuple[Fraction, ...] = ()
    of: Literal["slowest", "each"] = "slowest"
    connections: Connections = 8
    arrivals: Literal["poisson", "constant"] = "poisson"


class Slo(Struct, frozen=True, kw_only=True):
    """The highest rate in open loop at which this quantile of the latency stays below; one of them."""

    p50_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    connections: Connections = 8
    arrivals: Literal["poisson", "constant"] = "poisson"

    @property
    def objective(self) -> tuple[str, float, float]:
        """Name, quantile (0 to 1) and bound in milliseconds: ("p99", 0.99, 10.0)."""
        for name, quantile in QUANTILES.items():
            bound = getattr(self, f"{name}_ms")
            if bound is not None:
                return name, quantile, bound
        raise ValueError("no objective")


QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}


class Load(Struct, frozen=True, kw_only=True):
    """[load]: the points at which every target is measured, and for how long."""

    closed: tuple[Closed, ...] = ()
    open: Open | None = None
    slo: Slo | None = None
    window_s: PositiveSeconds = 5.0
    warmup_s: Seconds = 1.0
    rounds: Annotated[int, Meta(ge=1, le=1000, description="a number of rounds, 1 to 1000")] = 3
    timeout_s: PositiveSeconds = 10.0


class Replay(Struct, frozen=True, kw_only=True):
    """[replay]: a recorded log, sent with its timing; speed 2.0 is twice as fast."""

    file: Text
    speed: Positive = 1.0
    connections: Connections = 8


class Workload(Struct, frozen=True, kw_only=True):
    """A whole file. Paths are absolute once it is read."""

    workload: About
    requests: Requests = Requests()
    load: Load = Load()
    replay: Replay | None = None
    # Tables of FastServe's config.toml; `model` is its [[models]].
    serve: dict[str, dict[str, Any]] = {}
    # The file, for messages; "" when there is none.
    path: str = ""

    @property
    def name(self) -> str:
        return self.workload.name

    @property
    def title(self) -> str:
        return self.workload.title or self.workload.name

    @property
    def model(self) -> str:
        return self.workload.model or self.workload.name


_SERVE_TABLES = ("server", "limits", "executor", "tensorflow", "model")


class _File(Struct, frozen=True, kw_only=True):
    """What the file may hold; [serve] is looked at apart, for its keys are config.toml's."""

    workload: About
    requests: Requests = Requests()
    load: Load = Load()
    replay: Replay | None = None


_SCHEMA = Schema(
    tables={
        "[workload]": About,
        "[requests]": Requests,
        "[requests.inputs.NAME]": Input,
        "[load]": Load,
        "[load] open": Open,
        "[load] slo": Slo,
        "[replay]": Replay,
    }
)


def read_workload(path: str | os.PathLike[str]) -> Workload:
    """The workload in the file at `path`. ConfigError lists everything that is wrong with it."""
    file = os.fspath(path)
    return parse_workload(read_text(file), file)


def parse_workload(text: str, file: str) -> Workload:
    """As read_workload, from the file's text."""
    tables = parse(text, file)
    problems: list[Problem] = []
    serve = tables.get("serve", {})
    read = build(_SCHEMA, _File, {k: v for k, v in tables.items() if k != "serve"}, (), problems)
    problems += _check_serve(serve)
    if read is not None:
        problems += _check(read, "serve" in tables)
    if read is None or problems:
        raise refuse(problems, _SCHEMA, text, file, tables)
    base = Path(file).resolve().parent
    about, requests, replay = read.workload, read.requests, read.replay
    return Workload(
        workload=replace(about, export=_path(base, about.export), saved_model=_path(base, about.saved_model)),
        requests=replace(requests, file=_path(base, requests.file)),
        load=read.load,
        replay=replace(replay, file=_path(base, replay.file)) if replay else None,
        serve=serve,
        path=file,
    )


def _path(base: Path, text: str) -> str:
    return os.path.normpath(base / Path(text).expanduser()) if text else ""


def _check_serve(serve: Any) -> Iterator[Problem]:
    if not isinstance(serve, dict):
        yield Problem(("serve",), "expected tables of config.toml, such as [serve.executor]")
        return
    for name, table in serve.items():
        if name not in _SERVE_TABLES:
            yield Problem(("serve", name), f"no such table; there are {', '.join(_SERVE_TABLES)}", False)
        elif not isinstance(table, dict):
            yield Problem(("serve", name), f"expected a table, [serve.{name}]")


def _check(read: _File, served: bool) -> Iterator[Problem]:
    about, requests, load = read.workload, read.requests, read.load
    if about.export and about.saved_model:
        yield Problem(("workload", "saved_model"), "is there beside export; remove one of the two", False)
    if requests.source == "file" and not requests.file:
        yield Problem(("requests", "file"), 'is missing: source = "file" needs one', False)
    if requests.source == "rows" and not (requests.file or about.export):
        yield Problem(
            ("requests", "file"), 'is missing: source = "rows" needs one where there is no export', False
        )
    yield from _ranges(requests)
    for name, spec in requests.inputs.items():
        where = ("requests", "inputs", name)
        if spec.low is not None and spec.high is not None and spec.low > spec.high:
            yield Problem((*where, "high"), f"is less than low, which is {spec.low:g}")
        if spec.distribution == "zipf" and spec.high is None:
            yield Problem((*where, "high"), 'is missing: distribution = "zipf" needs one', False)
        for i, dim in enumerate(spec.dims):
            if isinstance(dim, str) and dim not in requests.dims:
                known = ", ".join(requests.dims) or "none"
                yield Problem((*where, "dims", i), f"no such dim in [requests.dims], which has {known}")
    if load.slo is not None and sum(getattr(load.slo, f"{name}_ms") is not None for name in QUANTILES) != 1:
        keys = ", ".join(f"{name}_ms" for name in QUANTILES)
        yield Problem(("load", "slo"), f"expected one of {keys}", False)
    if load.open is not None:
        if not load.open.rates and not load.open.fractions:
            yield Problem(("load", "open"), "expected rates or fractions", False)
        if load.open.fractions and not load.closed:
            yield Problem(
                ("load", "open", "fractions"),
                "are of the highest rate in closed loop, and there is no closed loop: expected [load] closed",
            )
    if not load.closed and load.open is None and load.slo is None and read.replay is None:
        yield Problem(("load",), "there is no load: expected closed, open or slo, or a table [replay]", False)


def _ranges(requests: Requests) -> Iterator[Problem]:
    found: list[tuple[tuple[str | int, ...], Range | Dim]] = [(("requests", "rows"), requests.rows)]
    found += [(("requests", "dims", name), dim) for name, dim in requests.dims.items()]
    for name, spec in requests.inputs.items():
        found += [(("requests", "inputs", name, "dims", i), dim) for i, dim in enumerate(spec.dims)]
    for where, value in found:
        if isinstance(value, tuple) and value[0] > value[1]:
            yield Problem(where, "expected [least, greatest]")
