"""The `fastserve profile` command. Exit codes: 0 done, 1 the model cannot be profiled, 2 the command line,
the configuration or the rows are wrong."""

from __future__ import annotations

from pathlib import Path

import click

_OUTPUT = click.Path(dir_okay=False, path_type=Path)


class _Sizes(click.ParamType):  # type: ignore[type-arg]
    """ "1,8,64"."""

    name = "sizes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and 0 < int(part) <= 1_000_000 for part in parts):
            self.fail(f'{value} is no list of batch sizes, such as "1,8,64"', param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.option("--signature", metavar="NAME", help="Default: serving_default, or the only one.")
@click.option(
    "--batch-sizes",
    type=_Sizes(),
    default="1,8,64",
    show_default=True,
    metavar="N,N,...",
    help="Rows at once.",
)
@click.option(
    "--rows",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    help="Run on these rows: .npz, or JSON as for `fastserve predict`.",
)
@click.option("--json", "json_file", type=_OUTPUT, metavar="FILE", help="Everything that was found, as JSON.")
@click.option(
    "--html", "html_file", type=_OUTPUT, metavar="FILE", help="A report: one file, no other needed."
)
@click.option(
    "--trace", "trace_file", type=_OUTPUT, metavar="FILE", help="A run of each size, for Perfetto or Chrome."
)
@click.option("--top", type=click.IntRange(1, 10_000), default=15, show_default=True, help="Rows of a table.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 3600),
    default=2.0,
    show_default=True,
    help="About how long each batch size runs.",
)
@click.option("--xla/--no-xla", default=True, show_default=True, help="Look at what XLA takes, too.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    help="Take [tensorflow] from this configuration.",
)
@click.option("--tag", "tags", multiple=True, default=("serve",), show_default=True, help="Graph tag(s).")
def profile(
    model: Path,
    signature: str | None,
    batch_sizes: tuple[int, ...],
    rows: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    trace_file: Path | None,
    top: int,
    seconds: float,
    xla: bool,
    config: Path | None,
    tags: tuple[str, ...],
) -> None:
    """Show where the time of a model goes, op by op, and what would make it cheaper.

    MODEL is a version's directory, or a model's base path: then its newest version. It is run in this
    process as the daemon runs it, with the same settings of TensorFlow; no daemon is asked.

    \b
    Shown are
      - what a row costs by batch size, and from which size on a larger batch does not pay;
      - time and memory of every op and op type, and whether they add up to a run of the daemon's;
      - ops that belong before the model (strings, lookups, parsing, one-hot), and what to use instead;
      - what XLA compiles, and which nodes keep its clusters apart.

    Inputs are --rows, else the requests in the version's warm-up file, else made up from the signature.
    Real ones are better: what a lookup or a string op costs depends on its values. Run it on a quiet machine
    like the one that will serve.

    \b
    Examples:
        fastserve profile /models/ranker
        fastserve profile /models/ranker/4 --batch-sizes 1,32,512 --rows rows.npz
        fastserve profile /models/ranker/4 --html profile.html --json profile.json --trace trace.json
        fastserve profile /models/ranker/4 --config config.toml --no-xla
    """
    from rich.console import Console

    from fastserve.config import TensorFlow
    from fastserve.config_read import read_config
    from fastserve.workshop.profiling.command import Outputs, Wanted, run

    settings = read_config(config).tensorflow if config is not None else TensorFlow()
    wanted = Wanted(model, tags, signature, batch_sizes, rows, seconds, xla, settings)
    run(wanted, Outputs(json_file, html_file, trace_file, top), Console(highlight=False))
