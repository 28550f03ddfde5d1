"""What the children write to their standard error, and which of it is for the user.

TensorFlow writes pages of notes about processors and devices, some of them whatever
TF_CPP_MIN_LOG_LEVEL says. What is below the level asked for is dropped here; everything else, and what
is not TensorFlow's at all (a Python traceback, the text of a failed CHECK), goes to the log, line by
line. Used for the core and for trials, on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping

from fastserve.control.core_process import Process
from fastserve.log import Level, Log

# "I0000 00:00:1795390961.07   24499 port.cc:153] ..." and "2026-01-02 03:04:05.678: I tensorflow/x.cc:1] ..."
_TENSORFLOW = re.compile(
    r"(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: )?([IWEF])(?:\d{4} \d\d:\d\d:\d| \S+\.(?:cc|h):\d+\] )"
)
_NOTES = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\)|To enable the following instructions: |"
    r"INFO: Created TensorFlow Lite \w+ delegate "  # LiteRT, once a process
)
_SEVERITIES = "IWEF"
_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_LINE_MAX_CHARS = 2000
_KEPT_LINES = 20


def severity(line: str) -> str | None:
    """I, W, E or F for a line of TensorFlow's, None for anybody else's."""
    if _NOTES.match(line):
        return "I"
    found = _TENSORFLOW.match(line)
    return found[1] if found else None


class Output:
    """The lines of one child: shown as they come, and the last of them kept for an error's text."""

    def __init__(self, log: Log, who: str, env: Mapping[str, str]) -> None:
        """`env`: the child's environment, whose TF_CPP_MIN_LOG_LEVEL says what of TensorFlow's is wanted."""
        self._log = log
        self._who = who
        level = env.get("TF_CPP_MIN_LOG_LEVEL", "0")
        self._wanted = _SEVERITIES[min(int(level), 3) :] if level.isdigit() else _SEVERITIES
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def last_words(self) -> str:
        return "\n".join(self._kept)

    async def follow(self, reader: asyncio.StreamReader, *, show: bool = True) -> None:
        """Takes every line until the child closes its end. `show`: lines that are not TensorFlow's, too."""
        async for line in _lines(reader):
            kind = severity(line)
            if kind in (None, "E", "F"):
                self._kept.append(line)
            if show if kind is None else kind in self._wanted:
                self._log.event(_LEVELS.get(kind or "", "warning"), f"{self._who} output", line=line)


class CoreChild:
    """The core's process together with its output: its end is the end of both."""

    def __init__(self, process: Process, following: asyncio.Task[None]) -> None:
        self._process = process
        self._following = following

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        status = await self._process.wait()
        await asyncio.wait([self._following])
        return status

    def kill(self) -> None:
        self._process.kill()


def output_pipe() -> tuple[int, int]:
    """A pipe for a child's output: (ours, the child's). Writing to it never waits: when nobody reads, because
    the control process is stuck, output is lost, and no thread that serves stands still."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    os.set_blocking(theirs, False)
    return ours, theirs


async def pipe_reader(fd: int) -> asyncio.StreamReader:
    """A reader of a pipe, which it closes at its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines, decoded and cut to a bearable length; empty ones left out."""
    rest = b""
    while data := await reader.read(65536):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if text := _decoded(line):
                yield text
        rest = rest[: 4 * _LINE_MAX_CHARS]
    if text := _decoded(rest):
        yield text


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip()[:_LINE_MAX_CHARS]
