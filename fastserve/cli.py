"""The `fastserve` command: serve, check, inspect, predict, bench, export, ..., and words to a running daemon.

Only arguments and exit codes are here. Each command imports what it needs when it runs, so that
`fastserve --help` is there at once. Exit codes: 0 done, 1 it did not work, 2 the command line or the
configuration is wrong.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from fastserve.cli_admin import labels, load, reload, status, unload
from fastserve.cli_bench import bench
from fastserve.cli_export import export
from fastserve.cli_health import health
from fastserve.cli_optimize import optimize
from fastserve.cli_profile import profile
from fastserve.cli_tfserving import import_, tfserving
from fastserve.cli_top import top
from fastserve.cli_trace import trace
from fastserve.cli_tune import tune
from fastserve.cli_warmup import warmup
from fastserve.errors import FastServeError
from fastserve.version import __version__


class _Group(click.Group):
    """Prints errors that are meant for the user without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FastServeError as error:
            for line in str(error).splitlines():
                click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="fastserve")
def main() -> None:
    """Serves TensorFlow SavedModels over TensorFlow Serving's gRPC API.

    \b
    A first configuration, config.toml:
        [server]
        listen = ["127.0.0.1:8500"]

    \b
        [[models]]
        name = "ranker"
        base_path = "/models/ranker"     # holds 1/, 2/, ... the newest is served

    \b
    Then:
        fastserve check config.toml      what would be served, or what is wrong
        fastserve serve config.toml      serve it, until SIGTERM or Ctrl-C
    """


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--strict", is_flag=True, help="Exit with 1 when any model cannot be served.")
@click.option(
    "--listen",
    metavar="ADDRESS",
    multiple=True,
    help="Listen here instead of [server] listen. May be repeated.",
)
@click.option(
    "--ready-file",
    metavar="PATH",
    type=click.Path(dir_okay=False),
    help="Write this file (JSON: pid, addresses, models) once ready; removed at the end.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def serve(
    config: str,
    strict: bool,
    listen: tuple[str, ...],
    ready_file: str | None,
    log_format: str,
    log_level: Any,
) -> None:
    """Serve the models that CONFIG names.

    Tries the versions that are to be served, each in a child process, loads them, and prints one line
    when everything is ready. A model that fails is reported and the others are served; when none can
    be served, or any with --strict, the exit code is 1.

    From then on new versions take the place of old ones as they appear, and changes of [[models]] in
    CONFIG take effect: when the file changes, on SIGHUP, and by `fastserve reload`.

    SIGTERM and Ctrl-C drain: new calls are still taken for lame_duck_s, calls in flight are answered
    for up to drain_timeout_s, then the exit code is 0. A second signal ends at once.

    \b
    Examples:
        fastserve serve config.toml
        fastserve serve config.toml --listen 127.0.0.1:0 --ready-file /run/fastserve.json
        fastserve serve config.toml --log-format json 2>> fastserve.log
    """
    from fastserve.config import Config
    from fastserve.config_read import read_config
    from fastserve.control.daemon import ServeOptions
    from fastserve.control.daemon import serve as run
    from fastserve.log import Log

    def read() -> Config:
        return read_config(config, listen=listen)

    options = ServeOptions(
        strict=strict, ready_file=ready_file, announce=log_format == "text", file=config, read=read
    )
    log = Log(json_lines=log_format == "json", level=log_level)
    try:
        code = run(read(), options, log)
    except FastServeError as error:
        if log_format == "text":
            raise
        log.error("failed", error=error)
        code = error.exit_code
    sys.exit(code)


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
def check(config: str) -> None:
    """Say what would be served with CONFIG, or what is wrong with it (exit code 2).

    Nothing is loaded. Every problem is listed with its file, line, table, key and value, and what
    would be right.

    \b
    Example:
        fastserve check config.toml && systemctl restart fastserve
    """
    from fastserve.cli_check import show
    from fastserve.config_read import read_config

    sys.exit(show(read_config(config)))


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, exists=True), metavar="DIR")
@click.option("--xla", is_flag=True, help="Also try to compile the signatures with XLA, in a child process.")
@click.option("--tag", "tags", multiple=True, default=("serve",), show_default=True, help="Graph tag(s).")
def inspect(directory: str, xla: bool, tags: tuple[str, ...]) -> None:
    """Show the signatures of the SavedModel in DIR: inputs, outputs, dtypes, shapes, method names.

    DIR is a version's directory, or a model's base path: then its newest version is shown. TensorFlow
    is not needed, except with --xla.

    \b
    Examples:
        fastserve inspect /models/ranker/3
        fastserve inspect /models/ranker --xla
    """
    from fastserve.cli_inspect import show

    sys.exit(show(directory, tags, xla=xla))


@main.command()
@click.argument("model")
@click.option("--input", "source", required=True, metavar="FILE", help="JSON or .npz; - is standard input.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    default=("127.0.0.1:8500",),
    show_default=True,
    help="HOST:PORT or unix:PATH. May be repeated.",
)
@click.option(
    "--method", type=click.Choice(["predict", "classify", "regress"]), default="predict", show_default=True
)
@click.option("--signature", metavar="NAME", help="Default: serving_default.")
@click.option("--version", "version_number", type=click.IntRange(0), help="Default: the newest.")
@click.option("--label", metavar="NAME", help="A version label, instead of --version.")
@click.option(
    "--only", "outputs", metavar="NAME", multiple=True, help="An output that is wanted. Default: all."
)
@click.option("--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write .npz, print nothing.")
@click.option("--dtype", "dtypes", metavar="NAME=DTYPE", multiple=True, help="Of an input in JSON.")
@click.option("--timeout", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds.")
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="Metadata of the call.")
@click.option("--compression", type=click.Choice(["gzip", "deflate"]), help="Of the request.")
@click.option("--token-file", metavar="FILE", help="The call's bearer token: the first in this file.")
@click.option("--tls", is_flag=True, help="TLS, trusting the system's authorities.")
@click.option("--tls-ca", metavar="FILE", help="TLS, trusting these authorities (PEM).")
@click.option("--tls-cert", metavar="FILE", help="Our certificate, with --tls-key.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--tls-server-name", metavar="HOST", help="What the server's certificate must be for.")
def predict(model: str, **options: Any) -> None:
    """Call MODEL on a server and print its outputs as JSON.

    JSON inputs are as in TensorFlow Serving's REST API: {"inputs": {"x": [[1, 2], [3, 4]]}} or
    {"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}; their dtypes are the signature's where the server
    tells them, unless --dtype says otherwise; where it does not, float32 and int64. Classify and
    Regress take {"examples": [{"age": 31, "city": "Oslo"}]}, or columns.

    \b
    Examples:
        fastserve predict ranker --input rows.json
        fastserve predict ranker --input batch.npz --output scores.npz --address ranker:8500
        echo '{"inputs": {"x": [1.5]}}' | fastserve predict half_plus_two --input -
    """
    from fastserve.cli_predict import ask_of, run

    text = run(ask_of(model, options))
    if text:
        click.echo(text)


@main.command()
def version() -> None:
    """Show the versions of FastServe and of what it runs on."""
    from fastserve.cli_version import versions

    rows = versions()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:{width}}  {text}")


for command in (
    tfserving,
    import_,
    bench,
    tune,
    status,
    health,
    top,
    reload,
    load,
    unload,
    labels,
    warmup,
    trace,
    export,
    profile,
    optimize,
):
    main.add_command(command)
