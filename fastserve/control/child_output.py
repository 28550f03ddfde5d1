"""What the children write to their standard error, and which of it is for the user.

TensorFlow writes pages of notes about processors and devices, some of them whatever
TF_CPP_MIN_LOG_LEVEL says. What is below the level asked for is dropped here; everything else, and what
is not TensorFlow's at all (a Python traceback, the text of a failed CHECK), goes to the log, line by
line. Used for the core, the gateway and trials, on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from fastserve.control.core_process import Process
from fastserve.environment import child_argv
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
# So long a child's last words are read after its end: what it has left behind may hold the pipe open.
_LAST_WORDS_S = 1.0


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
    """The core's process, or a gateway's, together with its output: at its end, that is read, too."""

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
        await asyncio.wait([self._following], timeout=_LAST_WORDS_S)
        self._following.cancel()
        return status

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()


def child_spawner(
    module: str, name: str, env: Mapping[str, str], log: Log
) -> Callable[[Mapping[str, str], Sequence[int]], Awaitable[CoreChild]]:
    """Starts a process that serves, with `env` and what is added to it, in a group of its own: Ctrl-C and the
    end of a terminal reach the control process, which drains it. It goes on when the control process dies."""

    async def spawn(extra: Mapping[str, str], fds: Sequence[int]) -> CoreChild:
        ours, theirs = output_pipe()
        following = await follow_pipe(Output(log, name, env), ours, f"{name}-output")
        try:
            process = await asyncio.create_subprocess_exec(
                *child_argv(module),
                env={**env, **extra},
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                process_group=0,
            )
        finally:
            # Without a child this was the last one: the follower ends.
            os.close(theirs)
        return CoreChild(process, following)

    return spawn


def output_pipe() -> tuple[int, int]:
    """A pipe for a child's output: (ours, the child's). Writing to it never waits: when nobody reads, because
    the control process is stuck, output is lost, and no thread that serves stands still."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    os.set_blocking(theirs, False)
    return ours, theirs


async def pipe_reader(fd: int) -> asyncio.StreamReader:
    """A reader of a pipe, which it closes at its end."""
    reader, _ = await _open_pipe(fd)
    return reader


async def follow_pipe(output: Output, fd: int, name: str) -> asyncio.Task[None]:
    """A task that takes what a child writes into its pipe. Whichever way it ends, it closes our end."""
    reader, transport = await _open_pipe(fd)
    following = asyncio.create_task(output.follow(reader), name=name)
    following.add_done_callback(lambda _: transport.close())
    return following


async def _open_pipe(fd: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader, transport


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
