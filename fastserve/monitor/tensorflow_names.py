"""TensorFlow Serving's metrics, by its names, labels, units and bounds, so that dashboards go on.

Its exporter writes a metric's path with a colon for every other character: /tensorflow/serving/request_count
is :tensorflow:serving:request_count. Times are microseconds. What differs here, because it is counted
otherwise, says so in its line of text; what has no equivalent is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fastserve.monitor.exposition import Bounds, Exposition, labels
from fastserve.monitor.values import Figures, Histogram, PathFigures, Series

# Buckets::Exponential of request_latency, runtime_latency and model_warmup_latency (10 us to 20 minutes),
LATENCY_US = Bounds.exponential(10, 1.8, 33)
# of queuing_latency (100 us to a second),
QUEUING_US = Bounds.exponential(100, 1.2, 52)
# of batch sizes and padding,
ROWS = Bounds.of_rows([1 << i for i in range(14)])
# of Examples in a request,
EXAMPLES = Bounds.of_rows([1 << i for i in range(15)])
# and of graph_run_time_usecs_histogram.
RUN_US = Bounds.exponential(1000, 2, 20)

# Its batches run in one pool, whose name unless the batching parameters give another is this.
_POOL = labels(thread_pool_name="batch_threads")
_ENTRYPOINTS = {"grpc": "GRPC", "rest": "REST", "web": "WEB"}
# What it runs SavedModels with.
_RUNTIME = "TF1"
# What it counts the Examples of.
_OF_EXAMPLES = ("Classify", "Regress", "MultiInference")


def write_tensorflow(out: Exposition, figures: Figures) -> None:
    """All of them."""
    _requests(out, figures)
    _examples(out, figures.all)
    _batches(out, figures.all)
    _graphs(out, figures.all)
    _loads(out, figures.paths)
    _logs(out, figures)


@dataclass
class _Sum:
    """Histograms added up, at some bounds."""

    counts: list[int] = field(default_factory=list)
    count: int = 0
    sum: float = 0.0

    def add(self, histogram: Histogram, bounds: Bounds) -> None:
        if not histogram.count:
            return
        more = histogram.cumulative(bounds.counted)
        self.counts = [a + b for a, b in zip(self.counts, more, strict=True)] if self.counts else list(more)
        self.count += histogram.count
        self.sum += histogram.sum

    def write(self, out: Exposition, where: str, bounds: Bounds) -> None:
        counts = self.counts or [0] * len(bounds.counted)
        out.histogram(where, bounds, counts, self.count, self.sum)


def _api(method: str, transport: str) -> str:
    """As it names them: by the RPC over gRPC, by the verb in the path over REST."""
    return method.lower() if transport == "rest" else method


def _requests(out: Exposition, figures: Figures) -> None:
    if out.family(
        ":tensorflow:serving:request_count",
        "counter",
        "The total number of requests. Those that are for no model that is served have no model_name.",
    ):
        counts: Counter[tuple[str, str]] = Counter()
        for series in figures.all:
            for (_, _, status), count in series.requests.items():
                counts[series.model, status] += count
        for (_, _, status), count in figures.unresolved.items():
            counts["", status] += count
        for (model, status), count in counts.items():
            out.sample(labels(model_name=model, status=status), count)
    if out.family(
        ":tensorflow:serving:request_latency",
        "histogram",
        "Distribution of wall time (in microseconds) for requests that were run, those that failed included.",
    ):
        for key, sum_ in _added(
            figures.all,
            LATENCY_US,
            lambda s: [((s.model, method, transport), h) for (method, transport), h in s.latency.items()],
        ).items():
            model, method, transport = key
            where = labels(
                model_name=model,
                API=_api(method, transport),
                entrypoint=_ENTRYPOINTS.get(transport, transport),
            )
            sum_.write(out, where, LATENCY_US)
    if out.family(
        ":tensorflow:serving:runtime_latency",
        "histogram",
        "Distribution of wall time (in microseconds) of the runtime, once for a batch, as API Predict.",
    ):
        runs = _added(figures.all, LATENCY_US, lambda s: [((s.model,), s.compute)])
        for (model,), sum_ in runs.items():
            sum_.write(out, labels(model_name=model, API="Predict", runtime=_RUNTIME), LATENCY_US)


Parts = Callable[[Series], Iterable[tuple[tuple[str, ...], Histogram]]]


def _added(all_series: Iterable[Series], bounds: Bounds, parts: Parts) -> dict[tuple[str, ...], _Sum]:
    """Histograms by key, of all series; those in which nothing was counted have no key."""
    sums: dict[tuple[str, ...], _Sum] = {}
    for series in all_series:
        for key, histogram in parts(series):
            if histogram.count:
                sums.setdefault(key, _Sum()).add(histogram, bounds)
    return sums


def _examples(out: Exposition, all_series: Sequence[Series]) -> None:
    sums = _added(
        all_series,
        EXAMPLES,
        lambda s: [((s.model,), h) for method, h in s.request_rows.items() if method in _OF_EXAMPLES],
    )
    if out.family(
        ":tensorflow:serving:request_example_counts",
        "histogram",
        "The number of tensorflow.Examples of requests that were run, those that failed included.",
    ):
        for (model,), sum_ in sums.items():
            sum_.write(out, labels(model=model), EXAMPLES)
    if out.family(
        ":tensorflow:serving:request_example_count_total",
        "counter",
        "The total number of tensorflow.Examples of requests that were run, those that failed included.",
    ):
        for (model,), sum_ in sums.items():
            out.sample(labels(model=model), int(sum_.sum))


def _batches(out: Exposition, all_series: Sequence[Series]) -> None:
    parts: tuple[tuple[str, Bounds, str, Callable[[Series], Iterable[Histogram]], str], ...] = (
        (
            "queuing_latency",
            QUEUING_US,
            "Distribution of wall time spent (in microseconds) in queuing",
            lambda s: [s.queue],
            _POOL,
        ),
        (
            "input_batch_size",
            ROWS,
            "Rows of requests, once for a request, however many inputs it has.",
            lambda s: s.request_rows.values(),
            "",
        ),
        ("processed_batch_size", ROWS, "Rows of batches, without padding.", lambda s: [s.batch_rows], ""),
    )
    for name, bounds, text, part, where in parts:
        if out.family(f":tensorflow:serving:batching_session:{name}", "histogram", text):
            sum_ = _Sum()
            for series in all_series:
                for histogram in part(series):
                    sum_.add(histogram, bounds)
            sum_.write(out, where, bounds)
    if out.family(
        ":tensorflow:serving:batching_session:padding_size",
        "histogram",
        "Rows that filled batches up to a size; without that label, of batches that ran as they were.",
    ):
        padding = _added(all_series, ROWS, lambda s: [((str(size),), h) for size, h in s.padding.items()])
        for (size,), sum_ in padding.items():
            sum_.write(out, labels(execution_batch_size=size) if size != "0" else "", ROWS)
    if out.family(
        ":tensorflow:serving:batching_session:wrapped_run_count",
        "counter",
        "Total count of run calls on the wrapped session",
    ):
        out.sample("", sum(series.batches for series in all_series))


def _graphs(out: Exposition, all_series: Sequence[Series]) -> None:
    """TensorFlow's own, as far as they are of requests: it counts loads and warm-ups as well."""
    runs = _Sum()
    for series in all_series:
        runs.add(series.compute, RUN_US)
    for name, value, text in (
        ("direct_session_runs", runs.count, "Runs of batches."),
        ("graph_runs", runs.count, "Runs of batches."),
        ("graph_run_time_usecs", int(runs.sum), "The total time spent on runs of batches, in microseconds."),
    ):
        if out.family(f":tensorflow:core:{name}", "counter", text):
            out.sample("", value)
    if out.family(
        ":tensorflow:core:graph_run_time_usecs_histogram",
        "histogram",
        "The wall-clock time spent on runs of batches, in microseconds.",
    ):
        runs.write(out, "", RUN_US)


