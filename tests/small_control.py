"""A control process in miniature, for tests that kill it: supervisor, adoption, a core on the null runtime.

    python small_control.py STATE_DIR SETTINGS

SETTINGS is JSON: {"listen": [...], "threads": n, "versions": [...]}. What happens is told on standard output,
one JSON object a line. SIGTERM drains the core. The log goes to STATE_DIR/log.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from core_driver import EXECUTOR, LIMITS, SERVER, servable

from fastserve.control.adoption import ControlListener, find_orphan, settings_digest
from fastserve.control.child_output import child_spawner
from fastserve.control.core_process import CoreProcess
from fastserve.control.listeners import Listeners
from fastserve.control.shared_memory import METRICS, SharedMemory
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.log import Log


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class SmallControl:
    """From the start to SIGTERM."""

    def __init__(self, state_dir: str, settings: dict[str, Any]) -> None:
        self.settings = settings
        os.makedirs(state_dir, exist_ok=True)
        self.log = Log(os.open(f"{state_dir}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        self.state = StateDir(state_dir, self.log)
        self.env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
        self.servables = [servable("m", version=version) for version in settings["versions"]]

    async def run(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        configure: dict[str, Any] = {
            "server": SERVER,
            "limits": LIMITS,
            "executor": {**EXECUTOR, "threads": self.settings["threads"]},
            "tensorflow": {"library_dir": ""},
            "loading": {"nice": 19},
            "ablate": [],
            "policy_library": None,
        }
        digest = settings_digest(configure, self.env, "")
        orphan = await find_orphan(self.state, self.log, self.env)
        with Listeners(self.settings["listen"], orphan.listeners if orphan else ()) as listeners:
            adopted = None
            if orphan is not None and orphan.fits(digest, listeners):
                adopted, control = orphan.adopt(self.state, self.answer)
            else:
                control = ControlListener.bind(self.state, orphan)
            shared = SharedMemory()
            supervisor = CoreSupervisor(
                child_spawner("fastserve.core", "core", self.env, self.log),
                {
                    **configure,
                    "digest": digest,
                    "control_listener": control.fd,
                    "listeners": [
                        {"fd": fd, "address": address}
                        for fd, address in zip(listeners.fds, listeners.addresses, strict=True)
                    ],
                },
                [*listeners.fds, control.fd],
                self.log,
                on_launch=lambda pid: tell(launched=pid),
                on_request=self.answer,
                shared=shared,
            )
            if adopted is not None:
                assert orphan is not None
                there = [row for row in orphan.servables if row["state"] == "published"]
                self.servables = [row["servable"] for row in there]
                supervisor.adopt(adopted, self.recover, orphan.shared)
                tell(adopted=adopted.pid, notes=[row["note"] for row in there])
                listeners.listen()
                await orphan.settle()
            else:
                await supervisor.start(self.recover)
                await self.recover(supervisor)
            listeners.listen()
            await supervisor.serve()
            if orphan is not None and adopted is None:
                tell(drained=await orphan.drain(0.0, 10.0))
            control.take_over()
            tell(
                ready=supervisor.pid,
                addresses=listeners.addresses,
                memory=f"/proc/{os.getpid()}/fd/{shared.current(METRICS)}",
            )
            await stop.wait()
            listeners.close()
            tell(ended=await supervisor.drain(0.0, 10.0))
            control.close()

    async def recover(self, core: CoreProcess | CoreSupervisor) -> None:
        for one in self.servables:
            await core.call("load", servable=one, note={"for": one["version"]})
            await core.call("publish", model=one["model"], version=one["version"])

    async def answer(self, method: str, message: bytes) -> tuple[int, str, bytes]:
        tell(request=method)
        return 0, "", b""


if __name__ == "__main__":
    asyncio.run(SmallControl(sys.argv[1], json.loads(sys.argv[2])).run())
