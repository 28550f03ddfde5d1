"""The commands of the control process, and what they do. One method each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastserve._native.runtime import Runtime, RuntimeFailure
from fastserve._native.tls import ServerTls, TlsRefused
from fastserve.core.control_channel import Command, Refused

if TYPE_CHECKING:
    from fastserve.core.process import Core

Answer = dict[str, Any]


class Commands:
    """Runs commands on a core. Runtimes are opened at the first servable that needs them."""

    def __init__(self, core: Core, settings: dict[str, Any]) -> None:
        self._core = core
        self._tensorflow: dict[str, Any] = settings["tensorflow"]
        self._litert: dict[str, Any] = settings.get("litert", {"library_dir": ""})
        self._runtimes: dict[tuple[str, str], Runtime] = {}
        # By model and version, what `load` was given: the next control process asks for it.
        self._replacements: dict[tuple[str, int], Answer] = {}
        self._loaded: dict[tuple[str, int], Answer] = {}
        self._opening = asyncio.Lock()
        self._recordings: dict[str, asyncio.TimerHandle] = {}
        self._ending: asyncio.Task[Any] | None = None
        self._ops: dict[str, Callable[[Command], Awaitable[Answer]]] = {
            "load": self._load,
            "publish": self._publish,
            "replace": self._replace,
            "retire": self._retire,
            "close": self._close,
            "labels": self._labels,
            "credentials": self._credentials,
            "route": self._route,
            "logging": self._logging,
            "record": self._record,
            "log_stats": self._log_stats,
            "rollout_stats": self._rollout_stats,
            "hurry": self._hurry,
            "list": self._list,
            "inventory": self._inventory,
            "settle": self._settle,
            "stats": self._stats,
            "status": self._status,
            "respond": self._respond,
            "serve": self._serve,
            "lame_duck": self._lame_duck,
            "drain": self._drain,
        }

    async def run(self, op: str, command: Command) -> Answer:
        """Raises Refused."""
        method = self._ops.get(op)
        if method is None:
            raise Refused("UNIMPLEMENTED", f"no such command: {op}")
        try:
            return await method(command)
        except RuntimeFailure as failure:
            raise Refused(failure.code, failure.message) from None
        except (KeyError, ValueError, TypeError) as error:
            raise Refused("INVALID_ARGUMENT", f"{op}: {type(error).__name__}: {error}") from None

    async def _runtime(self, spec: dict[str, Any]) -> Runtime:
        """The runtime that a servable names. TensorFlow's library takes half a second to open, and a
        plug-in's as long as it likes: that happens at the first servable that needs it, and not on the loop,
        which may be serving others."""
        kind, library = spec["runtime"], spec.get("runtime_library") or ""
        async with self._opening:
            if (kind, library) not in self._runtimes:
                if library:
                    runtime = await self._core.engine.open_plugin(library)
                elif kind == "tensorflow":
                    runtime = await self._core.engine.open_tensorflow(
                        self._tensorflow["library_dir"], spec, self._tensorflow.get("op_libraries", ())
                    )
                elif kind == "litert":
                    runtime = await self._core.engine.open_litert(self._litert)
                else:
                    runtime = Runtime(kind)
                self._runtimes[kind, library] = runtime
        return self._runtimes[kind, library]

    async def _load(self, command: Command) -> Answer:
        spec = command["servable"]
        replacement = bool(command.get("replacement"))
        runtime = await self._runtime(spec)
        seconds, failed = await self._core.engine.load(runtime, spec, replacement)
        home = self._replacements if replacement else self._loaded
        home[spec["model"], spec["version"]] = {"servable": spec, "note": command.get("note")}
        return {"seconds": seconds, "warm_failures": failed}

    async def _hurry(self, command: Command) -> Answer:
        self._core.engine.hurry()
        return {}

    async def _publish(self, command: Command) -> Answer:
        model, version = command["model"], command["version"]
        await self._core.engine.publish(model, version)
        self._core.health.available(model, version)
        return {}

    async def _replace(self, command: Command) -> Answer:
        key = command["model"], command["version"]
        await self._core.engine.replace(*key)
        self._loaded[key] = self._replacements.pop(key)
        return {}

    async def _retire(self, command: Command) -> Answer:
        model, version = command["model"], command["version"]
        was_available = self._core.health.retired(model, version)
        try:
            await self._core.engine.retire(model, version)
        except RuntimeFailure:
            if was_available:
                self._core.health.available(model, version)
            raise
        return {}

    async def _close(self, command: Command) -> Answer:
        model, version = command["model"], command["version"]
        await self._core.engine.close(model, version)
        if self._replacements.pop((model, version), None) is None:
            self._loaded.pop((model, version), None)
        return {}

    async def _labels(self, command: Command) -> Answer:
        await self._core.engine.label(command["model"], command["labels"])
        return {}

    async def _credentials(self, command: Command) -> Answer:
        """What TLS speaks from now on (PEM; None: as before), and digests of the tokens that models take."""
        pem, tls = command["tls"], None
        if pem is not None:
            ca = pem["client_ca"]
            try:
                tls = ServerTls(pem["certificate"].encode(), pem["key"].encode(), ca.encode() if ca else None)
            except TlsRefused as refused:
                raise Refused("INVALID_ARGUMENT", str(refused)) from None
        await self._core.engine.grant(command["tokens"])
        if tls is not None:
            self._core.front_end.speak(tls)
        return {}

    async def _route(self, command: Command) -> Answer:
        await self._core.engine.route(command["model"], command["route"])
        return {}

    async def _rollout_stats(self, command: Command) -> Answer:
        stats: Answer = self._core.engine.rollout_stats(command["model"])
        return stats

    async def _logging(self, command: Command) -> Answer:
        await self._core.engine.log(command["model"], command["settings"])
        return {}

    async def _record(self, command: Command) -> Answer:
        model, settings = command["model"], command["settings"]
        if (timer := self._recordings.pop(model, None)) is not None:
            timer.cancel()
        recorded = await self._core.engine.record(model, settings)
        if settings is not None:
            # Whoever asked for it may be gone before it is over.
            self._recordings[model] = asyncio.get_running_loop().call_later(
                settings["timeout_s"], self._end_recording, model
            )
        return {"recorded": recorded}

    def _end_recording(self, model: str) -> None:
        del self._recordings[model]
        self._ending = asyncio.create_task(self._core.engine.record(model, None), name="end-recording")

    async def _log_stats(self, command: Command) -> Answer:
        return {"logs": self._core.engine.log_stats()}

    async def _list(self, command: Command) -> Answer:
        return {"servables": self._core.engine.versions()}

    async def _inventory(self, command: Command) -> Answer:
        """As list, with what each version was loaded from."""
        unknown: Answer = {"servable": None, "note": None}  # it is being opened
        return {
            "servables": [
                {**row, **self._loaded.get((row["model"], row["version"]), unknown)}
                for row in self._core.engine.versions()
            ]
        }

    async def _settle(self, command: Command) -> Answer:
        await self._core.channel.settled()
        return {}

    async def _stats(self, command: Command) -> Answer:
        core = self._core
        return {
            "pid": os.getpid(),
            "rss_bytes": _rss_bytes(),
            "system_allocs": core.engine.system_allocs() + core.front_end.system_allocs(),
            "connections": core.listener.connections(),
            "bytes_in_flight": core.front_end.bytes_in_flight(),
            "handshakes_refused": core.front_end.handshakes_refused(),
            "threads": _thread_cpu_us(),
            "signatures": core.engine.stats(),
            "logs": core.engine.log_stats(),
        }

    async def _status(self, command: Command) -> Answer:
        self._core.model_service.table(command["models"])
        self._core.health.models(command["models"])
        return {}

    async def _respond(self, command: Command) -> Answer:
        delivered = self._core.model_service.respond(
            command["request"], command["code"], command["message"], command["reply"]
        )
        return {"delivered": delivered}

    async def _serve(self, command: Command) -> Answer:
        if self._core.listener.needs_tls and self._core.front_end.tls is None:
            raise Refused("FAILED_PRECONDITION", "an address speaks TLS, and there is no certificate yet")
        self._core.engine.give_way()
        self._core.listener.start()
        self._core.health.serving()
        return {}

    async def _lame_duck(self, command: Command) -> Answer:
        """Not ready from here on, and serves all the same until it is told to drain."""
        self._core.health.draining()
        return {}

    async def _drain(self, command: Command) -> Answer:
        left = await self._core.drain.run(command["lame_duck_s"], command["drain_timeout_s"])
        return {"unanswered": left}


def _rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _thread_cpu_us() -> dict[str, int]:
    """CPU time by kind of thread, after the names that they give themselves."""
    kinds = {
        "fs-exec": "executors",
        "fs-load": "loaders",
        "fs-switch": "loaders",
        "fs-io": "io",
        "fs-unpack": "unpacker",
        "fs-shadow": "shadows",
        "fs-log": "logger",
    }
    tick_us = 1_000_000 // os.sysconf("SC_CLK_TCK")
    used: dict[str, int] = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/stat") as stat:
                name, fields = stat.read().split("(", 1)[1].rsplit(")", 1)
        except FileNotFoundError:
            continue
        kind = "loop" if int(thread) == os.getpid() else kinds.get(name.rstrip("-0123456789"), "other")
        user, system = fields.split()[11:13]
        used[kind] = used.get(kind, 0) + (int(user) + int(system)) * tick_us
    return used
