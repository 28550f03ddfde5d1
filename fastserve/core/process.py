"""The composition root of the core: what there is, in which order it starts, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Any

from fastserve._native.engine import Engine
from fastserve._native.front_end import FrontEnd, give_large_blocks_back
from fastserve._native.runtime import RuntimeFailure
from fastserve.core.commands import Commands
from fastserve.core.control_channel import ControlChannel
from fastserve.core.descriptors import Descriptors
from fastserve.core.drain import Drain
from fastserve.core.health import Health
from fastserve.core.listener import Listener
from fastserve.core.metadata import Metadata
from fastserve.core.model_service import ModelService
from fastserve.core.profiler import Profiler
from fastserve.core.reflection import SERVICES as REFLECTION
from fastserve.core.reflection import Reflection
from fastserve.core.service import Services
from fastserve.core.successor import Successor, send_output_to
from fastserve.version import __version__

CONTROL_FD = "FASTSERVE_CONTROL_FD"
# The control process gives a core five seconds after its drain.
_CLOSE_LOGS_S = 3.0


async def serve(control_fd: int) -> int:
    """Runs the core until it is drained. Returns the exit status."""
    loop = asyncio.get_running_loop()
    channel = await ControlChannel.open(control_fd)
    settings = await channel.configure()
    if "allocator" not in settings["ablate"]:
        give_large_blocks_back()
    try:
        core = Core(loop, channel, settings)
    except RuntimeFailure as failure:  # of the plug-in that decides what runs next
        raise SystemExit(f"fastserve.core: {failure.message}") from None
    # SIGINT reaches the whole foreground group: what it means is the control process's decision.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, core.drain.begin_default)
    # Everything that lives now lives as long as the process: no collection ever walks it again.
    gc.collect()
    gc.freeze()
    # Nobody may be reading what this process writes to its standard output and error.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    channel.serve(core.commands.run, core.control_lost, core.successor.next if core.successor else None)
    await core.drain.done.wait()
    await core.close_logs()
    core.close()
    await channel.close()
    return 0


class Core:
    """What a configured core consists of."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, channel: ControlChannel, settings: dict[str, Any]
    ) -> None:
        server, limits, loading = settings["server"], settings["limits"], settings["loading"]
        # Descriptors of the memories that the control process reads, by name.
        self._shared: dict[str, int] = settings.get("shared", {})
        self.engine = Engine(
            loop,
            server,
            limits,
            settings["executor"],
            loading,
            settings["ablate"],
            settings.get("policy_library"),
            self._shared.get("metrics", -1),
            self._shared.get("trace", -1),
        )
        if self.engine.nice_limited:
            channel.log(
                "info",
                "loads give way less than configured: this process may not raise a thread's priority again",
                nice=self.engine.nice,
                configured=loading["nice"],
            )
        if "metrics" in self._shared and not self.engine.counts:
            channel.log("warning", "calls are not counted: the memory for that cannot be used")
        if "trace" in self._shared and not self.engine.traces:
            channel.log("warning", "there can be no traces: the memory for them cannot be used")
        self._log = channel.log
        self.engine.tell_losses(self._tell_loss)
        self.health = Health()
        self.model_service = ModelService(
            self.engine.versions, channel.send, server.get("reload", "everywhere")
        )
        methods = [
            *Metadata(self.engine).methods(),
            *self.model_service.methods(),
            *self.health.methods(),
            *Profiler().methods(),
        ]
        if server["reflection"]:
            served = {method.path.split("/")[1] for method in methods}
            if self.engine.session_run:
                served.add("tensorflow.serving.SessionService")
            methods += Reflection(Descriptors.read(), {*served, *REFLECTION}).methods()
        self.services = Services(loop, methods, channel.log)
        self.front_end = FrontEnd(
            loop,
            self.engine,
            limits,
            self.services.paths(),
            self.services.start,
            server["io_threads"],
            server.get("tls"),
            self._handshake_refused,
        )
        self.listener = Listener(
            loop, self.front_end, settings["listeners"], limits["max_connections"], channel.log
        )
        self.channel = channel
        self.successor: Successor | None = None
        if (control_listener := settings.get("control_listener")) is not None:
            self.successor = Successor(loop, control_listener, self._hand_over)
        self._digest = settings.get("digest", "")
        self.drain = Drain(self.front_end, self.health, self.services, self.listener, server)
        self.commands = Commands(self, settings)

    def _handshake_refused(self, refused: int, peer: str, why: str) -> None:
        """Of the 1st, 2nd, 4th, 8th...: an attack must not fill the log."""
        self.channel.log("warning", "TLS handshakes refused", refused=refused, peer=peer, why=why)

    def control_lost(self) -> None:
        """The control process is gone. A core that serves goes on; one that never did is of no use."""
        send_output_to(None)
        self.model_service.control_lost()
        if not self.listener.started:
            self.drain.done.set()

    def _hand_over(self) -> tuple[dict[str, Any], list[int]]:
        """What the next control process is told and given: see successor."""
        assert self.successor is not None
        sockets = self.listener.sockets()
        hello = {
            "event": "hello",
            "pid": os.getpid(),
            "version": __version__,
            "adopted": True,
            "settings": self._digest,
            "draining": self.drain.begun,
            "listeners": [address for address, _ in sockets],
            "shared": list(self._shared),
        }
        return hello, [*(fd for _, fd in sockets), self.successor.fileno(), *self._shared.values()]

    def _tell_loss(self, stats: dict[str, Any]) -> None:
        """A request log loses what it should have."""
        recording = stats["recording"] or {}
        self._log(
            "warning",
            "requests are not logged",
            model=stats["model"],
            failed=stats["failed"] + recording.get("failed", 0),
            why=stats["error"] or recording.get("error", ""),
            dropped=stats["dropped"],
            skipped=stats["skipped"],
            written=stats["records"],
        )

    async def close_logs(self) -> None:
        """Brings what was logged to the disk, unless that takes too long."""
        try:
            async with asyncio.timeout(_CLOSE_LOGS_S):
                await self.engine.close_logs()
        except TimeoutError:
            self._log("warning", "request logs were not closed in time", seconds=_CLOSE_LOGS_S)

    def close(self) -> None:
        self.listener.close()
        self.services.close()
        self.front_end.abort()
        self.front_end.stop()
        # Executors may still be in a run that outlived the drain; the process ends without waiting for it.
