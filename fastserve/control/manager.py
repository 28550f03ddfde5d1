"""Manager: every model's servable stream and source, and what concerns them all.

It starts and ends the streams as models come and go, gives a new core what the old one served, keeps labels,
and does and answers what operators ask. Owned by the daemon, on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastserve.config import Loading, Model
from fastserve.control import labels
from fastserve.control.core_process import CoreProcess
from fastserve.control.core_table import CoreTable
from fastserve.control.observer import Observer
from fastserve.control.plugins import make_source, transition_policy
from fastserve.control.request_log import log_settings
from fastserve.control.source import Choice
from fastserve.control.stream import Harness, ServableStream
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.work import VersionWork
from fastserve.errors import CoreError, CoreLost, ModelError
from fastserve.extensions import Aspired, Source, SourceContext, State, VersionPath
from fastserve.log import Log

# Before a source that has failed is started again.
_SOURCE_RESTART_S = 10.0


@dataclass(eq=False)
class ServedModel:
    """A configured model: its stream, and what feeds it."""

    model: Model
    stream: ServableStream
    choice: Choice
    source: Source
    labels: dict[str, int]  # as configured or set since, whether their versions are there or not
    looking: asyncio.Task[None] | None = None


class Manager:
    """Made before the core is started; `start` then loads what is configured."""

    def __init__(
        self,
        loading: Loading,
        core: CoreSupervisor,
        work: VersionWork,
        log: Log,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._loading = loading
        self._core = core
        self._work = work
        self._log = log
        self._models: dict[str, ServedModel] = {}
        # By name: a model that comes back waits until the one before has gone.
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._table = CoreTable(core, self._states, self._labels, self._logs, log)
        self._telling: asyncio.Task[None] | None = None
        work.changed = self.changed

    # ---- the models ----------------------------------------------------------------------

    @property
    def models(self) -> Sequence[ServedModel]:
        return list(self._models.values())

    @property
    def available(self) -> list[Harness]:
        """The newest available version of each model that has one."""
        streams = (served.stream for served in self._models.values())
        return [max(s.available, key=lambda h: h.version) for s in streams if s.available]

    @property
    def failed(self) -> dict[str, str]:
        """Models without an available version, by the name of what failed, and why."""
        return {name if last is None else str(last): why for name, last, why in self._without_available()}

    @property
    def missing(self) -> dict[str, str]:
        """As failed, by the model's name."""
        return {name: why for name, _, why in self._without_available()}

    def _without_available(self) -> Iterator[tuple[str, Harness | None, str]]:
        for name, served in self._models.items():
            stream = served.stream
            if stream.available:
                continue
            last = max(stream.versions, key=lambda h: h.version, default=None)
            if last is None:
                yield name, None, stream.problem or "no version is to be served"
            else:
                yield name, last, last.error or stream.problem or f"it is {last.state.name}"

    @property
    def logging(self) -> bool:
        """Whether requests of any model are logged."""
        return any(served.model.logging.sampling_rate for served in self._models.values())

    def start(self, models: Sequence[Model], there: Sequence[dict[str, Any]] = ()) -> None:
        """Begins to look for versions. Once, from within the event loop. `there`: what an adopted core serves
        already, as its `inventory` says."""
        self._table.adopted = bool(there)
        for model in models:
            self._add(model, [row for row in there if row["model"] == model.name])
        self._telling = asyncio.create_task(self._table.run(), name="core-table")

    async def settled(self, names: Sequence[str] | None = None) -> None:
        """Waits until every aspired version of these models, or of all, is available or has failed once."""
        served = [self._models[name] for name in self._models if names is None or name in names]
        await asyncio.gather(*(s.stream.settled() for s in served))

    async def populated(self) -> None:
        """As settled, but a model that has no version yet is waited for, and one that fails until it is given
        up."""
        await asyncio.gather(*(served.stream.populated() for served in self.models))

    async def recover(self, core: CoreProcess) -> None:
        """Brings everything that was available into a core that is new. CoreLost when that one dies too."""
        lost: list[tuple[ServableStream, Harness, str]] = []

        async def restore(stream: ServableStream, harness: Harness) -> None:
            try:
                await self._work.restore(harness, core)
            except (ModelError, CoreError) as error:
                self._log.error("not available", servable=harness, path=harness.path.path, error=error)
                lost.append((stream, harness, str(error)))

        await self._work.restore_routes(core)
        streams = [served.stream for served in self._models.values()]
        await asyncio.gather(*(restore(s, h) for s in streams for h in s.available))
        await self._table.fill(core)
        for stream, harness, error in lost:
            stream.lost(harness, error)

    async def close(self) -> None:
        """Gives up what is under way; the core goes on with what it has."""
        tasks = [s.looking for s in self._models.values() if s.looking is not None] + list(
            self._removing.values()
        )
        if self._telling is not None:
            tasks.append(self._telling)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for served in self._models.values():
            await served.stream.close()

    def changed(self) -> None:
        """Something that status shows is different now."""
        self._table.changed()

    async def retire_strangers(self, there: Sequence[dict[str, Any]]) -> None:
        """Takes out of an adopted core what is not configured any more."""
        for row in there:
            if row["model"] not in self._models:
                with suppress(CoreError, CoreLost):
                    await self._core.call("retire", model=row["model"], version=row["version"])
                    await self._core.call("close", model=row["model"], version=row["version"])
                self._log.info("unloaded", servable=f"{row['model']}:{row['version']}", why="not configured")

    def _add(self, model: Model, there: Sequence[dict[str, Any]] = ()) -> ServedModel:
        choice = Choice(model.versions)
        stream = ServableStream(
            model,
            transition_policy(model),
            self._loading,
            self._work,
            self._log,
            self.changed,
            observer=self._observer,
        )
        for row in there:
            note = row.get("note") or {}
            path = VersionPath(row["version"], str(note.get("path")), str(note.get("fingerprint")))
            stream.adopt(path, row["servable"], note)
            self._observer.adopted(model.name, path.version)
        stream.resume()
        served = ServedModel(model, stream, choice, self._source(model, choice), dict(model.labels))
        self._models[model.name] = served
        self._look(served)
        return served

    def _source(self, model: Model, choice: Choice) -> Source:
        return make_source(
            SourceContext(
                model=model,
                choose=choice,
                poll_s=self._loading.poll_s,
                cache_dir=self._loading.cache_dir,
                log=self._log,
            )
        )

    def _look(self, served: ServedModel) -> None:
        """Starts the source, also anew, so that what an operator has said takes effect at once."""
        before = [served.looking] if served.looking is not None else []
        for task in before:
            task.cancel()
        if served.model.name in self._removing:
            before.append(self._removing[served.model.name])
        served.looking = asyncio.create_task(
            self._follow(served, served.source, before), name=f"source-{served.model.name}"
        )

    async def _follow(
        self, served: ServedModel, source: Source, before: Sequence[asyncio.Task[None]]
    ) -> None:
        """Runs a source once `before` are over, and again after a while when it fails: also when something
        inside it was cancelled, which nobody asked of the source."""
        if before:
            await asyncio.wait(before)
        while True:
            try:
                await source.run(served.stream.aspire)
                return
            except (Exception, asyncio.CancelledError) as error:  # a defect must not end the daemon
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                served.stream.problem = f"its source failed: {type(error).__name__}: {error}"
                self._log.error("source failed", model=served.model.name, error=repr(error))
                self.changed()
            await asyncio.sleep(_SOURCE_RESTART_S)

    # ---- configurations ------------------------------------------------------------------

    async def apply(self, models: Sequence[Model]) -> list[str]:
        """Serves these models from now on; only what is different moves. What was changed, in words."""
        said = []
        wanted = {model.name: model for model in models}
        logs = self._logs()
        for name in [name for name in self._models if name not in wanted]:
            said.append(f"{name}: removed")
            self._remove(self._models.pop(name))
        for name, model in wanted.items():
            served = self._models.get(name)
            if served is None:
                said.append(f"{name}: added")
                self._add(model)
            elif served.model != model:
                said += [f"{name}: {key}" for key in _differences(served.model, model)]
                self._change(served, model)
        self.changed()
        if any(settings != logs.get(name) for name, settings in self._logs().items()):
            with suppress(CoreError, CoreLost):  # a refusal is logged when it is told again
                await self._table.tell()
        return said

    def _remove(self, served: ServedModel) -> None:
        """Drains and unloads a model's versions in the background."""

        async def remove() -> None:
            if before is not None:
                await asyncio.wait([before])
            await served.stream.remove()

        name = served.model.name
        before = self._removing.get(name)
        if served.looking is not None:
            served.looking.cancel()
        task = self._removing[name] = asyncio.create_task(remove(), name=f"remove-{name}")
        task.add_done_callback(
            lambda done: self._removing.pop(name) if self._removing.get(name) is done else None
        )

    def _change(self, served: ServedModel, model: Model) -> None:
        before, served.model = served.model, model
        served.stream.model = model
        served.stream.policy = transition_policy(model)
        if before.labels != model.labels:
            served.labels = dict(model.labels)
            self._observer.labels(model.name, served.labels)
        served.choice.versions = model.versions
        if _place(before) != _place(model):
            served.source = self._source(model, served.choice)
        self._look(served)

    # ---- what operators say --------------------------------------------------------------

    def named(self, name: str) -> ServedModel:
        """CoreError (NOT_FOUND) when no such model is configured."""
        served = self._models.get(name)
        if served is None:
            there = ", ".join(self._models) or "none"
            raise CoreError("NOT_FOUND", f"no model is called {name}; there are: {there}")
        return served

    def load(self, name: str, version: int | None) -> None:
        """Serves a version whatever the configuration says; without one, what the configuration says, and
        tries again what has failed."""
        served = self.named(name)
        choice = served.choice
        if version is None:
            choice.loaded, choice.unloaded, choice.paused = frozenset(), frozenset(), False
        else:
            choice.loaded |= {version}
            choice.unloaded -= {version}
            choice.paused = False
        served.stream.retry(version)
        self._look(served)

    def unload(self, name: str, version: int | None) -> None:
        """Does not serve a version, or any, until `load` says otherwise."""
        served = self.named(name)
        if version is None:
            served.choice.paused = True
            # At once, whatever its source may be at.
            served.stream.aspire(Aspired(()))
        else:
            served.choice.unloaded |= {version}
            served.choice.loaded -= {version}
        self._look(served)

    async def set_labels(self, name: str, new: Mapping[str, int], removed: Sequence[str]) -> dict[str, int]:
        """Changes a model's labels by TensorFlow Serving's rules. All of them, or CoreError and none."""
        served = self.named(name)
        there = {h.version for h in served.stream.available}
        problem = labels.why_not(
            name, served.labels, new, there, unavailable_allowed=self._loading.labels_for_unavailable
        )
        if problem:
            raise CoreError("FAILED_PRECONDITION", problem)
        served.labels = {k: v for k, v in {**served.labels, **new}.items() if k not in removed}
        self._observer.labels(name, served.labels)
        with suppress(CoreLost):  # its successor is told
            await self._table.tell()
        return served.labels

    # ---- what is there -------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Every model with its versions, for `fastserve status`."""
        return [self._model_status(served) for served in self._models.values()]

    def _model_status(self, served: ServedModel) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "name": served.model.name,
            "base_path": served.model.base_path,
            "problem": served.stream.problem,
            "progress": str(getattr(served.source, "progress", "")),
            "paused": served.choice.paused,
            "labels": served.labels,
            "rollout": next((h.rollout for h in served.stream.versions if h.rollout), None),
            "versions": [
                _version_status(h, now) for h in sorted(served.stream.versions, key=lambda h: h.version)
            ],
        }

    def _states(self) -> dict[str, list[dict[str, Any]]]:
        """The core's table for GetModelStatus."""
        return {
            name: [
                {
                    "version": h.version,
                    "state": h.state.name,
                    "code": _code(h),
                    "message": h.error if h.state is State.END else "",
                }
                for h in sorted(served.stream.versions, key=lambda h: h.version)
            ]
            for name, served in self._models.items()
        }

    def _labels(self) -> dict[str, dict[str, int]]:
        """Every model's labels whose versions are there, or may be missing."""
        allowed = self._loading.labels_for_unavailable
        return {
            name: labels.assignable(
                served.labels,
                {h.version for h in served.stream.available},
                unavailable_allowed=allowed,
            )
            for name, served in self._models.items()
        }

    def _logs(self) -> dict[str, dict[str, Any] | None]:
        """Every model's request log."""
        return {name: log_settings(served.model) for name, served in self._models.items()}


