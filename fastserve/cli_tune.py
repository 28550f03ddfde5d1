"""The `fastserve tune` command. Exit codes: 0 done, whether or not anything was better; 1 and 2 as ever."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import click

from fastserve.errors import FastServeError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """ "10m", "90s", "1h"."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f'{value} is no duration, such as "10m" or "90s"', param, ctx)
        return float(match[1]) * _SECONDS[match[2] or "s"]


@click.command()
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--slo", metavar="p99=10ms", help="Find the highest rate that keeps this.")
@click.option("--minimise", type=click.Choice(["p99"]), help="Find the lowest p99 at --rate instead.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests per second for --minimise.")
@click.option("--model", default="", help="Which, when CONFIG serves several.")
@click.option("--rows", default="1", show_default=True, metavar="N|LOW:HIGH", help="Rows of each request.")
@click.option(
    "--workload",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="W.toml",
    help="Take the requests of this workload, not random ones that fit the signature.",
)
@click.option("--budget", type=_Duration(), default="10m", show_default=True, help="About how long it takes.")
@click.option("--connections", type=click.IntRange(1, 10_000), default=8, show_default=True)
@click.option("--dry-run", is_flag=True, help="Search and prove, but leave CONFIG alone.")
def tune(
    config: Path,
    slo: str | None,
    minimise: str | None,
    rate: float | None,
    model: str,
    rows: str,
    workload: Path | None,
    budget: float,
    connections: int,
    dry_run: bool,
) -> None:
    """Find better settings for CONFIG on this machine, and write them into it if they prove to be better.

    Tries executor threads, spinning, I/O threads, TensorFlow's threads, XLA, the largest batch and the batch
    sizes, one at a time, each in a daemon of its own on a free port. In the end the configuration as it was
    and the best found are measured again: in turn, over several rounds, with requests that the search did not
    see. Only if that shows a difference beyond the noise is CONFIG changed (comments stay); what was found is
    written beside it, to CONFIG.tune.json. Run it on a quiet machine like the one that will serve.

    \b
    Examples:
        fastserve tune config.toml --slo p99=10ms
        fastserve tune config.toml --slo p99=10ms --workload bench/workloads/dcn_1row.toml --budget 20m
        fastserve tune config.toml --minimise p99 --rate 2000 --rows 100:700 --dry-run
    """
    if importlib.util.find_spec("tomlkit") is None:
        raise FastServeError("fastserve tune needs tomlkit: pip install 'fastserve[bench]'")
    from fastserve._native.load import run as generate
    from fastserve.bench.tune_run import run, write, write_json
    from fastserve.bench.tune_show import Screen, goal_text, show, task_of
    from fastserve.interrupt import termination_as_interrupt

    task = task_of(
        config=config,
        slo=slo,
        minimise=minimise,
        rate=rate,
        model=model,
        rows=rows,
        workload=workload,
        budget_s=budget,
        connections=connections,
    )
    text = goal_text(task)
    with termination_as_interrupt(), Screen(task) as screen:
        outcome, read, tuned = run(task, generate, screen)
    beside = config.with_name(config.name + ".tune.json")
    write_json(beside, task, read, tuned, outcome, text)
    written = outcome.proved and not dry_run
    if written:
        write(task, tuned, outcome, text)
    show(task, outcome, written, beside)
    sys.exit(0)
