"""A trial of one version, seen from outside: a child process that may crash, hang or be killed.

The child (fastserve.control.trial) opens, compiles, warms and probes the version. It reads one JSON request
from stdin and writes JSON lines to stdout: {"stage": ...} as it goes, {"cached": {...}} for entries of the
compile cache that are worth keeping, and at last {"ok": true, "servable": {...}, "report": {...}} or
{"ok": false, "error": "..."}. The servable is what the core is told to load. Called by the manager and by
`fastserve inspect --xla`.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fastserve.config import LiteRT, Model, TensorFlow
from fastserve.control import trial_process
from fastserve.control.child_output import Output
from fastserve.control.core_process import describe_exit
from fastserve.control.memory import mib
from fastserve.control.trial_forks import TrialForks
from fastserve.control.trial_process import Child, MemoryExceeded
from fastserve.control.version_format import built_in_runtime
from fastserve.control.xla_cache import XlaCache
from fastserve.environment import with_xla_cache
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log

# A trial that was given way to for so much of its time gets no more of that.
_PATIENCE = 0.75
_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGABRT, -signal.SIGFPE}

OnStage = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """What a successful trial found out."""

    servable: dict[str, Any]
    report: dict[str, Any]


@dataclass
class _Ended:
    """How one child ended: its last line if there was one, its exit status, what it wrote to stderr, and the
    last stage that it told of."""

    final: dict[str, Any] | None
    status: int
    words: str
    stage: str


def trial_request(
    model: Model,
    version: VersionPath,
    tensorflow: TensorFlow,
    *,
    previous_choice: str | None,
    prepared_dir: str,
    litert: LiteRT | None = None,
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
            "runtime": built_in_runtime(model, version.path),
            "tflite_aliases": model.tflite_aliases,
        },
        "batching": msgspec.to_builtins(model.batching),
        "tensorflow": msgspec.to_builtins(tensorflow),
        "litert": msgspec.to_builtins(litert or LiteRT()),
        "prepared_dir": prepared_dir,
        "warmup_records": model.warmup.records,
    }


class TrialRunner:
    """Runs trials, one at a time: a trial measures costs, and two would measure each other.

    `nice`: how much a trial gives way, until `hurry_after_s` have passed or most of its time has. `cache`:
    where what it compiles is kept. `forks`: what makes the children that open SavedModels, if it can; else,
    and for what other runtimes open, `argv` is a child's command. `breaks`: whether trials take some while
    they give way.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Log,
        *,
        nice: int = 0,
        hurry_after_s: float = 60.0,
        cache: XlaCache | None = None,
        forks: TrialForks | None = None,
        breaks: bool = True,
    ) -> None:
        self._argv = argv
        self._env = env
        self._log = log
        self._nice = trial_process.starting_nice(nice)
        self._hurry_after_s = hurry_after_s
        self._cache = cache
        self._forks = forks
        self._breaks = breaks
        self._turn = asyncio.Lock()
        # Off while nothing is served: there is nobody to give way to. Read when a trial begins.
        self.give_way = True

    async def run(
        self,
        request: dict[str, Any],
        timeout_s: float,
        on_stage: OnStage,
        *,
        memory_limit_bytes: int | None = None,
        use_cache: bool = True,
    ) -> Trial:
        """ModelError, with the child's own words where it has any, when the version cannot be served.

        A trial that fails because of the compile cache is run again: with what is left of it, and at last
        without. `timeout_s` is for all of them.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_s):
                    ended = await self._run(request, timeout_s, on_stage, memory_limit_bytes, use_cache)
            except TimeoutError:
                raise ModelError(f"the trial was not done within trial_timeout_s = {timeout_s:g}") from None
            except MemoryExceeded as exceeded:
                used, left = mib(exceeded.used_bytes), mib(memory_limit_bytes or 0)
                raise ModelError(
                    f"the trial used {used} of memory, and {left} are left for it: raise [loading] "
                    "memory_limit_bytes if the machine has more, serve fewer or smaller versions, or lower "
                    "batching.max_batch_size"
                ) from None
        return _verdict(ended)

    async def _run(
        self,
        request: dict[str, Any],
        timeout_s: float,
        on_stage: OnStage,
        memory_limit_bytes: int | None,
        use_cache: bool,
    ) -> _Ended:
        cache = self._cache if use_cache else None
        if cache is not None and request["model"]["xla"] == "off":
            cache = None
        again = True
        while True:
            if cache is not None:
                why = await asyncio.to_thread(cache.prepare)
                if why:
                    self._log.warning("trial without the compile cache", model=_name(request), why=why)
                    cache = None
            ended = await self._once(request, timeout_s, on_stage, memory_limit_bytes, cache)
            if cache is None:
                return ended
            failed = (ended.final or {}).get("cache_failed")
            if failed is not None:
                why, entries = str(failed.get("why")), list(failed.get("entries") or ())
                await asyncio.to_thread(cache.discard_entries, entries)
            elif ended.final is None and ended.status in _CRASHES and ended.stage == "compile":
                why, entries = f"it ended with {describe_exit(ended.status)} while it compiled", []
            else:
                return ended
            self._log.warning("trial failed with the compile cache", model=_name(request), why=why)
            if not (again and entries):
                cache = None
            again = False

    async def _once(
        self,
        request: dict[str, Any],
        timeout_s: float,
        on_stage: OnStage,
        memory_limit_bytes: int | None,
        cache: XlaCache | None,
    ) -> _Ended:
        """One child. TimeoutError is the caller's; MemoryExceeded."""
        env: Mapping[str, str] = self._env
        if cache is not None:
            env = with_xla_cache(env, cache.directory, read_only=False)
        nice = self._nice if self.give_way else 0
        patience_s = min(self._hurry_after_s, timeout_s * _PATIENCE)
        process = await self._start(request, env, nice, patience_s)
        assert process.stderr
        stage = ""

        def note(message: dict[str, Any]) -> None:
            nonlocal stage
            stage = str(message["stage"])
            on_stage(message)

        output = Output(self._log, "trial", self._env)
        # Without a final line, what it wrote is the error; until then only what was asked for is shown.
        helpers = [asyncio.create_task(output.follow(process.stderr, show=False), name="trial-output")]
        own = {"xla_cache": str(cache.directory) if cache else "", "breaks": self._breaks and nice > 0}
        talking = asyncio.create_task(
            self._talk(process, request | own, note, cache),
            name="trial-talk",
        )
        if nice:
            trial_process.set_nice(process.pid, nice)
            helpers.append(asyncio.create_task(self._hurry(process, patience_s), name="trial-hurry"))
        watching = None
        if memory_limit_bytes is not None:
            watching = asyncio.create_task(
                trial_process.watch_memory(process, memory_limit_bytes), name="trial-memory"
            )
        try:
            if watching is not None:
                await asyncio.wait([talking, watching], return_when=asyncio.FIRST_COMPLETED)
                # Whoever kills the child says so before its lines end.
                if watching.done():
                    watching.result()
            final = await talking
            status = await process.wait()
            await helpers[0]
        except ValueError:
            raise ModelError("the trial wrote a line that is not JSON, or is too long") from None
        finally:
            await trial_process.end(process)
            rest = [task for task in (*helpers, talking, watching) if task is not None]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
        return _Ended(final, status, output.last_words, stage)

    async def _start(
        self, request: dict[str, Any], env: Mapping[str, str], nice: int, patience_s: float
    ) -> Child:
        if self._forks is not None and request["model"]["runtime"] == "tensorflow":
            forked = await self._forks.start(env, nice, patience_s)
            if forked is not None:
                return forked
        return await trial_process.start(self._argv, env)

    async def _hurry(self, process: Child, after_s: float) -> None:
        """After a while the trial gives way no longer."""
        await asyncio.sleep(after_s)
        if trial_process.set_nice(process.pid, 0):
            self._log.debug("trial at normal priority", pid=process.pid, after_s=after_s)

    async def _talk(
        self,
        process: Child,
        request: dict[str, Any],
        on_stage: OnStage,
        cache: XlaCache | None,
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
            elif "cached" in message:
                if cache is not None:
                    await asyncio.to_thread(cache.record, message["cached"])
            elif "ok" in message:
                final = message
        return final


def _name(request: dict[str, Any]) -> str:
    return f"{request['model']['name']}:{request['model']['version']}"


def _verdict(ended: _Ended) -> Trial:
    final = ended.final
    if final is not None and final["ok"] is True:
        servable, report = final.get("servable"), final.get("report")
        if isinstance(servable, dict) and isinstance(report, dict):
            return Trial(servable, report)
        raise ModelError("the trial reported success without a servable")
    if final is not None:
        raise ModelError(str(final.get("error", "the trial failed and gave no reason")))
    # Nobody here kills a trial whose end is still waited for.
    why = " (probably the kernel's out-of-memory killer)" if ended.status == -signal.SIGKILL else ""
    words = f"; it wrote: {ended.words}" if ended.words else ""
    raise ModelError(f"the trial ended with {describe_exit(ended.status)}{why}{words}")