def _code(harness: Harness) -> int:
    """The gRPC code in a version's status: UNKNOWN for what has failed, as TensorFlow Serving has it."""
    return 2 if harness.failed and harness.state is State.END else 0


def _version_status(harness: Harness, now: float) -> dict[str, Any]:
    doing = harness.renewal or harness
    stage = dict(doing.stage)
    return {
        "version": harness.version,
        "state": harness.state.name,
        "aspired": harness.aspired,
        "error": harness.error,
        "stage": stage.pop("stage", ""),
        "signature": stage.pop("signature", ""),
        "bucket": stage.pop("bucket", None),
        "done": stage.pop("done", None),
        "total": stage.pop("total", None),
        "seconds": round(now - doing.stage_since, 1) if doing.stage else None,
        "memory_bytes": harness.memory_bytes,
        "attempts": harness.attempts,
        "retry_in_s": None if harness.retry_at is None else round(max(0.0, harness.retry_at - now), 1),
        "path": harness.path.path,
    }


def _place(model: Model) -> tuple[object, ...]:
    """What makes a source another."""
    return model.source, model.base_path, model.platform, model.options, model.versions.complete_marker


def _differences(before: Model, after: Model) -> list[str]:
    """The keys whose values differ."""
    return [field for field in before.__struct_fields__ if getattr(before, field) != getattr(after, field)]


def summary(harness: Harness) -> str:
    """One version in the ready line: ranker:3 (batched, XLA, 10 buckets)."""
    signatures = (harness.servable or {}).get("signatures") or [{}]
    main = next((s for s in signatures if s.get("name") == "serving_default"), signatures[0])
    words = []
    if main.get("batched"):
        words.append("batched")
    if main.get("compiled"):
        words.append("XLA")
        if main.get("batched"):
            words.append(f"{len(main.get('buckets') or [])} buckets")
    return f"{harness} ({', '.join(words)})" if words else str(harness)
