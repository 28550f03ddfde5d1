"""Recording: the next requests that a model answers, in a file, for whoever asks for them over the admin
socket.

The core writes them to a directory of the state directory, and ends by itself when it has as many as were
wanted, or after a while. Used by the admin verbs, on the event loop; what becomes of the file is the caller's
affair.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from fastserve.control.manager import Manager
from fastserve.control.supervisor import CoreSupervisor
from fastserve.errors import CoreError

MAX_RECORDS = 1_000_000
MAX_TIMEOUT_S = 24 * 3600.0
# Longer than the caller is going to wait: it ends the recording, or has gone.
_GRACE_S = 60.0

Answer = dict[str, Any]


class Recorder:
    """One recording of a model at a time."""

    def __init__(self, core: CoreSupervisor, manager: Manager, state_dir: str) -> None:
        self._core = core
        self._manager = manager
        self._directory = Path(state_dir, "recordings")

    async def begin(self, model: str, records: int, sampling_rate: float, timeout_s: float) -> Answer:
        """Begins one; where it is going to be. CoreError."""
        if not 1 <= records <= MAX_RECORDS:
            raise CoreError("INVALID_ARGUMENT", f"{records} records: expected 1 to {MAX_RECORDS}")
        if not 0 < sampling_rate <= 1:
            raise CoreError("INVALID_ARGUMENT", f"a sampling rate of {sampling_rate:g}: expected up to 1")
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise CoreError("INVALID_ARGUMENT", f"{timeout_s:g} seconds: expected up to {MAX_TIMEOUT_S:g}")
        self._manager.named(model)
        if await self._recording(model) is not None:
            raise CoreError("FAILED_PRECONDITION", f"requests of {model} are being recorded already")
        path = await asyncio.to_thread(self._place, model)
        await self._core.call(
            "record",
            model=model,
            settings={
                "path": path,
                "records": records,
                "sampling_rate": sampling_rate,
                "timeout_s": timeout_s + _GRACE_S,
            },
        )
        return {"file": path}

    async def progress(self, model: str) -> Answer:
        """How far it is: records, wanted, finished, failed, error. CoreError when there is none."""
        recording = await self._recording(model)
        if recording is None:
            raise CoreError("FAILED_PRECONDITION", f"no requests of {model} are being recorded")
        return recording

    async def end(self, model: str) -> Answer:
        """Ends it: what there is is in the file, which is not there when that is nothing. CoreError when it
        is over already."""
        answer = await self._core.call("record", model=model, settings=None)
        recorded = answer["recorded"]
        if recorded is None:
            raise CoreError("FAILED_PRECONDITION", f"no requests of {model} are being recorded")
        return {"file": recorded["path"], **recorded}

    async def _recording(self, model: str) -> Answer | None:
        answer = await self._core.call("log_stats")
        return next((row["recording"] for row in answer["logs"] if row["model"] == model), None)

    def _place(self, model: str) -> str:
        """A name for a new file; what was left of earlier ones goes."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._directory.glob("*/"):
            if old.name.startswith(f"model-{model}-"):
                for file in old.iterdir():
                    file.unlink(missing_ok=True)
                old.rmdir()
        return str(Path(tempfile.mkdtemp(prefix=f"model-{model}-", dir=self._directory), "requests"))
