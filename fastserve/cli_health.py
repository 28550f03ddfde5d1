"""`fastserve health`: whether a running daemon lives, or is ready, as an exit code.

For health checks of containers and for scripts, where there is no curl; cli_top_client asks. Exit codes: 0
yes, 1 no, or no daemon answers, 2 the command line is wrong.
"""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False), default="config.toml", required=False)
@click.option(
    "--socket",
    metavar="PATH",
    help="The daemon's monitor.sock, instead of the one in CONFIG's state directory.",
)
@click.option("--url", metavar="URL", help="Where the daemon's live page is, instead: http://HOST:PORT/")
@click.option("--ready", is_flag=True, help="Ask whether every model has a version that answers.")
def health(config: str, socket: str | None, url: str | None, ready: bool) -> None:
    """Say whether the daemon that runs with CONFIG lives, by the exit code.

    0: the daemon and its serving process live, and with --ready every configured model has a version that
    answers. 1: not so, and why is on the standard error. It is what /healthz and /readyz tell, asked over
    the monitor socket, which is there in every configuration.

    \b
    Examples:
        fastserve health
        fastserve health --ready /etc/fastserve/config.toml && echo ready
        fastserve health --url http://10.0.0.5:8501/
    """
    from fastserve.cli_top_client import MonitorClient

    if socket is not None and url is not None:
        raise click.UsageError("--socket and --url name the same thing; give one of them")
    client = MonitorClient.at(url) if url is not None else MonitorClient.of(config, socket)
    answer = client.health(ready=ready)
    if answer.get("ok") is True:
        return
    models = answer.get("models")
    missing = models if isinstance(models, dict) else {}
    why = answer.get("why") or "models without a version that answers:"
    click.echo(f"not {'ready' if ready else 'healthy'}: {why}", err=True)
    for name, reason in missing.items():
        click.echo(f"  {name}: {reason}", err=True)
    sys.exit(1)
