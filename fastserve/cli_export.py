"""The `fastserve export` command. Exit codes: 0 done, 1 it did not work, 2 the command line is wrong."""

from __future__ import annotations

from pathlib import Path

import click

from fastserve.workshop.version_directory import VERSION_MAX

_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.argument("source")
@click.argument("base_path", type=click.Path(file_okay=False, path_type=Path), metavar="OUT")
@click.option(
    "--version",
    type=click.IntRange(0, VERSION_MAX),
    metavar="N",
    help="Its number.  [default: the one after the highest]",
)
@click.option(
    "--signature",
    "signatures",
    multiple=True,
    metavar="[OLD=]NEW",
    help="Only this signature, under this name. May be repeated.  [default: all; of a Keras model "
    "serving_default]",
)
@click.option("--input", "inputs", multiple=True, metavar="OLD=NEW", help="Another name for an input.")
@click.option("--output", "outputs", multiple=True, metavar="OLD=NEW", help="Another name for an output.")
@click.option(
    "--samples",
    type=_FILE,
    metavar="FILE",
    help="Rows to compare and to warm up with: .npz, or JSON as for `fastserve predict`, by the new names.  "
    "[default: made up]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, 100_000),
    metavar="ROWS",
    help="Rows of a request that is compared, and of a warm-up request; may be repeated.  "
    "[default: 1, 3 and 32]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-5,
    show_default=True,
    help="How far numbers may lie apart, relative to themselves and to the output's largest; two roundings "
    "of their dtype are never too far.",
)
@click.option("--no-compare", is_flag=True, help="Run what was exported, but accept other predictions.")
@click.option("--no-warmup", is_flag=True, help="Write no warm-up requests.")
@click.option(
    "--keras",
    type=click.Choice(["2", "3"]),
    help="Read the file with this Keras, and let tf.keras be it.  [default: as the file says]",
)
@click.option(
    "--custom",
    multiple=True,
    metavar="MODULE[:NAME]",
    help="Import this module, or PATH.py, which registers custom layers; NAME is a dict of them, or one.",
)
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="NAME=DTYPE", help="Of an input of a subclassed Keras model."
)
@click.option("--trust-lambda", is_flag=True, help="Run the Python code that the file brings along.")
@click.option("--allow-fixed-batch", is_flag=True, help="Keep batch sizes that are fixed, as they are.")
@click.option(
    "--op-library", "op_libraries", multiple=True, type=_FILE, metavar="PATH.so", help="Custom ops it needs."
)
@click.option(
    "--tag", "tags", multiple=True, default=("serve",), show_default=True, help="Of a SavedModel's graph."
)
def export(
    source: str,
    base_path: Path,
    version: int | None,
    signatures: tuple[str, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    samples: Path | None,
    batch_sizes: tuple[int, ...],
    tolerance: float,
    no_compare: bool,
    no_warmup: bool,
    keras: str | None,
    custom: tuple[str, ...],
    dtypes: tuple[str, ...],
    trust_lambda: bool,
    allow_fixed_batch: bool,
    op_libraries: tuple[Path, ...],
    tags: tuple[str, ...],
) -> None:
    """Write SOURCE as the next version of the model in OUT, ready to be served.

    \b
    SOURCE is one of
        model.keras, model.h5    what Keras 3 or Keras 2 saved; Keras 2 files are read by tf_keras
        a directory              a SavedModel, to choose and rename its signatures
        module:function          a function, called without arguments, that returns a Keras model, a
        path/file.py:function    tf.Module with signatures, or a dict of tf.functions by signature;
                                 `pydoc fastserve.workshop.export_module` has the details

    OUT is a model's base path: it holds 1/, 2/, ... The new version is written beside them, run there as the
    daemon would run it, and compared with the source's own predictions at several batch sizes; only then does
    it get its number. Interrupted or refused, it leaves nothing that a server would load.

    It takes any number of rows, has the names that you ask for, and brings warm-up requests along. What could
    not be served is refused with the reason: layers that run Python, a batch size that is fixed, names that
    clash, tables that would not be filled.

    Needs TensorFlow and Keras: pip install 'fastserve[workshop]'.

    \b
    Examples:
        fastserve export ranker.keras /models/ranker
        fastserve export ranker.h5 /models/ranker --input input_1=dense --output dense_2=score
        fastserve export ranker.keras /models/ranker --custom my_layers --samples rows.npz
        fastserve export train.py:serving_module /models/ranker --version 20261129
        fastserve export /old/ranker/7 /models/ranker --signature predict=serving_default
    """
    from rich.console import Console

    from fastserve.cli_export_show import show
    from fastserve.interrupt import termination_as_interrupt
    from fastserve.terminal_bar import Steps
    from fastserve.workshop.export import STEPS, Wanted
    from fastserve.workshop.export import export as run
    from fastserve.workshop.export_source import SourceOptions
    from fastserve.workshop.renames import pairs

    wanted = Wanted(
        source=source,
        base_path=base_path,
        options=SourceOptions(
            keras=None if keras is None else int(keras),
            custom=custom,
            dtypes=pairs("--dtype", dtypes, "NAME=DTYPE, such as ids=int64"),
            trust_lambda=trust_lambda,
            tags=tags,
            op_libraries=tuple(str(path) for path in op_libraries),
        ),
        version=version,
        signatures=signatures,
        inputs=inputs,
        outputs=outputs,
        samples=samples,
        batch_sizes=batch_sizes or Wanted.batch_sizes,
        tolerance=tolerance,
        compare=not no_compare,
        warmup=not no_warmup,
        allow_fixed_batch=allow_fixed_batch,
    )
    with termination_as_interrupt(), Steps(Console(stderr=True), STEPS) as steps:
        exported = run(wanted, steps.step)
    show(wanted, exported)
