"""`fastserve tfserving`, `tensorflow_model_server` and `fastserve import`: TensorFlow Serving's command line.

What is printed, where, and the exit codes; fastserve.compat reads the flags and files. Exit codes as
TensorFlow Serving's: 255 for a command line or file that cannot be used, and for --help; 0 after a drain.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fastserve.errors import ConfigError, FastServeError

PROGRAM = "tensorflow_model_server"
_WRONG = 255
_AS_THEY_ARE: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


@click.command(context_settings=_AS_THEY_ARE, add_help_option=False)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def tfserving(flags: tuple[str, ...]) -> None:
    """Serve with tensorflow_model_server's own flags and files; --help lists all of them.

    \b
    Examples:
        fastserve tfserving --port=8500 --model_name=ranker --model_base_path=/models/ranker
        fastserve tfserving --model_config_file=models.config --model_config_file_poll_wait_seconds=60
    """
    sys.exit(_serve(flags))


@click.command("import", context_settings={**_AS_THEY_ARE, "help_option_names": ["-h", "--help"]})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-o",
    "output",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write it here instead of printing it.",
)
def import_(flags: tuple[str, ...], output: str | None) -> None:
    """Turn tensorflow_model_server's flags and files into a config.toml with comments.

    `fastserve serve` with it serves the same.

    \b
    Example:
        fastserve import --port=8500 --model_config_file=models.config -o config.toml
    """
    sys.exit(_import(flags, output))


def model_server() -> None:
    """The program tensorflow_model_server."""
    sys.exit(_serve(sys.argv[1:]))


def _serve(arguments: Sequence[str]) -> int:
    from fastserve.compat.flags import WrongFlags, parse_flags, usage, why_unknown

    try:
        flags = parse_flags(arguments)
    except WrongFlags as wrong:
        for problem in wrong.problems:
            _say(f"error: {problem}")
        click.echo(usage(PROGRAM), nl=False)
        return _WRONG
    if flags.is_on("version"):
        click.echo(_versions())
        return 0
    if flags.unknown:
        # TensorFlow Serving goes on, too.
        for argument in flags.unknown:
            why = why_unknown(argument)
            click.echo(f"unknown argument: {argument}{f' ({why})' if why else ''}")
        click.echo(usage(PROGRAM), nl=False)
    try:
        return _run(flags)
    except FastServeError as error:
        for line in str(error).splitlines():
            _say(f"Failed to start server. Error: {line}")
        return _WRONG


def _run(flags: Any) -> int:
    from fastserve.compat.model_server import model_server as read
    from fastserve.config import Config
    from fastserve.control.daemon import ServeOptions, serve
    from fastserve.control.plugins import check_plugins
    from fastserve.log import Log

    served = read(flags)
    check_plugins(served.config)
    for note in served.draft.notes:
        _say(note)
    write_files(served.draft.files)

    def again() -> Config:
        fresh = read(flags)
        write_files(fresh.draft.files)
        return fresh.config

    file = flags.text("model_config_file")
    options = ServeOptions(
        strict=True,
        file=file or None,
        read=again if file else None,
        wait=served.config.loading.poll_s > 0,
        ready_words="\n".join(
            [
                *(f"Running gRPC ModelServer at {at} ..." for at in served.config.server.listen),
                *(f"Exporting HTTP/REST API at:{at} ..." for at in served.config.gateway.listen),
            ]
        ),
        new_model=served.new_model,
    )
    return serve(served.config, options, Log())


def _import(arguments: Sequence[str], output: str | None) -> int:
    from fastserve.compat.flags import WrongFlags, parse_flags, why_unknown
    from fastserve.compat.model_server import model_server as read
    from fastserve.compat.toml_text import toml_text

    try:
        flags = parse_flags(arguments)
    except WrongFlags as wrong:
        raise ConfigError(wrong.problems) from None
    if flags.unknown:
        raise ConfigError(
            [
                f"unknown argument: {argument}{f' ({why})' if (why := why_unknown(argument)) else ''}"
                for argument in flags.unknown
            ]
        )
    served = read(flags)
    if not served.config.models:
        raise ConfigError(
            [f"{flags.text('model_config_file')}: no model is in it, and a config.toml needs one"]
        )
    text = toml_text(served.draft, f"Made by: fastserve import {' '.join(arguments)}")
    for note in served.draft.notes:
        _say(note)
    write_files(served.draft.files)
    if output is None:
        click.echo(text, nl=False)
        return 0
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise FastServeError(f"{output} cannot be written: {error.strerror}") from None
    _say(f"{output} is written; look at it with: fastserve check {output}")
    return 0


def write_files(files: Sequence[Any]) -> None:
    """Writes what the configuration names, where it is not there as it should be; each by one rename."""
    for file in files:
        path = Path(file.path)
        try:
            if path.exists() and path.read_text(encoding="utf-8") == file.text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = path.with_name(path.name + ".new")
            fresh.unlink(missing_ok=True)
            with open(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode), "w", encoding="utf-8"
            ) as made:
                made.write(file.text)
            fresh.replace(path)
        except OSError as error:
            raise ConfigError([f"{path} cannot be written: {error.strerror}"]) from None


def _versions() -> str:
    from fastserve.cli_version import versions

    there = dict(versions())
    return (
        f"TensorFlow ModelServer: FastServe {there['fastserve']}\nTensorFlow Library: {there['tensorflow']}"
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
