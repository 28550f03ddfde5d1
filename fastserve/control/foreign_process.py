"""A process that this event loop has not started, as if it had: the core or the gateway of a control process
that has died.

What it ended with only its parent can know. Used by adoption, and as what forked_process builds on; on the
event loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from fastserve.control.core_process import EXIT_UNKNOWN


class ForeignProcess:
    """A running process by its id, held by a descriptor, so that the id cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        """OSError when there is no such process."""
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(self._fd, self._has_ended)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def leave(self) -> None:
        """Looks at it no more. `wait` then waits for ever."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _has_ended(self) -> None:
        self.leave()
        self.returncode = self._exit_status()
        self._ended.set()

    def _exit_status(self) -> int:
        return EXIT_UNKNOWN
