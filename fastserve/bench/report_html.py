"""One HTML file that says what was found: nothing from elsewhere, no scripts, light, dark and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fastserve.bench.bootstrap import mean
from fastserve.bench.compare import compare_targets
from fastserve.bench.report_rows import Row, base_target, rows
from fastserve.bench.report_style import STYLE
from fastserve.bench.result import Point, Result, Run, Window, merged
from fastserve.bench.svg_plot import Axis, Series, chart, linear_axis, log_axis, marker
from fastserve.bench.units import bytes_text, number_tick, rate_text, ratio_text, time_tick

_NINES = ((0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"))
_TOP = 0.9999
# Of targets, where lines have no markers.
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 5", "14 4")
_DASH_NAMES = ("solid", "dashed", "dotted", "dash and dot", "sparse dots", "long dashes")
_FAR_APART = 12  # rates of which no linear axis shows both

_STYLE = (
    STYLE
    + """
h1{font-size:1.5rem}h2{font-size:1.25rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}p,.soft{color:var(--soft)}
p{margin:.3rem 0}td:first-child,th:first-child,td.name,th.name{text-align:left}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:.6rem}
.key{width:28px;height:12px;vertical-align:middle}.legend span{margin-right:1.2rem;white-space:nowrap}
"""
)


def html(result: Result) -> str:
    """The whole page."""
    title = ", ".join(run.title for run in result.runs) or "no workload"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width,initial-scale=1"/>',
        f"<title>fastserve bench: {escape(title)}</title><style>{_STYLE}</style></head><body>",
        "<h1>fastserve bench</h1>",
        f"<p>{escape(result.started)}, {result.seconds / 60:.1f} minutes: ",
        f"<code>{escape(result.command)}</code></p>",
    ]
    for run in result.runs:
        parts += _run(run)
    parts += _machine(result)
    return "".join([*parts, "</body></html>\n"])


def _run(run: Run) -> Iterator[str]:
    yield f"<h2>{escape(run.title)}</h2>"
    yield f"<p>{escape(describe(run))}</p>"
    if not run.complete:
        yield f"<p><strong>Not complete: {escape(run.ended)}</strong></p>"
    yield _legend(run)
    yield _table(run)
    yield _ratios(run)
    yield from _searches(run)
    curves = _curves(run)
    if curves:
        yield f'<h3>Latency against throughput</h3><div class="row">{"".join(curves)}</div>'
    for point in run.points:
        by_target = {
            target.name: windows
            for target in run.targets
            if (windows := [window for window in run.rounds_of(target.name, point.label) if window.done])
        }
        if by_target:
            yield f"<h3>{escape(_capital(point.label))}</h3>"
            yield f'<div class="row">{_cdf(run, point, by_target)}{_over_time(run, point, by_target)}</div>'


def describe(run: Run) -> str:
    """What was sent, and how."""
    rows_ = run.requests.rows
    many = f"{rows_[0]} rows" if rows_[0] == rows_[1] else f"{rows_[0]} to {rows_[1]} rows"
    sizes = ", ".join(
        f"{protocol} {bytes_text(low)}" + (f" to {bytes_text(high)}" if high != low else "")
        for protocol, (low, high) in run.requests.body_bytes.items()
    )
    return (
        f"Model {run.model}, {run.requests.count} different requests of {many} ({sizes}). "
        f"{run.rounds} rounds of {run.window_s:g} s windows after {run.warmup_s:g} s of warm-up, "
        "targets in turn."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _color(run: Run, target: str) -> int:
    return [info.name for info in run.targets].index(target)


def _legend(run: Run) -> str:
    keys = [
        f"<span>{marker(i)} {escape(info.name)} <span class='soft'>({escape(_kind(info))})</span></span>"
        for i, info in enumerate(run.targets)
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


def _kind(info: Any) -> str:
    options = ", ".join(f"{key} = {value}" for key, value in info.options.items())
    return f"{info.kind}, {info.protocol}" + (f", {options}" if options else "")


_HEADS = ("Load", "Target", "Offered", "Answers", "p50", "p90", "p99", "p99.9", "Max", "CPU each", "Memory",
          "Failed")  # fmt: skip


def _table(run: Run) -> str:
    head = "".join(f'<th class="{"name" if i < 2 else ""}">{text}</th>' for i, text in enumerate(_HEADS))
    body = "".join(_row(row) for row in rows(run))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(row: Row) -> str:
    cells = [f'<td class="name">{escape(text)}</td>' for text in (row.point, row.target)]
    cells += [f"<td>{escape(text)}</td>" for text in row.cells]
    return f"<tr>{''.join(cells)}</tr>"


def _ratios(run: Run) -> str:
    base = base_target(run)
    if base is None:
        return ""
    found = [change for change in compare_targets(run, base) if change.statistic in ("rate", "p50", "p99")]
    if not found:
        return ""
    body = "".join(
        f'<tr><td class="name">{escape(change.point)}</td><td class="name">{escape(change.target)}</td>'
        f'<td class="name">{change.statistic}</td><td>{escape(ratio_text(change.ratio))}</td>'
        f'<td class="name">{escape(change.words)}</td></tr>'
        for change in found
    )
    return (
        f"<h3>Compared with {escape(base)}</h3>"
        "<p>Ratios, with 95 % intervals. For latencies and CPU time, less is better.</p>"
        '<div class="wide"><table><thead><tr><th class="name">Load</th><th class="name">Target</th>'
        '<th class="name">Of</th><th>Ratio</th><th class="name"></th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _searches(run: Run) -> Iterator[str]:
    for found in run.found:
        refused = f"; refused at {rate_text(found.refused)}" if found.refused else ""
        limit = f" ({found.limit})" if found.limit else ""
        yield (
            f"<p>{escape(found.target)} keeps {escape(found.objective)} within {found.bound_ms:g} ms up to "
            f"<strong>{escape(rate_text(found.rate))}</strong>{escape(refused + limit)}, "
            f"after {len(found.steps)} windows.</p>"
        )


# ---- charts -------------------------------------------------------------------------------------


def _curves(run: Run) -> list[str]:
    charts = []
    for name in ("p50", "p99"):
        series = []
        for info in run.targets:
            color = _color(run, info.name)
            for kind, dash in (("open", ""), ("closed", "5 4")):
                points = _curve(run, info.name, kind, name)
                if points:
                    series.append(Series(f"{info.name}, {kind} loop", points, color, dash, markers=True))
        if sum(len(one.points) for one in series) < 3:
            continue
        rates = [x for one in series for x, _ in one.points]
        if max(rates) > _FAR_APART * min(rates):
            x = log_axis("Answers per second", rates, number_tick)
        else:
            x = linear_axis("Answers per second", max(rates), number_tick)
        y = log_axis(f"Latency, {name}", [y for one in series for _, y in one.points], time_tick)
        title = f"{name} against throughput"
        charts.append(_figure(chart(f"{run.title}: {title}", x, y, series), f"{title}. Dashed: closed loop."))
    return charts


def _curve(run: Run, target: str, kind: str, name: str) -> list[tuple[float, float]]:
    """In the order of the load, so that a curve bends back where a server does less under more."""
    found = []
    for point in run.points:
        windows = run.rounds_of(target, point.label)
        if point.kind == kind and windows:
            at = (mean(windows, "rate"), mean(windows, name))
            if all(map(math.isfinite, at)):
                load = point.rate + point.fraction + point.connections * point.in_flight
                found.append((load, at))
    return [at for _, at in sorted(found)]


def _cdf(run: Run, point: Point, by_target: dict[str, list[Window]]) -> str:
    series = []
    for target, windows in by_target.items():
        points, below = [], 0.0
        for value, share in merged(windows).cdf():
            points += [(value, below), (value, share)]
            below = share
            if share > _TOP:
                break
        points = [(value, min(share, _TOP)) for value, share in points]
        color = _color(run, target)
        series.append(Series(target, points, color, _DASHES[color % len(_DASHES)]))
    lines = ", ".join(f"{one.name} {_DASH_NAMES[one.color % len(_DASHES)]}" for one in series)
    x = log_axis("Latency", [x for one in series for x, _ in one.points], time_tick)
    y = Axis("Requests within", 0.0, _TOP, _NINES, lambda share: -math.log10(1 - min(share, _TOP)))
    return _figure(
        chart(f"{run.title}, {point.label}: latencies", x, y, series),
        f"Share of the requests answered within a time, all rounds together: {lines}.",
    )


def _over_time(run: Run, point: Point, by_target: dict[str, list[Window]]) -> str:
    every = {target: _timeline(windows) for target, windows in by_target.items()}
    values = [y for lines in every.values() for line in lines for _, y in line]
    if not values:
        return ""
    y = log_axis("Latency", values, time_tick)
    figures = []
    for target, lines in every.items():
        color = _color(run, target)
        end = max((x for line in lines for x, _ in line), default=1.0)
        x = linear_axis("Measured time, rounds one after the other (s)", end, number_tick)
        series = [
            Series(f"{target}, {name}", line, color, dash)
            for name, line, dash in zip(("p50", "p99", "maximum"), lines, ("", "6 3", "1 3"), strict=True)
        ]
        figures.append(
            _figure(
                chart(f"{run.title}, {point.label}: {target} over time", x, y, series),
                f"{target} over time: p50 solid, p99 dashed, maximum dotted.",
            )
        )
    return "".join(figures)


def _timeline(windows: Sequence[Window]) -> list[list[tuple[float, float]]]:
    """p50, p99 and maximum in ns over the seconds of all windows."""
    lines: list[list[tuple[float, float]]] = [[], [], []]
    offset = 0.0
    for window in windows:
        for start_s, _, done, _, p50, _, p99, most in window.intervals:
            if done:
                for line, value in zip(lines, (p50, p99, most), strict=True):
                    line.append((offset + start_s, value * 1e3))
        offset += window.seconds
    return lines


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _machine(result: Result) -> Iterator[str]:
    yield "<h2>Machine</h2><table><tbody>"
    facts = {
        **{key.replace("_", " "): value for key, value in result.machine.items() if value},
        **result.versions,
        "revision": result.revision,
    }
    busy = [window.busy_before for run in result.runs for window in run.windows]
    if busy:
        facts["busy before the windows"] = f"mean {sum(busy) / len(busy):.0%}, at most {max(busy):.0%}"
    others = [window.others for run in result.runs for window in run.windows if window.others is not None]
    if others:
        facts["used by others in the windows"] = (
            f"mean {sum(others) / len(others):.0%}, at most {max(others):.0%}"
        )
    for key, value in facts.items():
        if value:
            text = bytes_text(value) if key == "memory bytes" else str(value)
            yield f'<tr><td class="name">{escape(key.removesuffix(" bytes"))}</td>'
            yield f'<td class="name">{escape(text)}</td></tr>'
    yield "</tbody></table>"
