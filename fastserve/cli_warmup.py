"""The `fastserve warmup` commands: record, make, show. They write and read warm-up files, which a version
brings along.

Only arguments are here; cli_warmup_record, cli_warmup_make and cli_warmup_show do the work. Exit codes: 0
done, 1 it did not work, 2 the command line or the file given is wrong.
"""

from __future__ import annotations

from pathlib import Path

import click

from fastserve.cli_admin import daemon_option

_FILE = click.Path(dir_okay=False, path_type=Path)
# The file's name within a version's directory.
REQUESTS_FILE = "assets.extra/tf_serving_warmup_requests"


@click.group()
def warmup() -> None:
    """Make, record and look into warm-up requests, which a version runs before it is served.

    A version brings them along in assets.extra/tf_serving_warmup_requests: a TFRecord file of up to 1000
    PredictionLogs, as TensorFlow Serving has it, and as request logs ([models.logging]) are written. They run
    when the version is tried and again when it is loaded; one that fails, fails the version.

    \b
    Real ones, from a daemon that serves the version before:
        fastserve warmup record ranker -n 200 -o /models/ranker/4/assets.extra/tf_serving_warmup_requests

    \b
    Made up from the signatures, or from rows of your own:
        fastserve warmup make /models/ranker/4
        fastserve warmup make /models/ranker/4 --rows rows.npz --batch-size 64

    \b
    What a version has:
        fastserve warmup show /models/ranker/4
    """


@warmup.command()
@click.argument("model")
@click.option(
    "-n",
    "--records",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="How many. A version takes 1000 at most.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="The file to write.")
@click.option(
    "--sampling-rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="Of the requests that come, take this share: spreads the records over a longer time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which what has come by then is written.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@daemon_option
def record(
    model: str,
    records: int,
    output: Path,
    sampling_rate: float,
    timeout: float,
    force: bool,
    config: str,
    socket: str | None,
) -> None:
    """Record the next requests that a running daemon answers for MODEL.

    Asks the daemon that runs with --config, over its admin socket, to keep the next requests of MODEL that it
    answers without an error, whatever [models.logging] says, and writes them to one file. Callers notice
    nothing. Ctrl-C writes what has come so far. The directory of the file must be there; assets.extra of a
    version's directory is made.

    A daemon loads a version anew when files in its directory change: record for the next version, before it
    is renamed into place.

    \b
    Examples:
        fastserve warmup record ranker -n 200 -o requests
        fastserve warmup record ranker -n 1000 --sampling-rate 0.01 --timeout 3600 -o requests
        fastserve warmup record ranker -o /staging/4/assets.extra/tf_serving_warmup_requests
    """
    from fastserve.cli_admin_client import AdminClient
    from fastserve.cli_warmup_record import Recording, run

    recording = Recording(model, records, sampling_rate, timeout)
    click.echo(run(AdminClient.of(config, socket), recording, output, force=force))


@warmup.command()
@click.argument(
    "directory", type=click.Path(file_okay=False, exists=True, path_type=Path), metavar="VERSION_DIR"
)
@click.option(
    "--signature", "signatures", multiple=True, metavar="NAME", help="Only these. Default: every signature."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, 1_000_000),
    metavar="ROWS",
    help="Rows of a request; may be repeated.  [default: 1 and 32]",
)
@click.option(
    "--rows",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    help="Requests of these rows: .npz, or JSON as for `fastserve predict`.",
)
@click.option(
    "--inner",
    type=click.IntRange(0, 1_000_000),
    default=1,
    show_default=True,
    help="Size of unknown dimensions after the first, of made-up inputs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of made-up values.")
@click.option("--tag", "tags", multiple=True, default=("serve",), show_default=True, help="Graph tag(s).")
@click.option("-o", "--output", type=_FILE, help=f"Default: {REQUESTS_FILE} in VERSION_DIR.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def make(
    directory: Path,
    signatures: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    rows: Path | None,
    inner: int,
    seed: int,
    tags: tuple[str, ...],
    output: Path | None,
    force: bool,
) -> None:
    """Write a warm-up file for the SavedModel in VERSION_DIR.

    Without --rows, one request of made-up values for every signature and batch size: numbers around 0, small
    ids, short strings. A model may refuse these (parsed examples, checked ranges): then give it --rows of its
    own. With them, the rows are cut into requests of the batch sizes in turn, for one signature (default:
    serving_default, or the one that the JSON file names).

    Nothing runs here and TensorFlow is not needed; `fastserve serve` runs the requests when it tries the
    version.

    \b
    Examples:
        fastserve warmup make /models/ranker/4
        fastserve warmup make /models/ranker/4 --batch-size 1 --batch-size 512 --force
        fastserve warmup make /models/ranker/4 --rows rows.npz --batch-size 64
    """
    from fastserve.cli_warmup_make import Made, make_file

    wanted = Made(directory, tags, signatures, batch_sizes or (1, 32), inner, seed)
    click.echo(make_file(wanted, rows, output or directory / REQUESTS_FILE, force=force))


@warmup.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="FILE|VERSION_DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each record.")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="Only the first N records.")
def show(path: Path, as_json: bool, limit: int | None) -> None:
    """Show the requests in a warm-up file, or in a request log.

    One row for each record: its kind, model, version and signature, and the inputs' dtypes and shapes. Reads
    to the end and says which record is damaged (exit code 1): a bad checksum, a cut-off end, bytes that are
    no PredictionLog.

    \b
    Examples:
        fastserve warmup show /models/ranker/4
        fastserve warmup show logs/ranker-20261129T031502.123456Z-4242.tfrecord --limit 10
        fastserve warmup show requests --json | jq -r '.inputs | keys[]' | sort | uniq -c
    """
    from fastserve.cli_warmup_show import show_file

    show_file(path / REQUESTS_FILE if path.is_dir() else path, as_json=as_json, limit=limit)
