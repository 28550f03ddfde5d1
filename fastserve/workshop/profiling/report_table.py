"""A profile on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve.bench.units import bytes_text, time_text
from fastserve.workshop.profiling.clusters import Clustering
from fastserve.workshop.profiling.values import (
    WORTH,
    BatchProfile,
    Profile,
    own_us,
    share_of_time,
    stops_paying,
)

_BREAKERS = 12
_HOST_OPS = 20


def show(profile: Profile, console: Console, top: int) -> None:
    console.print(
        f"[bold]{escape(profile.path)}[/bold]  signature {escape(profile.signature)}, "
        f"TensorFlow {escape(profile.tensorflow_version)}, {escape(profile.executor)}; inputs: "
        f"{escape(profile.inputs_from)}",
        soft_wrap=True,
        highlight=False,
    )
    for note in profile.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True, highlight=False)
    console.print()
    console.print(_costs(profile))
    for line in cost_lines(profile):
        _line(console, line)
    console.print()
    console.print(_sums(profile))
    console.print()
    console.print(_types(profile, top))
    console.print()
    console.print(_ops(profile, top))
    if profile.host_ops:
        console.print()
        console.print(_host_ops(profile))
    if profile.xla is not None:
        console.print()
        console.print("[bold]XLA[/bold]")
        for line in xla_lines(profile):
            _line(console, line)
        if profile.xla.could is not None and profile.xla.could.breakers:
            console.print(_breakers(profile))


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


# ---- what both reports say -----------------------------------------------------------------------


def cost_lines(profile: Profile) -> Iterator[str]:
    """Where batching stops paying, in words."""
    if len(profile.costs) < 2 or profile.batched_why:
        return
    first, last = profile.costs[0], profile.costs[-1]
    end = stops_paying(profile.costs)
    if end is None:
        yield (
            f"Batching pays up to {last.rows} rows and perhaps beyond: a row takes "
            f"{time_text(last.row_us * 1e3)} there, {time_text(first.row_us * 1e3)} with {first.rows}."
        )
        return
    there = next(cost for cost in profile.costs if cost.rows == end)
    yield (
        f"Batching pays up to {end} rows ({time_text(there.row_us * 1e3)} a row): no larger batch makes a "
        f"row {WORTH:.0%} cheaper."
    )


def xla_lines(profile: Profile) -> Iterator[str]:
    """What XLA takes, in words."""
    xla = profile.xla
    if xla is None:
        return
    if xla.full_why:
        yield f'xla = "full": no. {xla.full_why}'
    else:
        yield 'xla = "full": the whole signature compiles, and answers as TensorFlow does.'
    if xla.cluster_why:
        yield f'xla = "cluster": no. {xla.cluster_why}'
    elif xla.served is not None and xla.served.clusters:
        yield f'xla = "cluster": {_taken(profile, xla.served)}.'
    else:
        yield 'xla = "cluster": TensorFlow finds no cluster that it thinks is worth it.'
    found = xla.could
    if found is None:
        yield f"What XLA could take is not known. {xla.could_why}"
        return
    yield f"XLA could take {_taken(profile, found) if found.clusters else 'nothing'}."
    if found.outside:
        yield f"Outside stay {_types_of(node.op for node in found.outside)}."
    if found.breakers:
        yield f"{count_of(len(found.breakers), 'node')} between compiled ones, which keep clusters apart:"


def _taken(profile: Profile, found: Clustering) -> str:
    last = profile.batches[-1]
    nodes, clusters = count_of(len(found.inside), "node"), count_of(found.clusters, "cluster")
    share = share_of_time(last, found.inside)
    return f"{nodes} in {clusters}, {share:.0%} of the ops' time with {count_of(last.rows, 'row')}"


def count_of(number: int, noun: str) -> str:
    """ "1 row", "8 rows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _types_of(ops: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for op in ops:
        counts[op] = counts.get(op, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{op} x{count}" if count > 1 else op for op, count in ordered[:8]]
    return ", ".join(shown) + (", ..." if len(ordered) > 8 else "")


# ---- tables --------------------------------------------------------------------------------------


def _costs(profile: Profile) -> Table:
    table = Table(title="What a row costs", title_justify="left", box=None, pad_edge=False)
    clusters = any(cost.cluster_us is not None for cost in profile.costs)
    compiled = any(cost.compiled_us is not None for cost in profile.costs)
    for name in ("rows", "a run", "a row"):
        table.add_column(name, justify="right")
    if clusters:
        table.add_column('xla = "cluster"', justify="right")
    if compiled:
        table.add_column('xla = "full"', justify="right")
    for cost in profile.costs:
        cells = [str(cost.rows), time_text(cost.plain_us * 1e3), time_text(cost.row_us * 1e3)]
        cells += [_time(cost.cluster_us)] if clusters else []
        cells += [_time(cost.compiled_us)] if compiled else []
        table.add_row(*cells)
    return table


def _time(value_us: float | None) -> str:
    return "" if value_us is None else time_text(value_us * 1e3)


def _sums(profile: Profile) -> Table:
    """Whether the times add up."""
    table = Table(title="What a run is made of", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for batch in profile.batches:
        table.add_column(count_of(batch.rows, "row"), justify="right")
    for name, values in sum_rows(profile.batches):
        table.add_row(name, *values)
    return table


def sum_rows(batches: Iterable[BatchProfile]) -> list[tuple[str, list[str]]]:
    """The lines of the table: name, and a cell for each batch size."""
    batches = list(batches)

    def times(name: str) -> list[str]:
        return [time_text(getattr(batch, name) * 1e3) for batch in batches]

    return [
        ("a run as the daemon makes it", times("daemon_us")),
        ("its ops, one after the other", times("ops_us")),
        ("    of the run", [f"{batch.accounted:.1%}" for batch in batches]),
        ("a traced run", times("wall_us")),
        ("    before the first op", times("before_us")),
        ("    ops", times("ops_us")),
        ("    between ops: executor and tracing", times("between_us")),
        ("    after the last op: what was traced is put together", times("after_us")),
        ("    more than the same run untraced", times("tracing_us")),
    ]


def _types(profile: Profile, top: int) -> Table:
    table = Table(title="By op type", title_justify="left", box=None, pad_edge=False)
    table.add_column("op")
    table.add_column("nodes", justify="right")
    for batch in profile.batches:
        table.add_column(count_of(batch.rows, "row"), justify="right")
        table.add_column("", justify="right")
    table.add_column("output", justify="right")
    table.add_column("allocated", justify="right")
    last = profile.batches[-1]
    by_type = [{cost.op: cost for cost in batch.types()} for batch in profile.batches]
    for cost in last.types()[:top]:
        cells = []
        for batch, types in zip(profile.batches, by_type, strict=True):
            there = types.get(cost.op)
            cells += _share(there.own_us if there else 0.0, batch.ops_us)
        table.add_row(
            escape(cost.op),
            str(cost.nodes),
            *cells,
            bytes_text(cost.output_bytes),
            bytes_text(cost.peak_bytes),
        )
    _rest(table, len(last.types()) - top, "types")
    return table


def _ops(profile: Profile, top: int) -> Table:
    table = Table(title="By op", title_justify="left", box=None, pad_edge=False)
    table.add_column("node", overflow="fold", ratio=1)
    table.add_column("op")
    for batch in profile.batches:
        table.add_column(count_of(batch.rows, "row"), justify="right", no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
    table.add_column("allocated", justify="right", no_wrap=True)
    last = profile.batches[-1]
    by_node = [{cost.node: cost for cost in batch.ops} for batch in profile.batches]
    for cost in last.ops[:top]:
        cells = []
        for batch, nodes in zip(profile.batches, by_node, strict=True):
            there = nodes.get(cost.node)
            cells += _share(there.own_us if there else 0.0, batch.ops_us)
        table.add_row(escape(cost.label), escape(cost.op), *cells, bytes_text(cost.peak_bytes))
    _rest(table, len(last.ops) - top, "nodes")
    return table


def _share(value_us: float, of_us: float) -> list[str]:
    return [time_text(value_us * 1e3), f"{value_us / of_us:.0%}" if of_us else ""]


def _rest(table: Table, more: int, what: str) -> None:
    if more > 0:
        table.add_row(f"[dim]and {more} {what} more[/dim]")


def _host_ops(profile: Profile) -> Table:
    table = Table(title="Belongs before the model", title_justify="left", box=None, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("op")
    table.add_column(count_of(profile.batches[-1].rows, "row"), justify="right", no_wrap=True)
    table.add_column("instead", overflow="fold", ratio=1)
    last = profile.batches[-1].rows
    ordered = sorted(profile.host_ops, key=lambda op: -own_us(profile, op.node)[last])
    for op in ordered[:_HOST_OPS]:
        feeds = f" (into {profile.labels.get(op.feeds, op.feeds)})" if op.feeds else ""
        table.add_row(
            escape(profile.labels.get(op.node, op.node) + feeds),
            escape(op.op),
            time_text(own_us(profile, op.node)[last] * 1e3),
            escape(op.replacement),
        )
    _rest(table, len(ordered) - _HOST_OPS, "nodes")
    return table


def _breakers(profile: Profile) -> Table:
    assert profile.xla is not None and profile.xla.could is not None
    table = Table(box=None, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("op")
    table.add_column("nodes before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("why", overflow="fold", ratio=1)
    breakers = profile.xla.could.breakers
    for breaker in breakers[:_BREAKERS]:
        table.add_row(
            escape(breaker.label), escape(breaker.op), str(breaker.before), str(breaker.after), breaker.why
        )
    _rest(table, len(breakers) - _BREAKERS, "nodes")
    return table
