"""What is done to a version: prepared, tried in a child, opened by the core, published, retired, closed.

The effects behind a servable stream. Owned by the manager, on the event loop; what blocks runs in threads and
in children. Knows no policy: when something is done is the stream's business.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fastserve.config import LiteRT, Loading, Model, TensorFlow
from fastserve.control.core_process import CoreProcess
from fastserve.control.memory import MemoryBudget
from fastserve.control.observer import Observer
from fastserve.control.plugins import make_loader, prepared_request
from fastserve.control.rollout import Decision, Figures
from fastserve.control.rollout_watch import RolloutWatch
from fastserve.control.state import StateDir
from fastserve.control.stream import Harness, Rejected
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.version_files import with_version_batching
from fastserve.control.xla_cache import XlaCache
from fastserve.errors import CoreError, CoreLost, ModelError
from fastserve.extensions import Prepared
from fastserve.log import Log
from fastserve.savedmodel import INTERNAL
from fastserve.tflite import MODEL as TFLITE

# With what the compile cache has; when the core cannot open that, compiled anew; and at last without XLA.
_PLANS = ("cached", "anew", "plain")


class VersionWork:
    """The Work of every stream."""

    def __init__(
        self,
        tensorflow: TensorFlow,
        loading: Loading,
        core: CoreSupervisor,
        trials: TrialRunner,
        state: StateDir,
        memory: MemoryBudget,
        cache: XlaCache | None,
        log: Log,
        litert: LiteRT | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._tensorflow = tensorflow
        self._litert = litert
        self._loading = loading
        self._core = core
        self._trials = trials
        self._state = state
        self._memory = memory
        self._cache = cache
        self._rollouts = RolloutWatch(core.call)
        self._log = log
        self._observer = observer or Observer()
        # Called after everything that status shows; the manager's.
        self.changed: Callable[[], None] = lambda: None
        # Loads that took too long and go on in the core: a version is not loaded again before they are over.
        self._overdue: dict[tuple[str, int], asyncio.Task[None]] = {}

    # ---- into the core -----------------------------------------------------------------

    async def load(self, harness: Harness, beside: Harness | None) -> None:
        """See stream.Work."""
        try:
            harness.work_dir = await asyncio.to_thread(
                self._state.work_dir, harness.model.name, harness.version
            )
        except OSError as error:
            raise ModelError(
                f"nothing can be written below the state directory: {error.strerror}; "
                "make room there, or set [server] state_dir"
            ) from None
        try:
            await self._load(harness, beside)
        except BaseException:
            await self.tidy(harness.work_dir)
            raise

    async def _load(self, harness: Harness, beside: Harness | None) -> None:
        for plan in _PLANS:
            harness.cancellable = True
            try:
                await self._until_free(harness)
                prepared = await self._prepare(harness)
                trial = await self._try(harness, prepared, plan)
            finally:
                harness.cancellable = False
            harness.servable = _servable(harness.model, trial)
            estimate = int(trial.report.get("memory_bytes") or 0)
            harness.memory_bytes = max(estimate, prepared.resident_bytes if prepared else 0)
            try:
                await self._open(harness)
                break
            except CoreError as error:
                if plan == "plain" or not _compiled(harness.servable):
                    raise
                self._log.warning("the core cannot open what was compiled", servable=harness, why=error)
                if self._cache is not None:
                    await asyncio.to_thread(self._cache.discard, harness.servable)
        try:
            if beside is not None:
                await self._rollouts.prepare(harness.model, beside.version, harness.version)
            await self._publish(harness)
        except CoreError:
            if beside is not None:
                await self._rollouts.clear(harness.model.name)
            await self._close(harness)
            raise

    async def prove(self, harness: Harness, beside: Harness) -> None:
        """See stream.Work."""
        began = time.monotonic()

        def tell(text: str, figures: Figures | None = None) -> None:
            harness.rollout = {
                "mode": harness.model.rollout.mode,
                "stable": beside.version,
                "new": harness.version,
                "share": harness.model.rollout.share,
                "seconds": round(time.monotonic() - began, 1),
                "text": text,
                "figures": None if figures is None else asdict(figures),
            }
            self.changed()

        tell(f"{harness.model.rollout.mode}: it begins")
        self._log.info(
            "rollout begins",
            servable=harness,
            beside=beside,
            mode=harness.model.rollout.mode,
            share=harness.model.rollout.share,
        )
        try:
            verdict = await self._rollouts.watch(harness.model, beside.version, harness.version, tell)
        finally:
            harness.rollout = None
        if verdict.decision is Decision.ROLLBACK:
            raise Rejected(f"rolled back to version {beside.version}: {verdict.reason}")
        self._log.info("promoted", servable=harness, why=verdict.reason)

    async def restore(self, harness: Harness, core: CoreProcess) -> None:
        """Loads and publishes into a new core what an old one served. ModelError, CoreError; CoreLost when
        this core dies as well."""
        # Damaged entries are removed: the core compiles once more, which nobody waits for who would not
        # anyway.
        await self._damaged(harness.servable or {})
        await self._load_into(core, harness)
        await core.call("publish", model=harness.model.name, version=harness.version)

    async def restore_routes(self, core: CoreProcess) -> None:
        """Rollouts go on in a new core. To be done before anything is published there."""
        for model, route in self._rollouts.routes().items():
            await core.call("route", model=model, route=route)

    async def _prepare(self, harness: Harness) -> Prepared | None:
        """What the model's loader makes of the version; None for SavedModels and TFLite models, which need
        nothing made."""
        loader = make_loader(harness.model)
        if loader is None:
            size = await asyncio.to_thread(_file_bytes, harness.path.path)
            self._memory.check(size, "its files alone have")
            return None
        self._stage(harness, {"stage": "prepare"})
        work_dir = os.path.join(harness.work_dir, "loader")
        await asyncio.to_thread(os.makedirs, work_dir)
        try:
            prepared = await asyncio.to_thread(loader.prepare, harness.path, work_dir)
        except ModelError:
            raise
        except Exception as error:  # whatever a stranger's loader does concerns this version
            raise ModelError(f"its loader failed: {type(error).__name__}: {error}") from error
        self._memory.check(prepared.resident_bytes, "its loader says it takes")
        return prepared

    async def _try(self, harness: Harness, prepared: Prepared | None, plan: str) -> Trial:
        model = harness.model if plan != "plain" else replace(harness.model, xla="off")
        if model.batching.version_file:
            model, ignored = await asyncio.to_thread(with_version_batching, model, harness.path.path)
            for what in ignored:
                self._log.warning(
                    "has no effect", servable=harness, file=model.batching.version_file, what=what
                )
        auto = model.xla == "auto"
        request = trial_request(
            model,
            harness.path,
            self._tensorflow,
            previous_choice=self._state.xla_choice(model.name, model.base_path) if auto else None,
            prepared_dir=os.path.join(harness.work_dir, "trial"),
            litert=self._litert,
        )
        if prepared is not None:
            request["model"] |= prepared_request(prepared)
        self._stage(harness, {"stage": "waiting for its trial"})
        self._log.debug("trial begins", servable=harness, path=harness.path.path, xla=model.xla)
        began = time.monotonic()
        try:
            for last in (False, True):
                trial = await self._trials.run(
                    request,
                    model.trial_timeout_s,
                    lambda stage: self._stage(harness, stage),
                    memory_limit_bytes=self._memory.room_bytes(),
                    use_cache=plan == "cached" or last,
                )
                bad = await self._damaged(trial.servable)
                if not bad or last:
                    break
                self._log.warning(
                    "compiled again", servable=harness, why="cache entries are damaged", count=len(bad)
                )
        finally:
            self._log.status("")
        choice = trial.report.get("xla_choice")
        if auto and isinstance(choice, str):
            self._state.remember_xla_choice(model.name, model.base_path, choice)
        self._tell(harness, trial, time.monotonic() - began)
        self._observer.trial_passed(model.name, harness.version, harness.path.path, trial.report)
        return trial

    async def _damaged(self, servable: dict[str, Any]) -> list[str]:
        """Entries of the compile cache that the core would miss."""
        if self._cache is None:
            return []
        return await asyncio.to_thread(self._cache.verify, servable)

    def _stage(self, harness: Harness, stage: dict[str, Any]) -> None:
        """What is being done to a version, for status and the terminal."""
        harness.stage = stage
        harness.stage_since = time.monotonic()
        words = " ".join(f"{value}" if key == "stage" else f"{key} {value}" for key, value in stage.items())
        self._log.status(f"{harness}: {words}")
        self._log.debug("progress", servable=harness, **stage)
        self.changed()

    def _tell(self, harness: Harness, trial: Trial, seconds: float) -> None:
        """Says what the trial found, above all what is not as one might expect, and why."""
        self._log.info(
            "trial passed", servable=harness, seconds=seconds, memory_bytes=trial.report.get("memory_bytes")
        )
        for ignored in trial.report.get("ignored") or ():
            self._log.warning(
                "has no effect", servable=harness, file="assets.extra/saved_model_config.pb", what=ignored
            )
        for signature in trial.servable.get("signatures") or ():
            name = str(signature.get("name"))
            if name.startswith(INTERNAL):
                continue
            if not signature.get("batched") and harness.model.row_wise is not False:
                self._log.info("not batched", servable=harness, signature=name, why=signature.get("why"))
            if not signature.get("compiled") and harness.model.xla != "off":
                self._log.info(
                    "runs without XLA", servable=harness, signature=name, why=signature.get("compiled_why")
                )

    async def _open(self, harness: Harness) -> None:
        """Loads. A core that dies meanwhile, for whatever reason, gets a second chance."""
        self._stage(harness, {"stage": "load"})
        began = time.monotonic()
        with self._memory.taking(harness.memory_bytes):
            for last in (False, True):
                try:
                    await self._load_into(self._core, harness)
                    break
                except CoreLost:
                    if last:
                        raise ModelError("the core died twice while it loaded this version") from None
        self._log.status("")
        seconds = time.monotonic() - began
        self._log.info("loaded", servable=harness, seconds=seconds)
        self._observer.opened(harness.model.name, harness.version, harness.path.path, seconds)

    async def _load_into(self, core: CoreProcess | CoreSupervisor, harness: Harness) -> None:
        """One load in one core, within the time limit; at normal priority once it takes too long."""
        timeout_s = harness.model.trial_timeout_s
        # For the next control process, should this one die.
        note = {
            "path": harness.path.path,
            "fingerprint": harness.path.fingerprint,
            "memory_bytes": harness.memory_bytes,
            "settings": harness.settings,
            "work_dir": harness.work_dir,
        }
        loading = asyncio.ensure_future(
            core.call("load", servable=harness.servable, note=note, replacement=harness.replacement)
        )
        hurry = asyncio.ensure_future(self._hurry(core, min(self._loading.hurry_after_s, timeout_s / 2)))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(loading)
        except TimeoutError:
            key = (harness.model.name, harness.version)
            self._overdue[key] = asyncio.create_task(
                self._end_overdue(key, loading), name=f"overdue-{harness}"
            )
            raise ModelError(f"the core did not load it within trial_timeout_s = {timeout_s:g}") from None
        except asyncio.CancelledError:
            loading.cancel()
            raise
        finally:
            hurry.cancel()

    @staticmethod
    async def _hurry(core: CoreProcess | CoreSupervisor, after_s: float) -> None:
        await asyncio.sleep(after_s)
        with suppress(CoreError, CoreLost):
            await core.call("hurry")

    async def _end_overdue(self, key: tuple[str, int], loading: asyncio.Future[Any]) -> None:
        """Closes what the core has loaded in the end, after all."""
        with suppress(CoreError, CoreLost):
            await loading
            await self._core.call("close", model=key[0], version=key[1])
        del self._overdue[key]

    async def _until_free(self, harness: Harness) -> None:
        """Waits for an earlier load of this version that is still going on in the core."""
        overdue = self._overdue.get((harness.model.name, harness.version))
        if overdue is not None:
            self._stage(harness, {"stage": "waiting for an earlier load to end"})
            await asyncio.wait([overdue])

    async def _publish(self, harness: Harness) -> None:
        op = "replace" if harness.replacement else "publish"
        for last in (False, True):
            try:
                await self._core.call(op, model=harness.model.name, version=harness.version)
                break
            except CoreLost:
                # The core that had it is gone, and it was not among what is served.
                if last:
                    raise ModelError("the core died twice while it published this version") from None
                await self._open(harness)
        self._log.info("published", servable=harness)
        self._observer.published(harness.model.name, harness.version, replacement=harness.replacement)

    # ---- out of the core ---------------------------------------------------------------

    async def unload(self, harness: Harness) -> None:
        """See stream.Work."""
        began = time.monotonic()
        harness.stage = {"stage": "drain"}
        harness.stage_since = began
        self.changed()
        try:
            await self._core.call("retire", model=harness.model.name, version=harness.version)
        except (CoreError, CoreLost) as error:
            # A new core does not have it; one that refuses has it in another state, and closing will tell.
            self._log.debug("not retired", servable=harness, why=error)
        await self._close(harness)
        route = self._rollouts.routes().get(harness.model.name)
        if route is not None and harness.version in (route["new"], route["stable"]):
            await self._rollouts.clear(harness.model.name)
        self._log.info("unloaded", servable=harness, seconds=time.monotonic() - began)

    async def _close(self, harness: Harness) -> None:
        try:
            await self._core.call("close", model=harness.model.name, version=harness.version)
        except (CoreError, CoreLost) as error:
            self._log.debug("not closed", servable=harness, why=error)
        await self.tidy(harness.work_dir)

    async def tidy(self, work_dir: str) -> None:
        """See stream.Work."""
        if work_dir:
            await asyncio.to_thread(shutil.rmtree, work_dir, True)


def _servable(model: Model, trial: Trial) -> dict[str, Any]:
    """What the core loads: the trial's findings, and what only the configuration knows."""
    warmup = {**(trial.servable.get("warmup") or {}), "iterations": model.warmup.iterations}
    return {**trial.servable, "shed_predicted": model.shed_predicted, "warmup": warmup}


def _compiled(servable: dict[str, Any] | None) -> bool:
    return any(signature.get("compiled") for signature in (servable or {}).get("signatures") or ())


def _file_bytes(path: str) -> int:
    """The size of a version's weights, which memory will have to hold at the least."""
    total = 0
    with suppress(OSError):
        total = sum(file.stat().st_size for file in Path(path, "variables").iterdir())
    with suppress(OSError):
        total = total or Path(path, TFLITE).stat().st_size
    return total
