"""What is done to a version: prepared, tried in a child, opened by the core, published, retired, closed.

The effects behind a servable stream. Owned by the manager, on the event loop; what blocks runs in threads and
in children. Knows no policy: when something is done is the stream's business.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve.config import Loading, Model, TensorFlow
from fastserve.control.core_process import CoreProcess
from fastserve.control.memory import MemoryBudget
from fastserve.control.state import StateDir
from fastserve.control.stream import Harness
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.errors import CoreError, CoreLost, ModelError
from fastserve.log import Log

# Signatures that TensorFlow puts into a SavedModel for itself.
_INTERNAL = "__saved_model_"


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
        log: Log,
    ) -> None:
        self._tensorflow = tensorflow
        self._loading = loading
        self._core = core
        self._trials = trials
        self._state = state
        self._memory = memory
        self._log = log
        # Called after everything that status shows; the manager's.
        self.changed: Callable[[], None] = lambda: None
        # Loads that took too long and go on in the core: a version is not loaded again before they are over.
        self._overdue: dict[tuple[str, int], asyncio.Task[None]] = {}

    # ---- into the core -----------------------------------------------------------------

    async def load(self, harness: Harness, beside: Harness | None) -> None:
        """See stream.Work."""
        harness.cancellable = True
        try:
            await self._until_free(harness)
            size = await asyncio.to_thread(_file_bytes, harness.path.path)
            self._memory.check(size, "its files alone have")
            trial = await self._try(harness)
        finally:
            harness.cancellable = False
        harness.servable = _servable(harness.model, trial)
        harness.memory_bytes = int(trial.report.get("memory_bytes") or 0)
        with self._memory.taking(harness.memory_bytes):
            await self._open(harness)
        try:
            await self._publish(harness)
        except CoreError:
            await self._close(harness)
            raise

    async def prove(self, harness: Harness, beside: Harness) -> None:
        """See stream.Work."""

    async def restore(self, harness: Harness, core: CoreProcess) -> None:
        """Loads and publishes into a new core what an old one served. ModelError, CoreError; CoreLost when
        this core dies as well."""
        await self._load_into(core, harness)
        await core.call("publish", model=harness.model.name, version=harness.version)

    async def _try(self, harness: Harness) -> Trial:
        model = harness.model
        auto = model.xla == "auto"
        request = trial_request(
            model,
            harness.path,
            self._tensorflow,
            previous_choice=self._state.xla_choice(model.name, model.base_path) if auto else None,
            prepared_dir=self._state.prepared_dir(model.name, harness.version),
        )
        self._stage(harness, {"stage": "waiting for its trial"})
        self._log.debug("trial begins", servable=harness, path=harness.path.path, xla=model.xla)
        began = time.monotonic()
        try:
            trial = await self._trials.run(
                request, model.trial_timeout_s, lambda stage: self._stage(harness, stage)
            )
        finally:
            self._log.status("")
        choice = trial.report.get("xla_choice")
        if auto and isinstance(choice, str):
            self._state.remember_xla_choice(model.name, model.base_path, choice)
        self._tell(harness, trial, time.monotonic() - began)
        return trial

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
        for signature in trial.servable.get("signatures") or ():
            name = str(signature.get("name"))
            if name.startswith(_INTERNAL):
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
        for last in (False, True):
            try:
                await self._load_into(self._core, harness)
                break
            except CoreLost:
                if last:
                    raise ModelError("the core died twice while it loaded this version") from None
        self._log.status("")
        self._log.info("loaded", servable=harness, seconds=time.monotonic() - began)

    async def _load_into(self, core: CoreProcess | CoreSupervisor, harness: Harness) -> None:
        """One load in one core, within the time limit; at normal priority once it takes too long."""
        timeout_s = harness.model.trial_timeout_s
        # For the next control process, should this one die.
        note = {
            "path": harness.path.path,
            "fingerprint": harness.path.fingerprint,
            "memory_bytes": harness.memory_bytes,
        }
        loading = asyncio.ensure_future(core.call("load", servable=harness.servable, note=note))
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
        for last in (False, True):
            try:
                await self._core.call("publish", model=harness.model.name, version=harness.version)
                break
            except CoreLost:
                # The core that had it is gone, and it was not among what is served.
                if last:
                    raise ModelError("the core died twice while it published this version") from None
                await self._open(harness)
        self._log.info("published", servable=harness)

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
        self._log.info("unloaded", servable=harness, seconds=time.monotonic() - began)

    async def _close(self, harness: Harness) -> None:
        try:
            await self._core.call("close", model=harness.model.name, version=harness.version)
        except (CoreError, CoreLost) as error:
            self._log.debug("not closed", servable=harness, why=error)
        await asyncio.to_thread(
            shutil.rmtree, self._state.prepared_path(harness.model.name, harness.version), True
        )


def _servable(model: Model, trial: Trial) -> dict[str, Any]:
    """What the core loads: the trial's findings, and what only the configuration knows."""
    warmup = {**(trial.servable.get("warmup") or {}), "iterations": model.warmup.iterations}
    return {**trial.servable, "shed_predicted": model.shed_predicted, "warmup": warmup}


def _file_bytes(path: str) -> int:
    """The size of a version's weights, which memory will have to hold at the least."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in Path(path, "variables").iterdir())
    return 0
