"""Our own metrics: fastserve_*, in seconds and bytes, by model, version, signature, method, transport and
status.

Counters by version are of versions that are there, or were a moment ago: one that has closed takes its series
with it, as Prometheus wants it. What counts on is by model (fastserve_model_*), where closed versions are
included. How many series there are is bounded by what is configured: no label has a value that came with a
request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from fastserve.monitor.exposition import Bounds, Exposition, labels
from fastserve.monitor.values import Durations, Figures, Histogram, ModelFigures, Series

_US = 1e6
# Close together where an auction's 10 ms are spent.
LATENCY_S = Bounds.of(
    (
        *(
            0.0001,
            0.00025,
            0.0005,
            0.001,
            0.0015,
            0.002,
            0.003,
            0.004,
            0.005,
            0.006,
            0.008,
            0.01,
            0.0125,
            0.015,
        ),
        *(0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    ),
    counted_per_unit=_US,
)
PART_S = Bounds.of(
    (
        0.00001,
        0.000025,
        0.00005,
        0.0001,
        0.00025,
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.5,
        1.0,
    ),
    counted_per_unit=_US,
)
ROWS = Bounds.of_rows([1 << i for i in range(13)])

_STATES = ("START", "LOADING", "AVAILABLE", "UNLOADING")


def write_clean(out: Exposition, figures: Figures) -> None:
    """All of them."""
    named = [
        (labels(model=s.model, version=s.version, signature=s.signature), s)
        for s in figures.live
        if s.version is not None
    ]
    _requests(out, figures, named)
    _parts(out, named)
    _models(out, figures)
    _versions(out, figures)
    _rollouts(out, figures.models)
    _logs(out, figures.models)
    _processes(out, figures)


Named = list[tuple[str, Series]]


def _requests(out: Exposition, figures: Figures, named: Named) -> None:
    if out.family("fastserve_requests_total", "counter", "Requests that were answered, by gRPC status."):
        for text, series in named:
            for (method, transport, status), count in series.requests.items():
                out.sample(f"{text},{labels(method=method, transport=transport, status=status)}", count)
    if out.family(
        "fastserve_model_requests_total",
        "counter",
        "Requests that were answered, those of versions that have closed included.",
    ):
        for key, count in _by_model(figures.all).items():
            model, method, transport, status = key
            out.sample(labels(model=model, method=method, transport=transport, status=status), count)
    if out.family(
        "fastserve_unresolved_requests_total",
        "counter",
        "Requests that were for no version: of unknown models and versions, malformed, not allowed.",
    ):
        for (method, transport, status), count in figures.unresolved.items():
            out.sample(labels(method=method, transport=transport, status=status), count)
    if out.family(
        "fastserve_request_duration_seconds",
        "histogram",
        "From a request's last byte to its answer, in the core; of all that were run, failed or not.",
    ):
        for text, series in named:
            for (method, transport), histogram in series.latency.items():
                if histogram.count:
                    where = f"{text},{labels(method=method, transport=transport)}"
                    _histogram(out, where, LATENCY_S, histogram, 1 / _US)


def _by_model(all_series: Iterable[Series]) -> Counter[tuple[str, str, str, str]]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for series in all_series:
        for (method, transport, status), count in series.requests.items():
            counts[series.model, method, transport, status] += count
    return counts


def _histogram(out: Exposition, text: str, bounds: Bounds, histogram: Histogram, unit: float) -> None:
    out.histogram(text, bounds, histogram.cumulative(bounds.counted), histogram.count, histogram.sum * unit)


_PARTS: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
    ("queue", "A call's wait for a batch.", lambda s: s.queue),
    ("batch_formation", "Putting the rows of a batch together.", lambda s: s.formation),
    ("compute", "A batch's run in the runtime.", lambda s: s.compute),
    ("encode", "Writing the answers of a batch.", lambda s: s.encode),
)
_COUNTS: tuple[tuple[str, str, Callable[[Series], int]], ...] = (
    ("batches", "Batches that were run.", lambda s: s.batches),
    ("rows", "Rows that were run, without padding.", lambda s: s.rows),
    ("padding_rows", "Rows that filled batches up to a size.", lambda s: s.padding_rows),
    ("expired", "Calls whose deadline passed before they were run.", lambda s: s.expired),
    ("cancelled", "Calls that their callers gave up before they were run.", lambda s: s.cancelled),
    ("shed", "Calls that were refused, because they could not be answered in time.", lambda s: s.shed),
)
_WAITING: tuple[tuple[str, str, Callable[[Series], int]], ...] = (
    ("waiting_calls", "Calls that wait for a batch.", lambda s: s.waiting_calls),
    ("waiting_rows", "Rows that wait for a batch.", lambda s: s.waiting_rows),
)


def _parts(out: Exposition, named: Named) -> None:
    for name, text, part in _PARTS:
        if out.family(f"fastserve_{name}_duration_seconds", "histogram", text):
            for where, series in named:
                histogram = part(series)
                if histogram.count:
                    _histogram(out, where, PART_S, histogram, 1 / _US)
    if out.family("fastserve_request_rows", "histogram", "Rows of a request that was run, or its Examples."):
        for where, series in named:
            for method, histogram in series.request_rows.items():
                _histogram(out, f"{where},{labels(method=method)}", ROWS, histogram, 1.0)
    if out.family("fastserve_batch_rows", "histogram", "Rows of a batch."):
        for where, series in named:
            if series.batch_rows.count:
                _histogram(out, where, ROWS, series.batch_rows, 1.0)
    for name, text, count in _COUNTS:
        if out.family(f"fastserve_{name}_total", "counter", text):
            for where, series in named:
                out.sample(where, count(series))
    for name, text, count in _WAITING:
        if out.family(f"fastserve_{name}", "gauge", text):
            for where, series in named:
                out.sample(where, count(series))


def _models(out: Exposition, figures: Figures) -> None:
    if out.family("fastserve_model_available_versions", "gauge", "Versions that answer requests."):
        for model in figures.models:
            out.sample(labels(model=model.name), model.available_versions)
    if out.family("fastserve_loads_total", "counter", "Attempts to load a version."):
        for model in figures.models:
            for result in ("success", "failure"):
                out.sample(labels(model=model.name, result=result), model.loads.get(result, 0))
    _durations(
        out,
        "fastserve_load_duration_seconds",
        "Loads that succeeded, from the trial's begin to the first request.",
        {model.name: model.load_s for model in figures.models},
    )
    _durations(
        out,
        "fastserve_switch_duration_seconds",
        "From a new version's first request until the old one is closed.",
        {model.name: model.switch_s for model in figures.models},
    )


def _durations(out: Exposition, name: str, about: str, taken: Mapping[str, Durations | None]) -> None:
    """A histogram for each model that has any."""
    if out.family(name, "histogram", about):
        for model, one in taken.items():
            if one is not None:
                out.histogram(labels(model=model), Bounds.of(one.bounds), one.counts, one.count, one.sum)


def _versions(out: Exposition, figures: Figures) -> None:
    named = [(labels(model=v.model, version=v.version), v) for v in figures.versions]
    if out.family(
        "fastserve_version_state", "gauge", "1 for the state that a version is in, 0 for the others."
    ):
        for where, version in named:
            for state in _STATES:
                out.sample(f'{where},state="{state}"', int(version.state == state))
    if out.family(
        "fastserve_version_memory_bytes", "gauge", "What a version takes, as its trial has measured it."
    ):
        for where, version in named:
            out.sample(where, version.memory_bytes)
    if out.family("fastserve_open_seconds", "gauge", "How long the core took to open and warm a version."):
        for where, version in named:
            if version.open_s is not None:
                out.sample(where, version.open_s)
    if out.family(
        "fastserve_warmup_seconds", "gauge", "First run of a batch size, without XLA, in the version's trial."
    ):
        for where, version in named:
            for (signature, rows), seconds in version.warmup_s.items():
                out.sample(f"{where},{labels(signature=signature, rows=rows)}", seconds)
    if out.family(
        "fastserve_compile_seconds", "gauge", "First run of a batch size with XLA, in the version's trial."
    ):
        for where, version in named:
            for (signature, rows), seconds in version.compile_s.items():
                out.sample(f"{where},{labels(signature=signature, rows=rows)}", seconds)


_ROLLOUT = ("requests", "failed", "refused")
_SHADOW = ("compared", "rows", "different_rows", "failed", "dropped", "skipped")


def _rollouts(out: Exposition, models: Iterable[ModelFigures]) -> None:
    """Gauges: they begin anew with each rollout."""
    going = [(model.name, model.rollout) for model in models if model.rollout]
    if out.family(
        "fastserve_rollout_share",
        "gauge",
        "Share of the requests that the new version answers or gets copies of.",
    ):
        for name, rollout in going:
            where = labels(model=name, kind=rollout["kind"], stable=rollout["stable"], new=rollout["new"])
            out.sample(where, float(rollout["share"]))
    judged = [(name, rollout["figures"]) for name, rollout in going if rollout.get("figures")]
    if out.family("fastserve_rollout_requests", "gauge", "Requests of the rollout that goes on."):
        for name, sides in judged:
            for side in ("stable", "new"):
                for outcome in _ROLLOUT:
                    out.sample(labels(model=name, side=side, outcome=outcome), sides[side][outcome])
    if out.family(
        "fastserve_shadow", "gauge", "Copies of requests in the rollout that goes on, and their rows."
    ):
        for name, sides in judged:
            for what in _SHADOW:
                out.sample(labels(model=name, what=what), sides["shadow"][what])


_LOG_COUNTS = (
    ("records", "Requests that were logged."),
    ("dropped", "Requests that were not logged, for want of room."),
    ("skipped", "Requests that cannot be logged."),
    ("failed", "Requests whose records could not be written."),
)


def _logs(out: Exposition, models: Iterable[ModelFigures]) -> None:
    logged = [(labels(model=model.name), model.log) for model in models if model.log]
    for key, text in _LOG_COUNTS:
        if out.family(f"fastserve_log_{key}_total", "counter", text):
            for where, log in logged:
                out.sample(where, int(log.get(key) or 0))
    if out.family("fastserve_log_buffered_bytes", "gauge", "Requests that wait to be written."):
        for where, log in logged:
            out.sample(where, int(log.get("buffered_bytes") or 0))


def _processes(out: Exposition, figures: Figures) -> None:
    for name, process in (("core", figures.core), ("gateway", figures.gateway)):
        if process is None:
            continue
        if out.family(f"fastserve_{name}_up", "gauge", f"Whether the {name} is there."):
            out.sample("", int(process.up))
        if out.family(f"fastserve_{name}_restarts_total", "counter", f"Times the {name} was started again."):
            out.sample("", process.restarts)
    for name, value, text in (
        ("core_resident_memory_bytes", figures.core_bytes, "What the core has in memory."),
        ("memory_limit_bytes", figures.memory_limit_bytes, "What the core may have in memory."),
        ("ready", int(figures.ready), "Whether every model has a version that answers."),
        ("uptime_seconds", figures.uptime_s, "Since the control process started."),
    ):
        if out.family(f"fastserve_{name}", "gauge", text):
            out.sample("", value)
    if out.family("fastserve_build_info", "gauge", "1, with what is running."):
        out.sample(labels(version=figures.version, library=figures.library), 1)
