"""What `fastserve top` shows: a pure function of the status document, the history and the screen's size.

Used by cli_top_live. Lines are made here, not left to a table, so that it is known how many models fit.
Whatever the daemon says is text: neither markup nor what a terminal takes for a command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fastserve.cli_top_figures import NOTHING, amount, bar, duration, latency, size, sparkline

Answer = dict[str, Any]

SORTS = ("configuration", "requests", "p99", "errors", "name")

_STATES = {"START": "waiting", "LOADING": "loading", "AVAILABLE": "available", "UNLOADING": "unloading"}
_STYLES = {
    "available": "green",
    "loading": "cyan",
    "waiting": "dim",
    "unloading": "yellow",
    "failed": "red",
    "ended": "dim",
}
_EVENTS = {"load": "loading", "unload": "unloading", "end": "ended"}
_EVENT_STYLES = {
    "available": "green",
    "load": "cyan",
    "unload": "yellow",
    "rollout": "yellow",
    "failed": "red",
}
_QUIET = ("0", NOTHING)
_EVENT_LINES = 6  # at most, while models want the room
_FIGURE = 10
_LINES: tuple[tuple[str, str, Callable[[float | None], str], str], ...] = (
    ("requests/s", "requests_per_s", amount, "blue"),
    ("p50", "p50_us", latency, "blue"),
    ("p99", "p99_us", latency, "yellow"),
    ("p99.9", "p999_us", latency, "magenta"),
    ("waiting", "waiting_rows", amount, "cyan"),
)
_LOW = 20  # a screen with fewer lines than this shows
_FEW_LINES = (_LINES[0], _LINES[2])
_FIRST_STEPS = """No models are configured. Name one in the daemon's configuration, which it reads again:

    [[models]]
    name = "ranker"
    base_path = "/models/ranker"     # holds 1/, 2/, ...: the newest is served"""


@dataclass(frozen=True)
class Screen:
    """Where it is shown, and how. Without a height there is room for everything, and no keys."""

    width: int
    height: int | None
    sort: str = SORTS[0]
    scroll: int = 0
    problem: str = ""


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    text: Callable[[Answer], str]
    least: int = 0  # the screen's width from which on it is there
    hot: bool = False  # anything but nothing is bad


def _traffic(key: str, text: Callable[[float | None], str]) -> Callable[[Answer], str]:
    return lambda model: text((model.get("traffic") or {}).get(key))


def _memory(model: Answer) -> str:
    there = [v for v in model.get("versions") or [] if _state(v) not in ("ended", "failed")]
    total = sum(version.get("memory_bytes") or 0 for version in there)
    return size(total or None)


_COLUMNS = (
    _Column("req/s", 7, _traffic("requests_per_s", amount)),
    _Column("err/s", 6, _traffic("errors_per_s", amount), hot=True),
    _Column("p50", 7, _traffic("p50_us", latency)),
    _Column("p99", 7, _traffic("p99_us", latency)),
    _Column("p99.9", 7, _traffic("p999_us", latency), least=88),
    _Column("batch", 6, _traffic("mean_batch_rows", amount), least=96),
    _Column("queue99", 7, _traffic("queue_p99_us", latency), least=106),
    _Column("run50", 7, _traffic("compute_p50_us", latency), least=114),
    _Column("waiting", 7, _traffic("waiting_rows", amount)),
    _Column("memory", 8, _memory, least=124),
)


