"""What the commands of cli_admin print: tables for people, or the daemon's answer as it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fastserve.errors import FastServeError

_WATCH_S = 1.0
_COLORS = {"AVAILABLE": "green", "LOADING": "cyan", "START": "cyan", "UNLOADING": "yellow", "END": "dim"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Answer = dict[str, Any]


def show_status(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
    else:
        Console(highlight=False).print(status_view(answer))


def watch_status(
    ask: Callable[[], Answer], *, as_json: bool, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Shows it every second until Ctrl-C. A daemon that goes away is waited for."""
    console = Console(highlight=False)
    try:
        if as_json:
            while True:
                click.echo(json.dumps(ask()))
                sleep(_WATCH_S)
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                try:
                    view: RenderableType = status_view(ask())
                except FastServeError as error:
                    view = Text(str(error), style="red")
                live.update(view, refresh=True)
                sleep(_WATCH_S)
    except KeyboardInterrupt:
        return


def status_view(answer: Answer) -> RenderableType:
    """The daemon in a line, a table of versions, and what else there is to say about models."""
    table = Table(header_style="bold")
    for column in ("model", "version", "state", "labels", "memory", "remark"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("version", "memory") else "left"
        )
    models = answer.get("models") or []
    for model in models:
        for row in _rows(model):
            table.add_row(*row)
    notes = [note for model in models for note in _notes(model)]
    notes += [_log(row) for row in answer.get("logs") or [] if row.get("path")]
    return Group(Text.from_markup(_daemon(answer)), table, *notes)


def show_changes(answer: Answer) -> None:
    """What a reload has changed."""
    changed = answer.get("changed") or []
    for line in changed or ["nothing has changed"]:
        click.echo(line)


def show_labels(model: str, answer: Answer) -> None:
    labels = answer.get("labels") or {}
    if not labels:
        click.echo(f"{model} has no labels")
        return
    table = Table(header_style="bold")
    table.add_column("label")
    table.add_column("version", justify="right")
    for name, version in sorted(labels.items()):
        table.add_row(escape(name), str(version))
    Console(highlight=False).print(table)


def show_done(verb: str, model: str, version: int | None, answer: Answer) -> None:
    what = model if version is None else f"{model}:{version}"
    click.echo(answer.get("text") or f"{verb} {what}: done")


def _daemon(answer: Answer) -> str:
    core = answer.get("core") or {}
    words = [
        "[bold green]ready[/bold green]" if answer.get("ready") else "[bold yellow]not ready[/bold yellow]"
    ]
    words.append(f"pid {answer.get('pid')}")
    if core.get("pid"):
        restarts = core.get("restarts") or 0
        times = f" after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
        words.append(f"core {core['pid']}{times}")
    else:
        words.append("[red]no core[/red]")
    if core.get("rss_bytes"):
        limit = f" of {_size(core['memory_limit_bytes'])}" if core.get("memory_limit_bytes") else ""
        words.append(f"memory {_size(core['rss_bytes'])}{limit}")
    return ", ".join(words)


def _rows(model: Answer) -> Iterator[tuple[str, ...]]:
    name = escape(str(model.get("name")))
    labels: dict[int, list[str]] = {}
    for label, version in sorted((model.get("labels") or {}).items()):
        labels.setdefault(version, []).append(label)
    versions = sorted(model.get("versions") or [], key=lambda version: -int(version["version"]))
    for version in versions:
        state = str(version.get("state"))
        color = "red" if version.get("error") and state == "END" else _COLORS.get(state, "default")
        yield (
            name,
            str(version["version"]),
            f"[{color}]{escape(state)}[/{color}]",
            escape(", ".join(labels.get(version["version"], []))),
            _size(version["memory_bytes"]) if version.get("memory_bytes") else "",
            escape(_remark(version)),
        )
        name = ""
    if not versions:
        yield name, "", "", "", "", "[yellow]no versions[/yellow]"


def _remark(version: Answer) -> str:
    """How far a version is, or what is wrong with it."""
    words = []
    if version.get("state") == "LOADING" and version.get("stage"):
        step = [str(version["stage"])]
        if version.get("signature"):
            step.append(str(version["signature"]))
        if version.get("bucket"):
            step.append(f"batch of {version['bucket']}")
        if version.get("total"):
            step.append(f"({version.get('done') or 0} of {version['total']})")
        words.append(" ".join(step))
    if version.get("seconds") and version.get("state") == "LOADING":
        words.append(f"{version['seconds']:.0f} s")
    if (version.get("attempts") or 0) > 1:
        words.append(f"attempt {version['attempts']}")
    if version.get("retry_in_s") is not None:
        words.append(f"again in {version['retry_in_s']:.0f} s")
    if version.get("state") == "AVAILABLE" and version.get("aspired") is False:
        words.append("no longer wanted")
    if version.get("error"):
        words.append(str(version["error"]))
    return ", ".join(words)


def _notes(model: Answer) -> Iterator[Text]:
    name = model.get("name")
    if model.get("progress"):
        yield Text(f"{name}: {model['progress']}", style="dim")
    if model.get("problem"):
        yield Text(f"{name}: {model['problem']}", style="yellow")
    rollout = model.get("rollout")
    if rollout:
        text = (
            f"{name}: {rollout.get('mode')} of {rollout.get('new')} beside {rollout.get('stable')}, "
            f"{rollout.get('seconds') or 0:.0f} s, {rollout.get('verdict')}"
        )
        yield Text(f"{text}: {rollout['text']}" if rollout.get("text") else text)


def _log(row: Answer) -> Text:
    """A model's request log in a line; what was lost stands out."""
    share, written = f"{row.get('sampling_rate') or 0:.3g}", _size(row.get("bytes") or 0)
    text = Text(
        f"{row.get('model')}: logs {share} of its requests to {row.get('path')}-*, "
        f"{row.get('records')} records, {written}",
        style="dim",
    )
    lost = [f"{row[key]} {key}" for key in ("dropped", "skipped", "failed") if row.get(key)]
    if row.get("error"):
        lost.append(str(row["error"]))
    if lost:
        text.append(f"; {', '.join(lost)}", style="yellow")
    return text


def _size(n: float) -> str:
    for unit in _UNITS:
        if n < 1024 or unit == _UNITS[-1]:
            break
        n /= 1024
    return f"{n:.0f} {unit}" if n >= 100 or unit == "B" else f"{n:.1f} {unit}"
