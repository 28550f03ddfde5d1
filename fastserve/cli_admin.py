"""The commands for a daemon that runs: status, reload, load, unload, labels. They talk to its admin socket.

Only arguments are here: cli_admin_client asks, cli_admin_show prints. Exit codes: 0 done, 1 the daemon
refused or is not there, 2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_CONFIG = "config.toml"
_SOCKET_HELP = "The daemon's admin socket, instead of the one that CONFIG names."


def _config_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """CONFIG and --socket, for commands about the whole daemon."""
    argument = click.argument("config", type=click.Path(dir_okay=False), default=_CONFIG, required=False)
    return argument(click.option("--socket", metavar="PATH", help=_SOCKET_HELP)(command))


def daemon_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --socket, for commands about a model."""
    option = click.option(
        "--config",
        metavar="CONFIG",
        type=click.Path(dir_okay=False),
        default=_CONFIG,
        show_default=True,
        help="The daemon's configuration, which says where its admin socket is.",
    )
    return option(click.option("--socket", metavar="PATH", help=_SOCKET_HELP)(command))


class _ModelVersion(click.ParamType):  # type: ignore[type-arg]
    """ "ranker" or "ranker:3"."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        model, colon, version = value.partition(":")
        if not model or (colon and not (version.isascii() and version.isdigit())):
            self.fail(f'"{value}" is not MODEL or MODEL:VERSION, such as ranker or ranker:3', param, ctx)
        return model, int(version) if colon else None


class _Label(click.ParamType):  # type: ignore[type-arg]
    """ "stable=3", or "stable=" for none."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, equals, version = value.partition("=")
        if not name or not equals or (version and not (version.isascii() and version.isdigit())):
            self.fail(f'"{value}" is neither NAME=VERSION nor NAME=, such as stable=3', param, ctx)
        return name, int(version) if version else None


@click.command()
@_config_argument
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's answer as it is, one JSON object.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
def status(config: str, socket: str | None, as_json: bool, watch: bool) -> None:
    """Show what the daemon that runs with CONFIG serves, loads, and failed to load.

    CONFIG is the file that the daemon was started with (default: config.toml here). One row for each
    version: its state as TensorFlow Serving names it, its labels, memory, and how far it is or what is
    wrong with it. The exit code is 1 when no daemon answers.

    \b
    Examples:
        fastserve status
        fastserve status /etc/fastserve/config.toml --watch
        fastserve status --socket /run/fastserve/admin.sock --json | jq '.models[].versions[].state'
    """
    from fastserve.cli_admin_client import AdminClient
    from fastserve.cli_admin_show import show_status, watch_status

    client = AdminClient.of(config, socket)
    if watch:
        watch_status(client.status, as_json=as_json)
    else:
        show_status(client.status(), as_json=as_json)


@click.command()
@_config_argument
def reload(config: str, socket: str | None) -> None:
    """Let the daemon that runs with CONFIG read it again, and show what has changed.

    The daemon does so by itself every config_poll_s, too. A file with an error changes nothing: the
    error is shown, and the exit code is 1.

    \b
    Examples:
        fastserve reload
        fastserve check config.toml && fastserve reload config.toml
    """
    from fastserve.cli_admin_client import AdminClient
    from fastserve.cli_admin_show import show_changes

    show_changes(AdminClient.of(config, socket).ask({"verb": "reload"}))


@click.command()
@click.argument("model", type=_ModelVersion(), metavar="MODEL[:VERSION]")
@daemon_option
def load(model: tuple[str, int | None], config: str, socket: str | None) -> None:
    """Load a version of MODEL, or try its failed versions again at once.

    Works on the daemon that runs with --config. `fastserve status --watch` shows how far it is.

    \b
    Examples:
        fastserve load ranker:4
        fastserve load ranker --config /etc/fastserve/config.toml
    """
    _tell("load", model, config, socket)


@click.command()
@click.argument("model", type=_ModelVersion(), metavar="MODEL[:VERSION]")
@daemon_option
def unload(model: tuple[str, int | None], config: str, socket: str | None) -> None:
    """Take a version of MODEL, or all of them, out of service.

    Calls that have begun are answered. The daemon is the one that runs with --config.

    \b
    Examples:
        fastserve unload ranker:4
        fastserve unload ranker --socket /run/fastserve/admin.sock
    """
    _tell("unload", model, config, socket)


@click.command()
@click.argument("model")
@click.argument("changes", type=_Label(), nargs=-1, metavar="[NAME=VERSION | NAME=]...")
@daemon_option
def labels(model: str, changes: tuple[tuple[str, int | None], ...], config: str, socket: str | None) -> None:
    """Show the version labels of MODEL, or move them: NAME=VERSION sets one, NAME= removes it.

    All changes of one command happen at once. Labels in the configuration come back with its next
    reload. The daemon is the one that runs with --config.

    \b
    Examples:
        fastserve labels ranker
        fastserve labels ranker stable=4 canary=
    """
    from fastserve.cli_admin_client import AdminClient
    from fastserve.cli_admin_show import show_labels

    answer = AdminClient.of(config, socket).ask(
        {
            "verb": "labels",
            "model": model,
            "set": {name: version for name, version in changes if version is not None},
            "remove": [name for name, version in changes if version is None],
        }
    )
    show_labels(model, answer)


def _tell(verb: str, model: tuple[str, int | None], config: str, socket: str | None) -> None:
    from fastserve.cli_admin_client import AdminClient
    from fastserve.cli_admin_show import show_done

    name, version = model
    answer = AdminClient.of(config, socket).ask({"verb": verb, "model": name, "version": version})
    show_done(verb, name, version, answer)