def _loads(out: Exposition, paths: Sequence[PathFigures]) -> None:
    if out.family(
        ":tensorflow:cc:saved_model:load_attempt_count",
        "counter",
        "The number of times a version was loaded, or was not.",
    ):
        for path in paths:
            for status, count in (("fail", path.failed), ("success", path.succeeded)):
                if count:
                    out.sample(labels(model_path=path.path, status=status), count)
    if out.family(
        ":tensorflow:cc:saved_model:load_latency",
        "counter",
        "Latency in microseconds for versions that were successfully loaded, their trials included.",
    ):
        for path in paths:
            if path.succeeded:
                out.sample(labels(model_path=path.path), int(path.load_s * 1e6))
    if out.family(
        ":tensorflow:serving:model_warmup_latency",
        "histogram",
        "Distribution of wall time (in microseconds) for running a version's recorded requests.",
    ):
        for path in paths:
            if (ran := path.warmup_s) is not None:
                where = labels(model_path=path.path, status="OK")
                out.histogram(where, LATENCY_US, ran.counts, ran.count, ran.sum * 1e6)
    if out.family(
        ":tensorflow:serving:model_warmup_records_read",
        "counter",
        "The number of a version's recorded requests that were run, by its path.",
    ):
        for path in paths:
            if path.warmup_s is not None:
                out.sample(labels(model_path=path.path), path.warmup_records)


def _logs(out: Exposition, figures: Figures) -> None:
    if out.family(
        ":tensorflow:serving:request_log_count",
        "counter",
        "The total number of requests logged, by model_name and status code.",
    ):
        for model in figures.models:
            if model.log:
                where = labels(model_name=model.name, status_code="OK")
                out.sample(where, int(model.log.get("records") or 0))
