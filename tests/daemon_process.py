"""The daemon as users start it, for end-to-end tests: `fastserve serve` in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

T = TypeVar("T")


class Daemon:
    """`fastserve serve` with a configuration, in a directory of its own."""

    def __init__(self, directory: Path, config: str, *args: str, wrapper: Sequence[str] = ()) -> None:
        """`wrapper`: a command that runs the one after it."""
        self.directory = directory
        (directory / "config.toml").write_text(config)
        with open(directory / "log", "a") as log:
            self.process = subprocess.Popen(
                [
                    *wrapper,
                    sys.executable,
                    "-m",
                    "fastserve",
                    "serve",
                    "config.toml",
                    "--ready-file",
                    "ready.json",
                    *args,
                ],
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.line = ""
        self.ready: dict[str, Any] = {}

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def wait_ready(self) -> Daemon:
        """Blocks on the daemon's one line."""
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line, self.log
        self.ready = json.loads((self.directory / "ready.json").read_text())
        return self

    def channel(self, address: str | None = None) -> grpc.Channel:
        return grpc.insecure_channel(
            address or self.ready["addresses"][0], options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def admin(self, verb: str, **request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(self.ready["admin_socket"])
            client.sendall(json.dumps({"verb": verb, **request}).encode() + b"\n")
            with client.makefile() as lines:
                answer: dict[str, Any] = json.loads(lines.readline())
        return answer

    def end(self) -> None:
        """Ends what is left of it."""
        if self.process.poll() is None:
            try:  # which ends the core of now, too
                self.process.send_signal(signal.SIGTERM)
                self.until(lambda: "draining" in self.log or self.process.poll() is not None, 5)
                self.process.send_signal(signal.SIGINT)
                self.process.wait(5)
            except (AssertionError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        core = self.ready.get("core_pid")
        if core and alive(core):
            os.kill(core, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def counters(self, model: str, signature: str = "serving_default") -> dict[str, Any]:
        """What the core counts for one signature."""
        rows = self.admin("stats")["signatures"]
        found: dict[str, Any] = next(
            row for row in rows if (row["model"], row["signature"]) == (model, signature)
        )
        return found

    @property
    def core_pid(self) -> int:
        """Of the core that is serving now."""
        pid: int = self.admin("stats")["pid"]
        return pid

    def core_rss_bytes(self) -> int:
        return status_bytes(self.core_pid, "VmRSS")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def until(self, look: Callable[[], T | None], timeout: float = 60) -> T:
        """What another process is about to do has no event here: looks until it is done."""
        end = time.monotonic() + timeout
        while not (found := look()):
            assert time.monotonic() < end, self.log
            time.sleep(0.02)
        return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def status_bytes(pid: int, key: str) -> int:
    """A size from /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise KeyError(key)
