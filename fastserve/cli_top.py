"""`fastserve top`: how a running daemon does, live in a terminal. The live page shows the same in a browser.

Only arguments are here: cli_top_client asks, cli_top_live repeats it and listens to keys, cli_top_show draws.
Exit codes: 0 done, 1 no daemon answers, 2 the command line is wrong.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False), default="config.toml", required=False)
@click.option(
    "--socket",
    metavar="PATH",
    help="The daemon's monitor.sock, instead of the one in CONFIG's state directory.",
)
@click.option("--url", metavar="URL", help="Where the daemon's live page is, instead: http://HOST:PORT/")
@click.option("--once", is_flag=True, help="Print it once.")
@click.option("--json", "as_json", is_flag=True, help="Print status.json as it is, one object a line.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    help="How often it is shown.",
)
def top(config: str, socket: str | None, url: str | None, once: bool, as_json: bool, interval: float) -> None:
    """Show live how the daemon that runs with CONFIG does.

    Traffic, latency, queue and errors, each model with its versions, how far loads are, and what happened
    lately. CONFIG is the file that the daemon was started with (default: config.toml here). Percentiles
    are of the last 5 s. The exit code is 1 when no daemon answers; one that goes away later is waited for.

    \b
    Keys:
        q            quit
        s            sort models: as configured, by requests, p99, errors, name
        j k, arrows  scroll, when there are more models than lines

    Where the output is no terminal it is printed once, as with --once.

    \b
    Examples:
        fastserve top
        fastserve top /etc/fastserve/config.toml --once
        fastserve top --url http://10.0.0.5:8501/
        fastserve top --json --once | jq '.models[] | {name, p99_us: .traffic.p99_us}'
    """
    from fastserve.cli_top_client import MonitorClient
    from fastserve.cli_top_live import print_json, print_once, watch

    if socket is not None and url is not None:
        raise click.UsageError("--socket and --url name the same thing; give one of them")
    client = MonitorClient.at(url) if url is not None else MonitorClient.of(config, socket)
    if as_json:
        print_json(client, interval, once=once)
    elif once:
        print_once(client)
    else:
        watch(client, interval)
