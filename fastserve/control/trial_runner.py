"""A trial of one version, seen from outside: a child process that may crash, hang or be killed.

The child (fastserve.control.trial) opens, compiles, warms and probes the version. It reads one JSON
request from stdin and writes JSON lines to stdout: {"stage": ...} as it goes, and at last
{"ok": true, "servable": {...}, "report": {...}} or {"ok": false, "error": "..."}. The servable is what
the core is told to load. Called by the manager and by `fastserve inspect --xla`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from fastserve.config import Model, TensorFlow
from fastserve.control.child_output import Output
from fastserve.control.core_process import describe_exit
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log

_LINE_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Trial:
    """What a successful trial found out."""

    servable: dict[str, Any]
    report: dict[str, Any]


def trial_request(
    model: Model,
    version: VersionPath,
    tensorflow: TensorFlow,
    *,
    previous_choice: str | None,
    prepared_dir: str,
) -> dict[str, Any]:
    """The request for one version. `previous_choice`: what xla = "auto" chose before."""
    return {
        "model": {
            "name": model.name,
            "version": version.version,
            "path": version.path,
            "tags": list(model.tags),
            "xla": model.xla,
            "previous_choice": previous_choice,
            "row_wise": model.row_wise,
            "unknown_shapes": model.unknown_shapes,
            "weight": model.weight,
            "reserved_executors": model.reserved_executors,
        },
        "batching": msgspec.to_builtins(model.batching),
        "tensorflow": msgspec.to_builtins(tensorflow),
        "prepared_dir": prepared_dir,
    }


class TrialRunner:
    """Runs trials, one at a time: a trial measures costs, and two would measure each other."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Log, *, nice: int = 0) -> None:
        self._argv = argv
        self._env = env
        self._log = log
        self._nice = nice
        self._turn = asyncio.Lock()

    async def run(
        self, request: dict[str, Any], timeout_s: float, on_stage: Callable[[dict[str, Any]], None]
    ) -> Trial:
        """ModelError, with the child's own words where it has any, when the version cannot be served."""
        async with self._turn:
            process = await self._start()
            assert process.stderr
            output = Output(self._log, "trial", self._env)
            # Without a final line, what it wrote is the error; until then only what was asked for is shown.
            errors = asyncio.create_task(output.follow(process.stderr, show=False), name="trial-output")
            try:
                async with asyncio.timeout(timeout_s):
                    final = await self._talk(process, request, on_stage)
                    status = await process.wait()
                    await errors
            except TimeoutError:
                raise ModelError(f"the trial was not done within trial_timeout_s = {timeout_s:g}") from None
            except ValueError:
                raise ModelError("the trial wrote a line that is not JSON, or is too long") from None
            finally:
                await _end(process)
                errors.cancel()
                await asyncio.gather(errors, return_exceptions=True)
        return _verdict(final, status, output.last_words)

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._env,
                limit=_LINE_MAX_BYTES,
                # A group of its own: killed with whatever it starts, and out of the reach of Ctrl-C.
                start_new_session=True,
            )
        except OSError as error:
            raise ModelError(f"the trial process cannot be started: {error.strerror}") from None
        if self._nice:
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, self._nice)
        return process

    async def _talk(
        self,
        process: asyncio.subprocess.Process,
        request: dict[str, Any],
        on_stage: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any] | None:
        """Gives the request and takes the lines; the final one, None when there was none."""
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.close()
        final = None
        while line := await process.stdout.readline():
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("not an object")
            if "stage" in message:
                on_stage(message)
            elif "ok" in message:
                final = message
        return final


def _verdict(final: dict[str, Any] | None, status: int, output: str) -> Trial:
    if final is not None and final["ok"] is True:
        servable, report = final.get("servable"), final.get("report")
        if isinstance(servable, dict) and isinstance(report, dict):
            return Trial(servable, report)
        raise ModelError("the trial reported success without a servable")
    if final is not None:
        raise ModelError(str(final.get("error", "the trial failed and gave no reason")))
    why = " (out of memory?)" if status == -signal.SIGKILL else ""
    words = f"; it wrote: {output}" if output else ""
    raise ModelError(f"the trial ended with {describe_exit(status)}{why}{words}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the child and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
