"""A servable stream: the versions of one model, and what is done to each in turn.

Told by a source what is aspired, it asks the model's policy what comes next and has the work done: loading,
in attempts with growing pauses, and unloading. It holds the rules that no policy may break: a version that
failed never displaces one that serves, and what is loaded is unloaded in the end. Owned by the manager, on
the event loop; knows nothing of trials and cores, which are the Work.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from fastserve.config import Loading, Logging, Model, Rollout, Versions
from fastserve.control.observer import Observer
from fastserve.control.policy import permitted
from fastserve.errors import CoreError, CoreLost, FastServeError, ModelError
from fastserve.extensions import Aspired, Snapshot, State, Step, VersionPath, VersionPolicy
from fastserve.log import Log

# Versions at their end that are still told of.
_ENDED_KEPT = 20


@dataclass(eq=False)
class Harness:
    """One version of a model on its way from START to END. What is known of it, for whoever asks."""

    model: Model
    path: VersionPath
    state: State = State.START
    aspired: bool = True
    # Why it failed, or what the attempt before failed with.
    error: str = ""
    failed: bool = False
    attempts: int = 0
    # Of the attempt under way: what is being done since when, or when the next one begins.
    stage: dict[str, Any] = field(default_factory=dict)
    stage_since: float = 0.0
    retry_at: float | None = None
    # What the core was told to load, and its memory, once a trial has found out.
    servable: dict[str, Any] | None = None
    memory_bytes: int = 0
    # Set while it may be given up without harm: before the core has heard of it.
    cancellable: bool = False
    # Stays although it may not be aspired: it is being compared with another.
    held: bool = False
    # How that goes, while it is the new one.
    rollout: dict[str, Any] | None = None
    # Takes the place of the same version, which is served with other settings or other files.
    replacement: bool = False
    # The one that is about to take this one's place, and what the last that could not would have been.
    renewal: Harness | None = None
    not_renewed: tuple[str, str, str] | None = None
    # What it was loaded with, in a few letters, and the directory of what was made for that.
    settings: str = ""
    work_dir: str = ""
    # Ends the pause before the next attempt.
    hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return f"{self.model.name}:{self.version}"

    @property
    def version(self) -> int:
        return self.path.version

    def snapshot(self) -> Snapshot:
        return Snapshot(self.version, self.state, self.aspired or self.held, self.failed)


def settings_of(model: Model) -> str:
    """The settings that a version is loaded with, in a few letters."""
    loaded = replace(
        model,
        base_path="",
        source="",
        options={},
        versions=Versions(),
        rollout=Rollout(),
        logging=Logging(),
        labels={},
        trial_timeout_s=1.0,
        token_file="",
    )
    return hashlib.sha256(msgspec.json.encode(loaded, order="deterministic")).hexdigest()[:16]


class Rejected(ModelError):
    """A version that is served was found worse than the one before it, and is to be unloaded."""


class Work(Protocol):
    """What is done to a version; errors concern that version only."""

    async def load(self, harness: Harness, beside: Harness | None) -> None:
        """Brings it into the core and publishes it; keeps `stage` current. With `beside` it gets only the
        share of the traffic that a rollout begins with. A `replacement` takes the place of the same version,
        which is unloaded. ModelError, CoreError or CoreLost."""

    async def prove(self, harness: Harness, beside: Harness) -> None:
        """Returns when the new version is to have all traffic. Rejected when it is to go."""

    async def unload(self, harness: Harness) -> None:
        """Drains and closes it. Nothing is left of it in the core, whatever happens."""

    async def tidy(self, work_dir: str) -> None:
        """Removes what was made for a version that is not served like that any more."""


class ServableStream:
    """The versions of one model. `changed` is called after everything that status would show."""

    def __init__(
        self,
        model: Model,
        policy: VersionPolicy,
        loading: Loading,
        work: Work,
        log: Log,
        changed: Callable[[], None],
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.model = model
        self.versions: list[Harness] = []
        self.problem = ""
        self.policy = policy
        self._loading = loading
        self._work = work
        self._log = log
        self._changed = changed
        self._observer = observer or Observer()
        self._clock = clock
        self._sleep = sleep
        self._aspired: Aspired | None = None
        self._looked = False
        self._tasks: dict[Harness, asyncio.Task[None]] = {}
        self._proofs: dict[Harness, asyncio.Task[None]] = {}
        self._settled = asyncio.Event()
        self._populated = asyncio.Event()
        self._idle = asyncio.Event()
        self._removed = False
        self._closed = False

    # ---- what others ask -----------------------------------------------------------------

    @property
    def available(self) -> list[Harness]:
        return [h for h in self.versions if h.state is State.AVAILABLE]

    def find(self, version: int) -> Harness | None:
        """The version's harness, the one that is alive if there is one."""
        found = [h for h in self.versions if h.version == version]
        return next((h for h in found if h.state is not State.END), found[-1] if found else None)

    async def settled(self) -> None:
        """Waits until the source has looked and every aspired version is available or has failed once."""
        await self._settled.wait()

    async def populated(self) -> None:
        """Waits until it is settled with a version that is available or has been given up."""
        await self._populated.wait()

    # ---- what others say -----------------------------------------------------------------

    def adopt(self, path: VersionPath, servable: dict[str, Any], note: Mapping[str, Any]) -> None:
        """A version that is served already, by a core that another control process has filled; `note` is what
        that has left there."""
        self.versions.append(
            Harness(
                self.model,
                path,
                state=State.AVAILABLE,
                servable=servable,
                memory_bytes=int(note.get("memory_bytes") or 0),
                settings=str(note.get("settings", "")),
                work_dir=str(note.get("work_dir", "")),
            )
        )

    def aspire(self, aspired: Aspired) -> None:
        """The source's word. The newest one counts; but one with a problem and without versions does not know
        what is to be served, and changes nothing."""
        if self._removed:
            return
        if aspired.problem and aspired.problem != self.problem:
            self._log.warning("source problem", model=self.model.name, why=aspired.problem)
        self.problem = aspired.problem
        self._looked = True
        if aspired.versions or not aspired.problem:
            self._aspired = aspired
        self._reconcile()

    def resume(self) -> None:
        """Goes on with a rollout that another control process had begun with adopted versions."""
        if self.model.rollout.mode != "off" and len(self.available) > 1:
            beside, newest = sorted(self.available, key=lambda h: h.version)[-2:]
            self._begin(newest, self._prove(newest, beside), "prove")

    def retry(self, version: int | None = None) -> None:
        """Tries what has failed, or waits for its next attempt, again at once: one version, or all."""
        for harness in list(self.versions):
            if version in (None, harness.version):
                harness.hurry.set()
                harness.not_renewed = None
                if harness.failed and harness.state is State.END:
                    self.versions.remove(harness)
        self._reconcile()

    def lost(self, harness: Harness, error: str) -> None:
        """An available version did not come back into a new core: it begins anew, with a trial."""
        self._end(harness, error)
        self._observer.ended(self.model.name, harness.version, error, 0.0)
        self.retry(harness.version)

    async def remove(self) -> None:
        """Unloads everything; returns when nothing is left."""
        self.aspire(Aspired(()))
        self._removed = True
        await self._idle.wait()

    async def close(self) -> None:
        """Gives up what is under way, and leaves the core as it is: the daemon ends."""
        self._closed = True
        tasks = [*self._proofs.values(), *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- from what is aspired to what is done ----------------------------------------------

    def _reconcile(self) -> None:
        """Brings the list of versions in line with what is aspired, then does what the policy says."""
        if self._closed:
            return
        if self._aspired is None:
            self._note()
            return
        wanted = {path.version: path for path in self._wanted(self._aspired)}
        for harness in self.versions:
            harness.aspired = harness.version in wanted
            if not harness.aspired:
                self._give_up(harness)
            elif harness.state is State.AVAILABLE and harness not in self._tasks:
                self._renew_if_changed(harness, wanted[harness.version])
        for path in wanted.values():
            last = self.find(path.version)
            if last is None or (last.state is State.END and self._again(last, path)):
                self.versions.append(Harness(self.model, path, settings=settings_of(self.model)))
        self._step()
        self._forget()
        self._note()

    def _wanted(self, aspired: Aspired) -> tuple[VersionPath, ...]:
        """What is aspired; when all of it has failed, with what serves, or else the newest hopeful spare."""
        if not aspired.versions or not all(self._has_failed(path) for path in aspired.versions):
            return aspired.versions
        serving = tuple(h.path for h in self.available)
        hopeful = [path for path in aspired.spares if not self._has_failed(path)]
        return (*aspired.versions, *(serving or hopeful[-1:]))

    def _has_failed(self, path: VersionPath) -> bool:
        last = self.find(path.version)
        return last is not None and last.failed and not self._again(last, path)

    @staticmethod
    def _again(ended: Harness, path: VersionPath) -> bool:
        """Whether a version at its end is to start over: not when this very content has failed."""
        return not ended.failed or ended.path.fingerprint != path.fingerprint

    def _step(self) -> None:
        """Does all that the policy asks for now."""
        while True:
            alive = [h for h in self.versions if h is self.find(h.version)]
            snapshots = [h.snapshot() for h in alive]
            action = self.policy(snapshots)
            if action is None:
                return
            if not permitted(action, snapshots):
                self._log.error(
                    "the policy asks for what cannot be done",
                    model=self.model.name,
                    step=action.step.value,
                    version=action.version,
                )
                return
            harness = next(h for h in alive if h.version == action.version)
            if action.step is Step.LOAD:
                harness.state = State.LOADING
                self._begin(harness, self._load(harness), "load")
            else:
                harness.state = State.UNLOADING
                self._begin(harness, self._unload(harness), "unload")

    def _begin(self, harness: Harness, work: Any, what: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{what}-{harness}")
        self._tasks[harness] = task
        task.add_done_callback(lambda done: self._done(harness, done))

    def _done(self, harness: Harness, task: asyncio.Task[None]) -> None:
        if self._tasks.get(harness) is task:
            del self._tasks[harness]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("a defect in loading", servable=harness, error=repr(error))
        if (task.cancelled() or error is not None) and harness.state is not State.AVAILABLE:
            self._end(harness, f"{type(error).__name__}: {error}" if error else "")
        self._reconcile()

    def _give_up(self, harness: Harness) -> None:
        """Stops what is no longer worth finishing. What the core has begun is finished, then unloaded."""
        if harness.state is State.START:
            harness.state = State.END
        elif harness in self._proofs:
            self._proofs[harness].cancel()
        elif harness.cancellable or (harness.renewal is not None and harness.renewal.cancellable):
            self._tasks[harness].cancel()

    async def _load(self, harness: Harness) -> None:
        """Attempts with pauses between them, until one succeeds or there have been enough."""
        pause_s = self._loading.retry_s
        while True:
            harness.attempts += 1
            beside = self._beside(harness)
            began = self._clock()
            self._observer.load_begins(self.model.name, harness.version, harness.attempts)
            try:
                await self._work.load(harness, beside)
                break
            except (ModelError, CoreError, CoreLost) as error:
                harness.error = str(error)
                left = self._loading.retries + 1 - harness.attempts
                self._log.error(
                    "not available",
                    servable=harness,
                    path=harness.path.path,
                    error=error,
                    attempts_left=left,
                )
                self._observer.load_failed(
                    self.model.name,
                    harness.version,
                    harness.path.path,
                    harness.error,
                    self._clock() - began,
                    max(left, 0),
                )
                if left <= 0:
                    self._end(harness, harness.error)
                    return
            harness.stage = {}
            harness.retry_at = self._clock() + pause_s
            harness.cancellable = True
            self._note()
            self._reconcile()
            await self._pause(harness, pause_s)
            harness.retry_at = None
            harness.cancellable = False
            pause_s = min(2 * pause_s, self._loading.retry_max_s)
        harness.error = ""
        harness.stage = {}
        harness.state = State.AVAILABLE
        self._observer.available(
            self.model.name, harness.version, harness.path.path, self._clock() - began, renewed=False
        )
        self._changed()
        if beside is not None:
            await self._prove(harness, beside)

    def _renew_if_changed(self, harness: Harness, path: VersionPath) -> None:
        """A version that is served is loaded anew when its model's settings have changed, or its files have
        another place."""
        settings = settings_of(self.model)
        as_wanted = (path.path, path.fingerprint, settings)
        if (path.path, settings) == (harness.path.path, harness.settings) or as_wanted == harness.not_renewed:
            return
        harness.held = True
        harness.renewal = Harness(self.model, path, state=State.LOADING, replacement=True, settings=settings)
        self._begin(harness, self._renew(harness, harness.renewal), "renew")

    async def _renew(self, harness: Harness, fresh: Harness) -> None:
        """Puts `fresh`, the same version, in the place of `harness`. When that fails, all stays as it is."""
        began = self._clock()
        self._observer.load_begins(self.model.name, harness.version, 1)
        try:
            await self._work.load(fresh, None)
        except Exception as error:  # a defect of ours, too: what is served stays
            why = str(error) if isinstance(error, FastServeError) else repr(error)
            self._log.error("not renewed", servable=harness, why=why)
            self._observer.load_failed(
                self.model.name, harness.version, fresh.path.path, why, self._clock() - began, 0
            )
            harness.error = f"served as it was loaded before, for this failed: {why}"
            harness.not_renewed = (fresh.path.path, fresh.path.fingerprint, fresh.settings)
        except asyncio.CancelledError:
            if self._closed:
                raise
        else:
            self._log.info("renewed", servable=harness)
            self._observer.available(
                self.model.name, harness.version, fresh.path.path, self._clock() - began, renewed=True
            )
            harness.error = ""
            before = harness.work_dir
            for what in ("model", "path", "settings", "servable", "memory_bytes", "work_dir"):
                setattr(harness, what, getattr(fresh, what))
            await self._work.tidy(before)
        finally:
            harness.renewal = None
            harness.held = False

    def _beside(self, harness: Harness) -> Harness | None:
        """The version that a new one has to be compared with before it gets all traffic."""
        if self.model.rollout.mode == "off":
            return None
        others = [h for h in self.available if h is not harness and h not in self._proofs]
        return max(others, key=lambda h: h.version, default=None)

    async def _prove(self, harness: Harness, beside: Harness) -> None:
        """Holds both versions until it is clear which one stays."""
        harness.held = beside.held = True
        began = self._clock()

        def told(text: str, seconds: float | None) -> None:
            self._observer.rollout(
                self.model.name, harness.version, f"{self.model.rollout.mode}: {text}", seconds
            )

        told(f"version {harness.version} beside {beside.version}", None)
        proof = asyncio.get_running_loop().create_task(
            self._work.prove(harness, beside), name=f"prove-{harness}"
        )
        self._proofs[harness] = proof
        try:
            await asyncio.wait([proof])
            del self._proofs[harness]
            if not proof.cancelled() and proof.exception() is None:
                told(f"version {harness.version} is promoted", self._clock() - began)
                return
            harness.state = State.UNLOADING
            if not proof.cancelled():
                told(str(proof.exception()), self._clock() - began)
                self._log.error("rolled back", servable=harness, to=beside, why=proof.exception())
                harness.error = str(proof.exception())
                harness.failed = True
            await self._unload(harness)
        finally:
            self._proofs.pop(harness, None)
            proof.cancel()
            harness.held = beside.held = False

    async def _pause(self, harness: Harness, seconds: float) -> None:
        harness.hurry.clear()
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(harness.hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _unload(self, harness: Harness) -> None:
        began = self._clock()
        self._observer.unload_begins(self.model.name, harness.version)
        await self._work.unload(harness)
        self._end(harness, harness.error if harness.failed else "")
        self._observer.ended(self.model.name, harness.version, harness.error, self._clock() - began)

    def _end(self, harness: Harness, error: str) -> None:
        harness.state = State.END
        harness.error = error
        harness.failed = bool(error)
        harness.stage = {}
        harness.retry_at = None
        harness.servable = None
        harness.cancellable = False

    def _forget(self) -> None:
        """Drops versions that came again, and the oldest of many that have ended."""
        newest = [h for h in self.versions if h is self.find(h.version)]
        ended = [h for h in newest if h.state is State.END and not h.aspired]
        dropped = set(ended[:-_ENDED_KEPT])
        self.versions = [h for h in newest if h not in dropped]

    def _note(self) -> None:
        """Wakes who waits for a state of the whole stream."""
        working = [h for h in self._tasks if h.retry_at is None and h not in self._proofs]
        waiting = any(h.state is State.START for h in self.versions)
        first = any(h.attempts <= 1 and h.state is State.LOADING for h in working)
        if self._looked and not first and not (waiting and working):
            self._settled.set()
            if any(h.state in (State.AVAILABLE, State.END) for h in self.versions):
                self._populated.set()
        if not self._tasks and all(h.state is State.END for h in self.versions):
            self._idle.set()
        else:
            self._idle.clear()
        self._changed()
