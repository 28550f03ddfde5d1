"""`fastserve tune` from a configuration file to what is written: real daemons, real requests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from fastserve.bench.machine import machine, revision, versions
from fastserve.bench.measure import Bodies, Generator, encode
from fastserve.bench.requests import Request, make_requests
from fastserve.bench.start import version_directory
from fastserve.bench.target import TargetError
from fastserve.bench.tune import HELD_OUT_SHARE, LEAST_ROUNDS, Outcome, Watcher, tune
from fastserve.bench.tune_config import tuned
from fastserve.bench.tune_daemon import Bench, Goal, Sizes
from fastserve.bench.tune_search import Score
from fastserve.bench.tune_space import knobs, name, present
from fastserve.bench.units import ratio_text
from fastserve.bench.workload import Requests
from fastserve.cgroup import available_cpus
from fastserve.config import Config, Model
from fastserve.config_read import read_config
from fastserve.savedmodel import SavedModelError, read

_HELD_OUT_SEED = 7919
# Of the budget, that one candidate may take.
_SEARCH_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """What is tuned, for what. model: "" for the only one. recorded: rows that requests are drawn from."""

    file: Path
    model: str
    goal: Goal
    budget_s: float
    requests: Requests
    signature: str = "serving_default"
    recorded: Path | None = None


class Daemons:
    """A tune.Machine of real ones."""

    def __init__(self, searching: Bench, proving: Bench) -> None:
        self._searching = searching
        self._proving = proving

    def score(self, values: Mapping[str, Any], bar: float) -> Score:
        return self._searching.score(values, bar)

    def held_out(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        starts: tuple[float, float],
        more: Callable[[int], bool],
    ) -> tuple[list[float], list[float]]:
        bench = self._proving
        scores: tuple[list[float], list[float]] = ([], [])
        with bench.daemon(before, "before") as one, bench.daemon(after, "after") as other:
            for target, _ in (one, other):
                bench.verify(target)
            while more(len(scores[0])):
                turn = [(one, starts[0], scores[0]), (other, starts[1], scores[1])]
                for (target, child), start, into in turn if len(scores[0]) % 2 == 0 else turn[::-1]:
                    into.append(bench.measure(target, child, 0.0, start))
        return scores


def run(task: Task, generate: Generator, watcher: Watcher) -> tuple[Outcome, Config, Model]:
    """Searches and proves; writes nothing. Raises FastServeError."""
    config = read_config(task.file)
    model = _model(config, task)
    text = task.file.read_text(encoding="utf-8")
    searching, largest = _requests(task, model, task.requests)
    proving, _ = _requests(task, model, replace(task.requests, seed=task.requests.seed + _HELD_OUT_SEED))
    with tempfile.TemporaryDirectory(prefix="fastserve-tune-") as folder:
        benches = [
            Bench(
                file=task.file,
                text=text,
                model=model.name,
                signature=task.signature,
                folder=Path(folder),
                goal=task.goal,
                generate=generate,
                requests=requests,
                bodies=bodies,
                sizes=Sizes(
                    search_s=task.budget_s * _SEARCH_SHARE,
                    rerun_s=task.budget_s * HELD_OUT_SHARE / (2 * LEAST_ROUNDS),
                ),
                seed=seed,
            )
            for seed, (requests, bodies) in ((1, searching), (2, proving))
        ]
        outcome = tune(
            Daemons(*benches),
            present(config, model),
            knobs(available_cpus(), largest),
            task.budget_s,
            watcher,
        )
    return outcome, config, model


def _model(config: Config, task: Task) -> Model:
    names = [model.name for model in config.models]
    if task.model and task.model not in names:
        raise TargetError(f"{task.file}: there is no model {task.model}; there are {', '.join(names)}")
    if not task.model and len(names) > 1:
        raise TargetError(f"{task.file}: serves {', '.join(names)}; say which with --model")
    return next(model for model in config.models if model.name == (task.model or names[0]))


def _requests(task: Task, model: Model, spec: Requests) -> tuple[tuple[list[Request], Bodies], int]:
    """Requests, encoded, and the rows of the largest."""
    saved = read(version_directory(Path(model.base_path)), model.tags)
    signature = saved.signature(task.signature)
    if signature is None:
        there = ", ".join(signature.name for signature in saved.signatures)
        raise SavedModelError(f"{model.base_path}: has no signature {task.signature}; it has {there}")
    requests = make_requests(spec, signature, task.recorded)
    bodies = encode(requests, model.name, task.signature, {"grpc"})
    return (requests, bodies), max(request.rows for request in requests)


def evidence(task: Task, outcome: Outcome, goal_text: str) -> list[str]:
    """The lines above the file."""
    goal = task.goal
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {goal_text}",
        f"rerun of {len(outcome.after)} rounds, in turn, with requests of its own:",
        f"  as it was {', '.join(goal.text(score) for score in outcome.before)}",
        f"  as it is  {', '.join(goal.text(score) for score in outcome.after)}",
    ]
    if outcome.ratio is not None:
        lines.append(f"  better by {ratio_text(outcome.ratio)}, 95 % interval")
    return lines


def write(task: Task, model: Model, outcome: Outcome, goal_text: str) -> None:
    """The configuration with what was proved, in one piece."""
    text = task.file.read_text(encoding="utf-8")
    fresh = task.file.with_name(task.file.name + ".new")
    fresh.write_text(
        tuned(text, model.name, outcome.changes, evidence(task, outcome, goal_text)), encoding="utf-8"
    )
    fresh.chmod(task.file.stat().st_mode & 0o777)
    fresh.replace(task.file)


def write_json(
    path: Path, task: Task, config: Config, model: Model, outcome: Outcome, goal_text: str
) -> None:
    """All that was tried and found."""
    base = present(config, model)
    ratio = outcome.ratio
    found = {
        "schema": 1,
        "goal": goal_text,
        "config": str(task.file),
        "model": model.name,
        "before": base,
        "changes": outcome.changes,
        "proved": outcome.proved,
        "held_out": {
            "before": outcome.before,
            "after": outcome.after,
            "ratio": None if ratio is None else [ratio.value, ratio.low, ratio.high],
        },
        "tried": [
            {
                "what": name(tried.candidate, base),
                "score": tried.score.value,
                "bar": tried.bar,
                "note": tried.score.note,
            }
            for tried in outcome.best.tried
        ],
        "every_neighbour_tried": outcome.best.finished,
        "score": "requests per second" if task.goal.slo else "1 / p99 in seconds",
        "seconds": round(outcome.seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "revision": revision(),
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
