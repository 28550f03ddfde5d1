"""A server as a child process: started, waited for, and ended with certainty, by its process id.

Whoever starts one leaves its `with` block before ending, on Ctrl-C too; when the parent is killed, the kernel
asks the child to end. Linux. Called on the main thread: the kernel's promise is bound to the thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from fastserve.bench.processes import tree
from fastserve.errors import FastServeError

T = TypeVar("T")

# Asks the kernel for SIGTERM when the parent ends, and becomes the command. A program of its own, for
# `preexec_fn` would have it forked: then gRPC, where it has been used, starts its threads anew in the child,
# which abort as they find their descriptors closed.
_ENDING_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_STOP_TIMEOUT_S = 15.0
_LOG_TAIL = 3000


class ChildError(FastServeError):
    """A server did not start, or died. The text has the end of what it said."""


class Child:
    """A process in a group of its own, so that Ctrl-C reaches only the parent, and in the parent's session:
    kernels with autogroups share processors between sessions first, whatever the priorities in them, and a
    load generator in another would wait behind the server's idle-class work, as no client elsewhere does.
    folder: it may write there; removed at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._temporary = tempfile.TemporaryDirectory(prefix="fastserve-bench-")
        self.folder = Path(self._temporary.name)
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, int] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", _ENDING_WITH_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )

    def wait_until(self, look: Callable[[], T | None], timeout_s: float) -> T:
        """Looks until there is something. Raises ChildError when the process ends, or takes longer."""
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise ChildError(
                    f"{self.name}: was not ready within {timeout_s:.0f} s; it said:\n{self.said()}"
                )
            time.sleep(0.02)
        return found

    def remember_family(self) -> None:
        """Notes its descendants of now: they are ended too, whatever sessions and parents they have then."""
        self._family |= tree(self.pid)

    def check(self) -> None:
        """Raises ChildError when the process has ended."""
        code = self._process.poll() if self._process else None
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ChildError(f"{self.name}: ended with {how}; it said:\n{self.said()}")

    def said(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        try:
            return self._log.read_text(errors="replace")[-_LOG_TAIL:].rstrip()
        except FileNotFoundError:
            return ""

    def log_lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines()

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL to all of it when that takes too long. Nothing when it has ended.

        Returns its exit code, negative for a signal; None when it was not running.
        """
        process, self._process = self._process, None
        try:
            if process is not None:
                if process.poll() is None:
                    self._family |= tree(process.pid)
                _end(process)
                return process.returncode
            return None
        finally:
            for pid, started in self._family.items():
                if started == tree(pid).get(pid):  # and not another process with its number
                    os.kill(pid, signal.SIGKILL)
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except BaseException:  # Ctrl-C again: no more waiting
        process.kill()
        process.wait()
        raise
