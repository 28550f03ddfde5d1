"""The `fastserve bench` commands: run, load, replay, switch, compare, report.

Only arguments and exit codes are here; each command imports what it needs when it runs. Exit codes: 0 done,
1 it did not work or, with --fail-on-regression, something got slower, 2 the command line or a workload is
wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def bench() -> None:
    """Measure servers with TensorFlow Serving's API: rates and latencies, one against the other.

    \b
    Two servers that the command starts itself, in turn, with a report:
        fastserve bench run bench/workloads/dcn_1row.toml --start fastserve --start grpc-aio \\
            --out dcn.json --html dcn.html

    \b
    Servers that are there (FastServe, TensorFlow Serving, any other with the same API):
        fastserve bench run WORKLOAD.toml --target ours=10.0.0.5:8500 --target theirs=10.0.0.6:8500

    \b
    One server, without a file:
        fastserve bench load 127.0.0.1:8500 ranker --saved-model /models/ranker --rate 2000
        fastserve bench load 127.0.0.1:8500 ranker --saved-model /models/ranker --slo p99=10ms

    \b
    Whether anybody notices when a version takes another's place:
        fastserve bench switch --model small --xla off --plot switch.png

    \b
    Whether a change made a difference beyond the noise:
        fastserve bench compare before.json after.json --fail-on-regression
    """


def _targets(command: F) -> F:
    """--target and --start, as `run` and `replay` have them."""
    command = click.option(
        "--start",
        "starts",
        multiple=True,
        metavar="[NAME=]KIND[:KEY=VALUE,...]",
        help="Start a server: fastserve (keys of config.toml), grpc-aio or flask (their options).",
    )(command)
    return click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="NAME=ADDRESS",
        help="A server that is there: HOST:PORT or unix:PATH for gRPC, http://HOST:PORT for REST.",
    )(command)


def _outputs(command: F) -> F:
    command = click.option("--html", "page", type=_FILE, metavar="F.html", help="Write a report.")(command)
    return click.option("--out", type=_FILE, metavar="F.json", help="Write what was found.")(command)


@bench.command()
@click.argument("workloads", nargs=-1, required=True, type=_FILE, metavar="WORKLOAD.toml...")
@_targets
@_outputs
@click.option("--rounds", type=click.IntRange(1, 1000), help="Instead of the workload's.")
@click.option("--window", type=click.FloatRange(0.1, 3600), metavar="S", help="Instead of [load] window_s.")
@click.option("--quick", is_flag=True, help="Windows of 1 s, 2 rounds: rough figures.")
@click.option("--no-verify", is_flag=True, help="Measure targets that answer differently, too.")
def run(
    workloads: tuple[Path, ...],
    targets: tuple[str, ...],
    starts: tuple[str, ...],
    out: Path | None,
    page: Path | None,
    rounds: int | None,
    window: float | None,
    quick: bool,
    no_verify: bool,
) -> None:
    """Measure every target under every load of each WORKLOAD, in turn, round by round.

    First all targets get the same requests and must answer alike. In each round every target is measured at
    every point, in an order that turns, so that a drift of the machine hits all alike; only one is busy at a
    time. Ctrl-C ends the run and keeps what was measured. What was started is ended in any case.

    \b
    Examples:
        fastserve bench run overhead.toml --start fastserve --start grpc-aio --quick
        fastserve bench run dcn.toml --target old=10.0.0.5:8500 --target new=10.0.0.6:8500 --out ab.json
        fastserve bench run dcn.toml --start fastserve --start spin=fastserve:executor.spin_us=300
        fastserve bench run dcn.toml --start fastserve --start aio=grpc-aio:threads=8 --start flask
    """
    from fastserve.bench.command import QUICK, Options, adjusted, execute
    from fastserve.bench.target import parse_start, parse_target
    from fastserve.bench.workload import read_workload

    changes: dict[str, Any] = dict(QUICK) if quick else {}
    changes |= {"rounds": rounds} if rounds else {}
    changes |= {"window_s": window} if window else {}
    options = Options(
        [parse_target(text) for text in targets],
        [parse_start(text) for text in starts],
        out,
        page,
        verify=not no_verify,
    )
    sys.exit(execute([adjusted(read_workload(path), **changes) for path in workloads], options))


@bench.command()
@click.argument("address", metavar="ADDRESS")
@click.argument("model", metavar="MODEL")
@click.option("--saved-model", type=click.Path(exists=True), metavar="DIR", help="Where the signature is.")
@click.option("--signature", default="serving_default", show_default=True)
@click.option("--requests", type=_FILE, metavar="FILE", help="Send these (.npz, .jsonl), not random ones.")
@click.option("--rows", default="1", show_default=True, metavar="N|LOW:HIGH", help="Rows of each request.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Open loop: requests per second.")
@click.option("--in-flight", type=click.IntRange(1), help="Closed loop: so many on each connection.")
@click.option("--slo", metavar="p99=10ms", help="Find the highest rate that keeps this.")
@click.option("--connections", type=click.IntRange(1, 10_000), default=4, show_default=True)
@click.option("--duration", type=click.FloatRange(0.1, 86400), default=10.0, show_default=True, metavar="S")
@click.option("--warmup", type=click.FloatRange(0, 3600), default=1.0, show_default=True, metavar="S")
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True)
@_outputs
def load(
    address: str,
    model: str,
    saved_model: str | None,
    signature: str,
    requests: Path | None,
    rows: str,
    rate: float | None,
    in_flight: int | None,
    slo: str | None,
    connections: int,
    duration: float,
    warmup: float,
    rounds: int,
    out: Path | None,
    page: Path | None,
) -> None:
    """Load one server that serves MODEL at ADDRESS, and say what it did. No workload file is needed.

    Requests are random and fit the signature, which is read from --saved-model or asked of the server.

    \b
    Examples:
        fastserve bench load 127.0.0.1:8500 ranker --rate 2000
        fastserve bench load unix:/run/fastserve.sock ranker --in-flight 16 --rows 100:700
        fastserve bench load http://127.0.0.1:8501 ranker --saved-model /models/ranker --slo p99=20ms
    """
    from fastserve.bench.adhoc import adhoc_workload
    from fastserve.bench.command import Options, execute
    from fastserve.bench.target import parse_target

    if sum(option is not None for option in (rate, in_flight, slo)) != 1:
        raise click.UsageError("give one of --rate, --in-flight and --slo")
    workload = adhoc_workload(
        model=model,
        saved_model=saved_model,
        signature=signature,
        requests=requests,
        rows=rows,
        rate=rate,
        in_flight=in_flight,
        slo=slo,
        connections=connections,
        duration_s=duration,
        warmup_s=warmup,
        rounds=rounds,
    )
    sys.exit(execute([workload], Options([parse_target(f"server={address}")], [], out, page)))


@bench.command()
@click.argument("log", type=_FILE, metavar="LOG")
@click.option("--model", required=True, help="The name it is served under.")
@click.option("--saved-model", type=click.Path(exists=True), metavar="DIR", help="The model, for --start.")
@click.option("--signature", default="serving_default", show_default=True)
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--connections", type=click.IntRange(1, 10_000), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True)
@_targets
@_outputs
def replay(
    log: Path,
    model: str,
    saved_model: str | None,
    signature: str,
    speed: float,
    connections: int,
    rounds: int,
    targets: tuple[str, ...],
    starts: tuple[str, ...],
    out: Path | None,
    page: Path | None,
) -> None:
    """Send the requests in LOG with the timing that they were recorded with.

    LOG is .jsonl, a line for each request, {"at_us": 1500, "inputs": {"x": [[1.0, 2.0]]}}, or .npz: the rows
    of all requests, one array for each input, with __rows__ (rows of each request) and __at_us__ (when it
    was sent, in microseconds).

    \b
    Examples:
        fastserve bench replay monday.jsonl --model ranker --target ours=127.0.0.1:8500
        fastserve bench replay monday.npz --model ranker --speed 2 --saved-model /models/ranker \\
            --start fastserve --start grpc-aio
    """
    from fastserve.bench.adhoc import replay_workload
    from fastserve.bench.command import Options, execute
    from fastserve.bench.target import parse_start, parse_target

    workload = replay_workload(
        log=log,
        model=model,
        saved_model=saved_model,
        signature=signature,
        speed=speed,
        connections=connections,
        rounds=rounds,
    )
    given = Options([parse_target(text) for text in targets], [parse_start(t) for t in starts], out, page)
    sys.exit(execute([workload], given))


@bench.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="small|large|PATH",
    help="A ranker of 33 MB, of 300 MB, or one's own: a directory of versions.  [default: small and large]",
)
@click.option(
    "--beside", metavar="small|large|PATH", help="The model that is served beside it.  [default: small]"
)
@click.option(
    "--xla",
    "modes",
    multiple=True,
    type=click.Choice(["off", "cluster", "full"]),
    help="[default: off, full]",
)
@click.option("--switches", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option(
    "--share", type=click.FloatRange(0.01, 2), default=0.5, show_default=True, help="Of saturation, as load."
)
@click.option(
    "--within",
    type=click.FloatRange(0.1, 10_000),
    default=10.0,
    show_default=True,
    metavar="MS",
    help="Saturation is the rate up to which 99 % of the answers are there in so many ms.",
)
@click.option(
    "--rates",
    nargs=2,
    type=click.FloatRange(0, min_open=True),
    metavar="R1 R2",
    help="Requests per second to the model and to the one beside it, instead of --share.",
)
@click.option("--rows", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Of each request.")
@click.option(
    "--lead",
    type=click.FloatRange(1, 3600),
    default=15.0,
    show_default=True,
    metavar="S",
    help="Steady load before the first switch,",
)
@click.option(
    "--gap",
    type=click.FloatRange(0, 3600),
    metavar="S",
    help="and between a switch's window and the next.  [default: as long as the window]",
)
@click.option(
    "--ablate",
    "ablations",
    multiple=True,
    metavar="all|NAME|TABLE.KEY=VALUE",
    help="Then the same with a countermeasure off, or with another configuration, each in turn.",
)
@click.option(
    "--ablate-with",
    nargs=2,
    metavar="MODEL XLA",
    help="What the ablations are made with.  [default: the last of the runs]",
)
@click.option("--ablate-switches", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--only-ablate", is_flag=True, help="Leave out the runs with everything on.")
@click.option(
    "--serve",
    "serve_options",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Of config.toml, for all runs: loading.poll_s=0.2, model.batching={max_batch_size = 64}.",
)
@click.option(
    "--patience",
    type=click.FloatRange(1, 3600),
    default=180.0,
    show_default=True,
    metavar="S",
    help="For one switch.",
)
@click.option("--out", type=_FILE, metavar="F.json", help="Write what was found.")
@click.option("--plot", "picture", type=_FILE, metavar="F.png", help="Draw latency over time.")
def switch(
    models: tuple[str, ...],
    beside: str | None,
    modes: tuple[str, ...],
    switches: int,
    share: float,
    within: float,
    rates: tuple[float, float] | None,
    rows: int,
    lead: float,
    gap: float | None,
    ablations: tuple[str, ...],
    ablate_with: tuple[str, str] | None,
    ablate_switches: int,
    only_ablate: bool,
    serve_options: tuple[str, ...],
    patience: float,
    out: Path | None,
    picture: Path | None,
) -> None:
    """Replace a model's version under load, again and again, and say what requests noticed of it.

    A FastServe is started with two models, both under open-loop load. Versions of one appear in its
    directory; each must take the place of the one before. A switch's window runs from when the directory
    appears until 5 s after the old version is gone. The bars, for either model:

    \b
        no request fails, is lost, or gets an answer that is not of the version that it names;
        p99.9 in a window: the median over all is at most 1.5 times the steady p99.9;
        the maximum in 9 of 10 windows is at most the steady maximum plus 5 ms.

    Every answer's version and values are checked. Exit code 1 when a run misses a bar. Ctrl-C keeps what
    there is.

    \b
    Examples:
        fastserve bench switch --out switch.json --plot switch.png
        fastserve bench switch --model small --xla full --switches 20
        fastserve bench switch --model small --xla off --ablate all --ablate server.allocator=jemalloc
        fastserve bench switch --model /models/ranker --rates 500 500
    """
    from fastserve.bench.switch_command import SwitchOptions, execute_switches
    from fastserve.bench.switch_plan import (
        SHIPPED,
        Load,
        Timing,
        Variant,
        parse_ablations,
        parse_beside,
        parse_model,
        parse_options,
    )

    sources = [parse_model(text) for text in models or SHIPPED]
    options = parse_options(serve_options)
    ways = modes or ("off", "full")
    timing = Timing(switches=switches, lead_s=lead, gap_s=gap, patience_s=patience)
    ablated = (parse_model(ablate_with[0]), ablate_with[1]) if ablate_with else (sources[-1], ways[-1])
    sys.exit(
        execute_switches(
            SwitchOptions(
                models=sources,
                beside=parse_beside(beside, sources[0]),
                xla=ways,
                base=Variant("", (), options),
                variants=parse_ablations(ablations, options),
                ablation=ablated,
                timing=timing,
                ablation_timing=timing.shorter(ablate_switches),
                load=Load(share=share, within_ms=within, rates=rates, rows=rows),
                out=out,
                picture=picture,
                skip_runs=only_ablate,
            )
        )
    )


@bench.command()
@click.argument("before", type=_FILE, metavar="A.json")
@click.argument("after", type=_FILE, metavar="B.json")
@click.option("--fail-on-regression", is_flag=True, help="Exit with 1 when B is slower in something.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="A change smaller than this is none, however certain it is.",
)
@click.option(
    "--confidence", type=click.FloatRange(0.5, 0.9999), default=0.99, show_default=True, help="Of intervals."
)
def compare(before: Path, after: Path, fail_on_regression: bool, threshold: float, confidence: float) -> None:
    """Say what changed from A to B beyond the noise: rates and latencies of what both have.

    Rounds are resampled (a bootstrap), and a change counts when the ratio's interval leaves out 1. With one
    round there is no telling noise from change, with two or three only large changes show: measure with five
    or more. --fail-on-regression looks at rate, p50, p90 and p99.

    \b
    Example:
        fastserve bench compare main.json branch.json --fail-on-regression
    """
    from fastserve.bench.command import console
    from fastserve.bench.compare import compare_results, regressions
    from fastserve.bench.report_table import show_changes
    from fastserve.bench.result import ResultError, read_result

    found = compare_results(read_result(before), read_result(after), confidence, threshold)
    if not found:
        raise ResultError(f"{before} and {after} have no workload, target and load in common")
    screen = console()
    show_changes(screen, found, before, after, confidence)
    worse = regressions(found)
    screen.print(
        f"\n{len(worse)} got slower beyond the noise" if worse else "\nnothing got slower beyond noise"
    )
    sys.exit(1 if worse and fail_on_regression else 0)


@bench.command()
@click.argument("results", type=_FILE, metavar="F.json")
@click.option("--html", "page", type=_FILE, metavar="F.html", help="Write a page instead of a table.")
def report(results: Path, page: Path | None) -> None:
    """Show what a run found, as a table or as one self-contained page.

    \b
    Example:
        fastserve bench report dcn.json --html dcn.html
    """
    from fastserve.bench.result import read_result

    result = read_result(results)
    if page is None:
        from fastserve.bench.command import console
        from fastserve.bench.report_table import show

        show(console(), result)
        return
    from fastserve.bench.report_html import html

    page.write_text(html(result), encoding="utf-8")
    click.echo(f"wrote {page}")
