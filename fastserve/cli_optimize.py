"""The `fastserve optimize` command. Exit codes: 0 a faster version was written, 1 none was, 2 as ever."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from fastserve.errors import FastServeError
from fastserve.whole_file import write_whole
from fastserve.workshop.version_directory import VERSION_MAX

_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--list-passes", is_flag=True, help="Say which passes there are, in their order, and end.")
@click.option("--only", multiple=True, metavar="PASS", help="Try these passes only. May be repeated.")
@click.option("--without", multiple=True, metavar="PASS", help="Do not try this pass. May be repeated.")
@click.option(
    "--rows", type=_FILE, metavar="FILE", help="Rows to run: .npz, or JSON as for `fastserve predict`."
)
@click.option(
    "--requests",
    multiple=True,
    type=_FILE,
    metavar="FILE",
    help="Recorded requests to run: a request log or a warm-up file. May be repeated.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, 1_000_000),
    default=(100, 400),
    show_default=True,
    metavar="ROWS",
    help="Rows of a run that is timed: of a request, and of several put together. May be repeated.",
)
@click.option(
    "--user-input",
    "user_inputs",
    multiple=True,
    metavar="NAME",
    help="An input that is the same in all rows of a request, with a row for each. May be repeated.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-5,
    show_default=True,
    help="How far answers may be off, relative to 1 + their size.",
)
@click.option(
    "--half",
    is_flag=True,
    help="Try bfloat16 and float16, too: judged on the rows that are run, others may be further off.",
)
@click.option(
    "--freeze-below",
    "freeze_kib",
    type=click.IntRange(0, 1 << 20),
    default=1024,
    show_default=True,
    metavar="KiB",
    help="Variables up to this size become constants.",
)
@click.option(
    "--signature", "signatures", multiple=True, metavar="NAME", help="Only these. Default: every signature."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=1.5,
    show_default=True,
    help="How long each pass is timed, for each batch size.",
)
@click.option(
    "--version",
    type=click.IntRange(0, VERSION_MAX),
    metavar="N",
    help="Of the result. Default: the number after the highest in OUT.",
)
@click.option(
    "--config",
    type=_FILE,
    metavar="FILE",
    help="Take [tensorflow] from this configuration.",
)
@click.option("--tag", "tags", multiple=True, default=("serve",), show_default=True, help="Graph tag(s).")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write the report there, too; - prints it instead of the table.",
)
def optimize(
    model: Path | None,
    out: Path | None,
    list_passes: bool,
    freeze_kib: int,
    config: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Rewrite the SavedModel in MODEL to be faster, and write it below OUT as a new version.

    MODEL is a version's directory, or a base path: then its newest version is taken. OUT is a base path.
    Names, dtypes and shapes of signatures stay, and so do tables, assets and warm-up requests: any TensorFlow
    Serving server loads the result. Large variables stay in its checkpoint.

    Each pass is tried on what the passes before it have made, run by the daemon's own runtime in processes
    beside, in turn with what it started from, and kept only if the answers are within the tolerance of the
    original's and it is faster here, at one of the batch sizes and slower at none. Passes that later ones
    build on stay if they are no slower. If in the end nothing is gained, no version is written. Run it on a
    quiet machine like the one that will serve.

    Answers are compared on --rows, --requests, or the version's own warm-up requests; without any, on made-up
    values, which prove little.

    \b
    Examples:
        fastserve optimize /models/ranker /models/ranker-fast --rows rows.npz
        fastserve optimize /models/ranker/7 out --requests /var/log/ranker/requests.0 --user-input user_id
        fastserve optimize /models/ranker out --rows rows.npz --half --json report.json
        fastserve optimize --list-passes
    """
    from fastserve.workshop.passes.registry import PASSES

    if list_passes:
        width = max(len(each.name) for each in PASSES)
        for each in PASSES:
            click.echo(f"{each.name:{width}}  {each.about}")
        return
    if model is None or out is None:
        raise click.UsageError("expected MODEL and OUT")
    if importlib.util.find_spec("tensorflow") is None:
        raise FastServeError("fastserve optimize needs TensorFlow: pip install 'fastserve[workshop]'")
    from rich.console import Console

    from fastserve.config import TensorFlow
    from fastserve.config_read import read_config
    from fastserve.interrupt import termination_as_interrupt
    from fastserve.terminal_bar import Steps
    from fastserve.workshop.optimizing.command import NothingGained, Task, run, steps_of
    from fastserve.workshop.optimizing.report import as_json, show

    settings = read_config(config).tensorflow if config is not None else TensorFlow()
    task = Task(model, out, freeze_bytes=freeze_kib << 10, settings=settings, **options)
    console = Console(stderr=True)
    code = 0
    with termination_as_interrupt():
        try:
            with Steps(console, steps_of(task)) as steps:
                outcome = run(task, steps.step)
        except NothingGained as error:
            outcome, code, why = error.outcome, 1, str(error)
        text = as_json(outcome)
        if json_file is not None and str(json_file) == "-":
            click.echo(text, nl=False)
        else:
            show(outcome, Console())
            if json_file is not None:
                write_whole(json_file, lambda file: file.write(text.encode()))
    if code:
        raise FastServeError(f"{model}: nothing was gained, and no version is written: {why}")