def top_view(status: Answer, history: list[Answer], screen: Screen) -> RenderableType:
    """All of it, no wider and no higher than the screen."""
    lines = [*_head(status, screen), *_figures(status, history, screen), Text()]
    events = list(_event_lines(status, screen))
    models = _sorted(status.get("models") or [], screen.sort)
    blocks = [list(_model_lines(model, screen)) for model in models]
    title = _titles(screen)
    if not blocks:
        lines += [Text(line) for line in _FIRST_STEPS.splitlines()]
    elif screen.height is None:
        lines += [title, *(line for block in blocks for line in block)]
    else:
        # The lines of models, without: what is above, their title, a blank line, the events' title, the keys.
        room = screen.height - len(lines) - 4
        wanted = sum(map(len, blocks))
        room -= max(1, min(len(events), max(min(_EVENT_LINES, room // 3), room - wanted)))
        lines += [title, *_fitting(blocks, screen.scroll, max(room, 1))]
    lines += [Text(), Text("events", style="bold"), *(events or [Text("none yet", style="dim")])]
    if screen.height is not None:
        lines = lines[: screen.height - 1]
        lines += [Text()] * (screen.height - 1 - len(lines)) + [_keys(screen)]
    for line in lines:
        if not line.plain.isprintable():
            line.plain = "".join(
                c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in line.plain
            )
        line.no_wrap = True
        line.truncate(screen.width, overflow="ellipsis")
    return Group(*lines)


def _head(status: Answer, screen: Screen) -> Iterator[Text]:
    line = Text("FastServe", style="bold")
    line.append(f" {status.get('version', '')}", style="not bold dim")
    line.append("  ")
    ready = bool(status.get("ready"))
    line.append("ready" if ready else "not ready", style="bold green" if ready else "bold yellow")
    line.append(f"  up {duration(status.get('uptime_s'))}", style="not bold")
    yield line
    if screen.problem:
        when = time.strftime("%H:%M:%S", time.localtime(status.get("time_s") or 0))
        yield Text(f"as of {when}; {screen.problem}", style="red")
    core = status.get("core") or {}
    line = _process("core", core.get("up"), [core.get("pid")], core.get("restarts"))
    used, most = core.get("rss_bytes"), core.get("memory_limit_bytes")
    if used and most:
        line.append(f"  memory {size(used)} of {size(most)} ").append(bar(used / most, 8), style="cyan")
    elif used:
        line.append(f"  memory {size(used)}")
    yield line
    gateway = status.get("gateway")
    if gateway:
        yield _process("gateway", gateway.get("up"), gateway.get("pids") or [], gateway.get("restarts"))


def _process(name: str, up: object, pids: list[object], restarts: int | None) -> Text:
    text = Text(f"{name} ")
    text.append("up" if up else "down", style="green" if up else "bold red")
    if up:
        text.append(f" pid {' '.join(map(str, pids))}")
    if restarts:
        text.append(f", {restarts} restart{'s' if restarts > 1 else ''}", style="yellow")
    return text


def _figures(status: Answer, history: list[Answer], screen: Screen) -> Iterator[Text]:
    total = status.get("total") or {}
    yield Text()
    for name, key, text, style in _LINES if (screen.height or 99) >= _LOW else _FEW_LINES:
        values = [point.get(key) for point in history]
        if key not in total and not any(value is not None for value in values):
            continue  # a percentile that this daemon does not tell in all
        top = f" max {text(max((v for v in values if v is not None), default=None))}"
        line = Text(f"{name:<11}")
        line.append(f"{text(total.get(key)):>{_FIGURE - 1}} ", style="bold")
        line.append(sparkline(values, screen.width - 11 - _FIGURE - 13), style=style)
        yield line.append(top, style="dim")
    line = Text("rows/s")
    line.append(f" {amount(total.get('rows_per_s'))}", style="bold")
    for name in ("errors", "expired", "shed", "cancelled"):
        value = total.get(f"{name}_per_s")
        line.append(f"   {name}/s ")
        line.append(amount(value), style="bold red" if value else "bold")
    yield line


def _sorted(models: list[Answer], sort: str) -> list[Answer]:
    if sort == "name":
        return sorted(models, key=lambda model: str(model.get("name")))
    key = {"requests": "requests_per_s", "p99": "p99_us", "errors": "errors_per_s"}.get(sort)
    if key is None:
        return models
    return sorted(models, key=lambda model: -((model.get("traffic") or {}).get(key) or 0))


def _shown(screen: Screen) -> list[_Column]:
    return [column for column in _COLUMNS if screen.width >= column.least]


def _widths(screen: Screen) -> tuple[int, int]:
    """Of a model's name, and of its versions."""
    left = max(screen.width - sum(column.width + 1 for column in _shown(screen)), 20)
    name = min(max(left * 2 // 5, 10), 32)
    return name, left - name - 1


def _titles(screen: Screen) -> Text:
    name, versions = _widths(screen)
    line = Text(style="bold")
    line.append(f"{'model':<{name}} {'versions':<{versions}}")
    for column in _shown(screen):
        line.append(f" {column.title:>{column.width}}")
    return line


def _model_lines(model: Answer, screen: Screen) -> Iterator[Text]:
    name_width, versions_width = _widths(screen)
    versions = list(_version_texts(model))
    line = Text(str(model.get("name")), style="bold")
    line.truncate(name_width, overflow="ellipsis", pad=True)
    first = versions[0] if versions else Text("no versions", style="yellow")
    # What does not fit beside the figures goes below them.
    beside = first if first.cell_len <= versions_width else Text()
    cell = beside.copy()
    cell.truncate(versions_width, pad=True)
    line = Text.assemble(line, " ", cell)
    for column in _shown(screen):
        text = column.text(model)
        hot = column.hot and text not in _QUIET
        line.append(f" {text:>{column.width}}", style="bold red" if hot else "dim" if text in _QUIET else "")
    yield line
    below = versions[1:] if beside is first else versions
    for note in [*below, *_notes(model)]:
        yield Text.assemble(" " * (name_width + 1), note)


def _version_texts(model: Answer) -> Iterator[Text]:
    """The versions that answer together, each other one for itself with what becomes of it."""
    versions = sorted(model.get("versions") or [], key=lambda version: -int(version.get("version") or 0))
    available = [str(version["version"]) for version in versions if _state(version) == "available"]
    if available:
        yield Text(f"{', '.join(available)} available", style=_STYLES["available"])
    for version in versions:
        state = _state(version)
        if state in ("available", "ended"):
            continue
        words = [f"{version.get('version')} {state}"]
        if state == "loading":
            words += [str(version["stage"])] if version.get("stage") else []
            if version.get("progress") is not None:
                words.append(f"{bar(version['progress'], 10)} {version['progress'] * 100:.0f} %")
        if version.get("error"):
            words.append(f"{version['error']}")
        yield Text(" ".join(words), style=_STYLES[state])


def _state(version: Answer) -> str:
    return _STATES.get(str(version.get("state")), "failed" if version.get("error") else "ended")


def _notes(model: Answer) -> Iterator[Text]:
    if model.get("problem"):
        yield Text(str(model["problem"]), style="yellow")
    labels = model.get("labels") or {}
    if labels:
        yield Text(", ".join(f"{name} {version}" for name, version in sorted(labels.items())), style="dim")
    rollout = model.get("rollout")
    if rollout:
        words = f"{rollout.get('kind')} of {rollout.get('new')}"
        if rollout.get("share") is not None:
            words += f" with {rollout['share'] * 100:.3g} % of the requests"
        if rollout.get("text"):
            words += f": {rollout['text']}"
        yield Text(words, style="yellow")


def _fitting(blocks: list[list[Text]], scroll: int, room: int) -> list[Text]:
    """The models from `scroll` on that fit, whole, and how many do not."""
    blocks = blocks[min(scroll, len(blocks) - 1) :]
    if sum(map(len, blocks)) <= room:
        return [line for block in blocks for line in block]
    lines: list[Text] = []
    for i, block in enumerate(blocks):
        if not lines:
            block = block[: max(room - 1, 1)]
        if len(lines) + len(block) > room - 1 and lines:
            return [*lines, Text(f"... {len(blocks) - i} more: j", style="dim")]
        lines += block
    return lines


def _event_lines(status: Answer, screen: Screen) -> Iterator[Text]:
    events = sorted(status.get("events") or [], key=lambda event: -(event.get("time_s") or 0))
    for event in events[: 20 if screen.height is None else screen.height]:
        kind = str(event.get("kind"))
        line = Text(time.strftime("%H:%M:%S", time.localtime(event.get("time_s") or 0)), style="dim")
        line = Text.assemble(line, " ", Text(f"{_EVENTS.get(kind, kind):<10}", style=_event_style(event)))
        if event.get("model"):
            version = f" {event['version']}" if event.get("version") is not None else ""
            line.append(f"{event['model']}{version}", style="bold")
            line.append(" " if event.get("text") else "")
        line.append(str(event.get("text") or ""))
        if event.get("seconds") is not None:
            line.append(f" ({duration(event['seconds'])})", style="dim")
        yield line


def _event_style(event: Answer) -> str:
    if event.get("kind") in ("core", "gateway") and "died" in str(event.get("text")):
        return "bold red"
    return _EVENT_STYLES.get(str(event.get("kind")), "")


def _keys(screen: Screen) -> Text:
    line = Text(style="dim")
    for key, what in (("q", "quit"), ("s", f"sort: {screen.sort}"), ("j k", "scroll")):
        line.append(key, style="bold").append(f" {what}   ")
    return line
