"""A child of this process that the event loop has not started itself, as asyncio.subprocess.Process would be.

Used by trial_forks, on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from fastserve.control.foreign_process import ForeignProcess


class Pipes:
    """Ours of the pipes to the standard streams of a child that is not there yet, and the child's."""

    def __init__(self, limit: int) -> None:
        """`limit`: of a line's bytes. OSError."""
        self._limit = limit
        self._open: list[int] = []
        self._transports: list[asyncio.BaseTransport] = []
        try:
            for _ in range(3):
                self._open += os.pipe()
        except OSError:
            self.close()
            raise

    @property
    def theirs(self) -> list[int]:
        """stdin, stdout, stderr, until `connect`."""
        return [self._open[0], self._open[3], self._open[5]]

    async def connect(self) -> tuple[asyncio.WriteTransport, asyncio.StreamReader, asyncio.StreamReader]:
        """Closes theirs, which the child has got, and opens ours."""
        for fd in self.theirs:
            os.close(fd)
        ours = [self._open[1], self._open[2], self._open[4]]
        self._open = []
        files = [os.fdopen(fd, mode, buffering=0) for fd, mode in zip(ours, ("wb", "rb", "rb"), strict=True)]
        loop = asyncio.get_running_loop()
        stdin, _ = await loop.connect_write_pipe(asyncio.Protocol, files[0])
        readers = [asyncio.StreamReader(limit=self._limit) for _ in range(2)]
        self._transports = [stdin]
        for reader, file in zip(readers, files[1:], strict=True):
            transport, _ = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                file,
            )
            self._transports.append(transport)
        return stdin, readers[0], readers[1]

    def close(self) -> None:
        """Whatever of them is open still."""
        for fd in self._open:
            os.close(fd)
        self._open = []
        for transport in self._transports:
            transport.close()


class Stdin(Protocol):
    """What is needed of the pipe to a child's stdin."""

    def write(self, data: bytes, /) -> None: ...

    def close(self) -> None: ...


class ForkedProcess(ForeignProcess):
    """A running child by its id. `returncode` is None until it has ended, then as subprocess has it."""

    def __init__(
        self,
        pid: int,
        pipes: Pipes,
        stdin: asyncio.WriteTransport,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        """OSError when it cannot be watched."""
        super().__init__(pid)
        self.stdin: Stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._pipes = pipes

    def close(self) -> None:
        """Once it has ended, and nothing that it wrote is of interest any more."""
        self._pipes.close()

    def _exit_status(self) -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            return super()._exit_status()
