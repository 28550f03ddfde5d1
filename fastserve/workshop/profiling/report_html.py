"""A profile as one HTML file: nothing from elsewhere, no scripts, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from fastserve.bench.report_style import STYLE
from fastserve.bench.svg_plot import Series, chart, log_axis
from fastserve.bench.units import bytes_text, number_tick, time_text, time_tick
from fastserve.version import __version__
from fastserve.workshop.profiling.report_table import cost_lines, count_of, sum_rows, xla_lines
from fastserve.workshop.profiling.values import BatchProfile, Profile, own_us

_TOP = 40

_STYLE = (
    STYLE
    + """
@media print{details{display:block}}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.15rem}p,summary{color:var(--soft)}p{margin:.4rem 0}
strong,b{color:var(--text)}td.op,th.op{text-align:left}
td.name,th.name{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:11rem}
td.name{white-space:pre-wrap}
td.share{background:linear-gradient(to right,var(--bar) var(--w),transparent var(--w))}
figure{max-width:620px}
"""
)


def html(profile: Profile) -> str:
    """The whole page."""
    title = f"{profile.path}, {profile.signature}"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width,initial-scale=1"/>',
        f"<title>fastserve profile: {escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>fastserve profile {escape(__version__)}, TensorFlow {escape(profile.tensorflow_version)}, ",
        f"{escape(profile.executor)}, on {escape(str(profile.machine.get('processor', '')))}. ",
        f"Inputs: {escape(profile.inputs_from)}.</p>",
        *(f"<p><b>Note:</b> {escape(note)}</p>" for note in profile.notes),
        *_costs(profile),
        *_sums(profile),
        *_types(profile),
        *_ops(profile),
        *_host_ops(profile),
        *_xla(profile),
    ]
    return "".join([*parts, "</body></html>\n"])


def _table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """`heads`: text and class. Cells that begin with "<td" are whole."""
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in heads)
    body = "".join(
        "<tr>"
        + "".join(
            cell if cell.startswith("<td") else f'<td class="{kind}">{escape(cell)}</td>'
            for cell, (_, kind) in zip(row, heads, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _costs(profile: Profile) -> Iterator[str]:
    yield "<h2>What a row costs</h2>"
    for line in cost_lines(profile):
        yield f"<p>{escape(line)}</p>"
    heads = [
        ("rows", ""),
        ("a run", ""),
        ("a row", ""),
        ('a run, xla = "cluster"', ""),
        ('a run, xla = "full"', ""),
    ]
    rows = [
        [
            str(cost.rows),
            time_text(cost.plain_us * 1e3),
            time_text(cost.row_us * 1e3),
            "" if cost.cluster_us is None else time_text(cost.cluster_us * 1e3),
            "" if cost.compiled_us is None else time_text(cost.compiled_us * 1e3),
        ]
        for cost in profile.costs
    ]
    yield _table(heads, rows)
    if len(profile.costs) < 3:
        return
    series = []
    for color, (name, key) in enumerate(
        (("plain", "plain_us"), ("xla = cluster", "cluster_us"), ("xla = full", "compiled_us"))
    ):
        points = [
            (float(cost.rows), getattr(cost, key) * 1e3 / cost.rows)
            for cost in profile.costs
            if getattr(cost, key) is not None
        ]
        if points:
            series.append(Series(name, points, color, ("", "7 3", "2 3")[color], markers=True))
    x = log_axis("Rows at once", [float(cost.rows) for cost in profile.costs], number_tick)
    y = log_axis("Time for a row", [y for one in series for _, y in one.points], time_tick)
    lines = ", ".join(f"{one.name} {('solid', 'dashed', 'dotted')[one.color]}" for one in series)
    yield f"<figure>{chart('What a row costs by batch size', x, y, series)}"
    yield f"<figcaption>{escape(lines)}</figcaption></figure>"


def _sums(profile: Profile) -> Iterator[str]:
    yield "<h2>What a run is made of</h2>"
    yield (
        "<p>Means over the fastest eighth of the runs, traced and untraced in turn. Ops and what lies "
        "between them are measured in traced runs; the daemon's run is not traced.</p>"
    )
    heads = [("", "name"), *((count_of(batch.rows, "row"), "") for batch in profile.batches)]
    yield _table(heads, [[name, *cells] for name, cells in sum_rows(profile.batches)])


def _share(value_us: float, batch: BatchProfile) -> str:
    share = value_us / batch.ops_us if batch.ops_us else 0.0
    return f'<td class="share" style="--w:{share:.1%}">{time_text(value_us * 1e3)} ({share:.0%})</td>'


def _types(profile: Profile) -> Iterator[str]:
    yield "<h2>By op type</h2>"
    last = profile.batches[-1]
    by_type = [{cost.op: cost.own_us for cost in batch.types()} for batch in profile.batches]
    heads = [("op", "op"), ("nodes", ""), *((count_of(batch.rows, "row"), "") for batch in profile.batches)]
    heads += [("output", ""), ("allocated", "")]
    rows = [
        [
            cost.op,
            str(cost.nodes),
            *(
                _share(types.get(cost.op, 0.0), batch)
                for batch, types in zip(profile.batches, by_type, strict=True)
            ),
            bytes_text(cost.output_bytes),
            bytes_text(cost.peak_bytes),
        ]
        for cost in last.types()
    ]
    yield _table(heads, rows)
    rows_then = count_of(last.rows, "row")
    yield f"<p>Memory is with {rows_then}; what was allocated is that of the highest node.</p>"


def _ops(profile: Profile) -> Iterator[str]:
    yield "<h2>By op</h2>"
    last = profile.batches[-1]
    by_node = [{cost.node: cost.own_us for cost in batch.ops} for batch in profile.batches]
    heads = [
        ("node", "name"),
        ("op", "op"),
        *((count_of(batch.rows, "row"), "") for batch in profile.batches),
    ]
    heads += [("runs", ""), ("output", ""), ("allocated", "")]
    rows = [
        [
            cost.label,
            cost.op,
            *(
                _share(nodes.get(cost.node, 0.0), batch)
                for batch, nodes in zip(profile.batches, by_node, strict=True)
            ),
            str(cost.runs),
            bytes_text(cost.output_bytes),
            bytes_text(cost.peak_bytes),
        ]
        for cost in last.ops
    ]
    yield _table(heads, rows[:_TOP])
    if len(rows) > _TOP:
        more = _table(heads, rows[_TOP:])
        yield f"<details><summary>{len(rows) - _TOP} nodes more</summary>{more}</details>"


def _host_ops(profile: Profile) -> Iterator[str]:
    if not profile.host_ops:
        return
    yield "<h2>Belongs before the model</h2>"
    last = profile.batches[-1].rows
    heads = [("node", "name"), ("op", "op"), ("kind", "op"), (count_of(last, "row"), ""), ("instead", "name")]
    ordered = sorted(profile.host_ops, key=lambda op: -own_us(profile, op.node)[last])
    rows = []
    for op in ordered:
        feeds = f" (into {profile.labels.get(op.feeds, op.feeds)})" if op.feeds else ""
        time = time_text(own_us(profile, op.node)[last] * 1e3)
        rows.append([profile.labels.get(op.node, op.node) + feeds, op.op, op.kind, time, op.replacement])
    yield _table(heads, rows)


def _xla(profile: Profile) -> Iterator[str]:
    if profile.xla is None:
        return
    yield "<h2>XLA</h2>"
    for line in xla_lines(profile):
        yield f"<p>{escape(line)}</p>"
    found = profile.xla.could
    if found is None:
        return
    if found.breakers:
        heads = [("node", "name"), ("op", "op"), ("compiled before", ""), ("after", ""), ("why", "name")]
        yield _table(
            heads,
            [[one.label, one.op, str(one.before), str(one.after), one.why] for one in found.breakers],
        )
