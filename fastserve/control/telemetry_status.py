"""/status.json, and one point of the history: what is shown, from what is known. Pure functions.

Shown by the page and by `fastserve top`, which read it and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.control.telemetry_events import Chronicle
from fastserve.control.telemetry_window import Traffic, Window, batch_sizes, quantiles
from fastserve.version import __version__


@dataclass(frozen=True)
class Processes:
    core_pid: int | None
    core_up: bool
    core_restarts: int
    core_bytes: int
    memory_limit_bytes: int
    gateway: Mapping[str, Any] | None


# What the manager's status has of the stage that a version is at, and of attempts to load it.
_OF_STAGE = ("signature", "bucket", "done", "total", "attempts", "retry_in_s")


def status(
    rows: Sequence[Mapping[str, Any]],
    window: Window,
    chronicle: Chronicle,
    processes: Processes,
    *,
    time_s: float,
    uptime_s: float,
    ready: bool,
) -> dict[str, Any]:
    """`rows`: the manager's status."""
    total = window.total
    p50, p99, p999 = quantiles(total.latency, (0.5, 0.99, 0.999))
    (queue_p99,) = quantiles(total.queue, (0.99,))
    gateway = processes.gateway
    return {
        "time_s": round(time_s, 3),
        "version": __version__,
        "uptime_s": round(uptime_s, 3),
        "ready": ready,
        "core": {
            "pid": processes.core_pid,
            "restarts": processes.core_restarts,
            "rss_bytes": processes.core_bytes,
            "memory_limit_bytes": processes.memory_limit_bytes,
            "up": processes.core_up,
        },
        "gateway": None
        if gateway is None
        else {"pids": list(gateway["pids"]), "restarts": gateway["restarts"], "up": gateway["up"]},
        "models": [_model(row, window, chronicle, time_s) for row in rows],
        "total": {
            "requests_per_s": total.per_s(total.requests),
            "errors_per_s": total.per_s(total.errors),
            "rows_per_s": total.per_s(total.rows),
            "p50_us": p50,
            "p99_us": p99,
            "p999_us": p999,
            "queue_p99_us": queue_p99,
            "waiting_rows": total.waiting_rows,
            "expired_per_s": total.per_s(total.expired),
            "shed_per_s": total.per_s(total.shed),
            "cancelled_per_s": total.per_s(total.cancelled),
        },
        "events": [event.told() for event in chronicle.events()],
    }


def point(total: Traffic, time_s: float) -> dict[str, Any]:
    """One second of the history."""
    p50, p99, p999 = quantiles(total.latency, (0.5, 0.99, 0.999))
    return {
        "time_s": round(time_s, 3),
        "requests_per_s": total.per_s(total.requests),
        "p50_us": p50,
        "p99_us": p99,
        "p999_us": p999,
        "rows_per_s": total.per_s(total.rows),
        "errors_per_s": total.per_s(total.errors),
        "expired_per_s": total.per_s(total.expired),
        "shed_per_s": total.per_s(total.shed),
        "cancelled_per_s": total.per_s(total.cancelled),
        "waiting_rows": total.waiting_rows,
    }


def _model(row: Mapping[str, Any], window: Window, chronicle: Chronicle, time_s: float) -> dict[str, Any]:
    name, rollout = row["name"], row["rollout"]
    return {
        "name": name,
        "labels": dict(row["labels"]),
        "problem": row["problem"],
        "rollout": {"kind": rollout["mode"], **{k: v for k, v in rollout.items() if k != "mode"}}
        if rollout
        else None,
        "versions": [_version(name, version, chronicle, time_s) for version in row["versions"]],
        "traffic": _traffic(name, window),
    }


def _version(model: str, version: Mapping[str, Any], chronicle: Chronicle, time_s: float) -> dict[str, Any]:
    """`progress`: of the stage, where it is known how much there is to do. `since_s`: of the stage, or else
    of the state."""
    done, total, seconds = version["done"], version["total"], version["seconds"]
    since_s = (
        time_s - seconds if seconds is not None else chronicle.version(model, version["version"]).since_s
    )
    return {
        "version": version["version"],
        "state": version["state"],
        "stage": version["stage"],
        "progress": round(done / total, 3) if total and done is not None else None,
        **{key: version[key] for key in _OF_STAGE},
        "error": version["error"],
        "since_s": round(since_s, 3),
        "memory_bytes": version["memory_bytes"],
    }


def _traffic(model: str, window: Window) -> dict[str, Any]:
    traffic = window.models.get(model) or Traffic(window.total.seconds)
    p50, p90, p99, p999 = quantiles(traffic.latency)
    (queue_p99,) = quantiles(traffic.queue, (0.99,))
    (compute_p50,) = quantiles(traffic.compute, (0.5,))
    batches = traffic.batch_rows
    padded = traffic.rows + traffic.padding_rows
    return {
        "requests_per_s": traffic.per_s(traffic.requests),
        "errors_per_s": traffic.per_s(traffic.errors),
        "expired_per_s": traffic.per_s(traffic.expired),
        "shed_per_s": traffic.per_s(traffic.shed),
        "cancelled_per_s": traffic.per_s(traffic.cancelled),
        "rows_per_s": traffic.per_s(traffic.rows),
        "p50_us": p50,
        "p90_us": p90,
        "p99_us": p99,
        "p999_us": p999,
        "queue_p99_us": queue_p99,
        "compute_p50_us": compute_p50,
        "waiting_rows": traffic.waiting_rows,
        "mean_batch_rows": round(batches.sum / batches.count, 2) if batches is not None else None,
        "padding_share": round(traffic.padding_rows / padded, 4) if padded else 0.0,
        "batch_rows": batch_sizes(batches, traffic.seconds),
        "by_version": {
            str(version): {
                "requests_per_s": of.per_s(of.requests),
                "p99_us": quantiles(of.latency, (0.99,))[0],
            }
            for (name, version), of in window.versions.items()
            if name == model and of.requests
        },
        "by_transport": {
            transport: traffic.per_s(count) for transport, count in traffic.by_transport.items()
        },
    }
