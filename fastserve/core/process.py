"""The composition root of the core: what there is, in which order it starts, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import Any

from fastserve._native.engine import Engine
from fastserve._native.front_end import FrontEnd, give_large_blocks_back
from fastserve.core.commands import Commands
from fastserve.core.control_channel import ControlChannel
from fastserve.core.drain import Drain
from fastserve.core.health import Health
from fastserve.core.listener import Listener
from fastserve.core.service import Services

CONTROL_FD = "FASTSERVE_CONTROL_FD"


async def serve(control_fd: int) -> int:
    """Runs the core until it is drained. Returns the exit status."""
    give_large_blocks_back()
    loop = asyncio.get_running_loop()
    channel = await ControlChannel.open(control_fd)
    settings = await channel.configure()
    core = Core(loop, channel, settings)
    # SIGINT reaches the whole foreground group: what it means is the control process's decision.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, core.drain.begin_default)
    # Everything that lives now lives as long as the process: no collection ever walks it again.
    gc.collect()
    gc.freeze()
    channel.serve(core.commands.run)
    await core.drain.done.wait()
    core.close()
    await channel.close()
    return 0


class Core:
    """What a configured core consists of."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, channel: ControlChannel, settings: dict[str, Any]
    ) -> None:
        server, limits, loading = settings["server"], settings["limits"], settings["loading"]
        self.engine = Engine(loop, server, limits, settings["executor"], loading, settings["ablate"])
        if self.engine.nice_limited:
            channel.log(
                "info",
                "loads give way less than configured: this process may not raise a thread's priority again",
                nice=self.engine.nice,
                configured=loading["nice"],
            )
        self.health = Health()
        self.services = Services(loop, [*self.health.methods()], channel.log)
        self.front_end = FrontEnd(
            loop, self.engine, limits, self.services.paths(), self.services.start, server["io_threads"]
        )
        self.listener = Listener(
            loop, self.front_end, settings["listeners"], limits["max_connections"], channel.log
        )
        self.drain = Drain(self.front_end, self.health, self.services, self.listener, server)
        self.commands = Commands(self, settings)

    def close(self) -> None:
        self.listener.close()
        self.services.close()
        self.front_end.abort()
        self.front_end.stop()
        # Executors may still be in a run that outlived the drain; the process ends without waiting for it.
