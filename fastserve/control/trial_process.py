"""A child process that gives way: its priority, its memory, its end.

Used by trial_runner, on the event loop. Knows Linux's /proc and nothing of trials: what runs in the child
does not matter here.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fastserve.control.forked_process import ForkedProcess
from fastserve.control.process_memory import held_bytes
from fastserve.errors import ModelError

LINE_MAX_BYTES = 64 << 20
# How often the child's memory is looked at.
_LOOK_S = 0.2
# Where its priority cannot be raised again, a child gives way only so much: it must end some day.
_MODERATE_NICE = 5
_CAP_SYS_NICE = 1 << 23
_NICE_MAX = 19

# Either was started here, or forked by the fork server.
Child = asyncio.subprocess.Process | ForkedProcess


class MemoryExceeded(Exception):
    """The child has been killed for what it held."""

    def __init__(self, used_bytes: int) -> None:
        super().__init__(used_bytes)
        self.used_bytes = used_bytes


async def start(argv: Sequence[str], env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Starts a child with pipes for all three streams. ModelError when it cannot be started."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            limit=LINE_MAX_BYTES,
            # A group of its own: killed with whatever it starts, and out of the reach of Ctrl-C. No session
            # of its own: kernels with autogroups share the processors between sessions, and the core is in
            # ours.
            process_group=0,
        )
    except OSError as error:
        raise ModelError(f"the trial process cannot be started: {error.strerror}") from None
    offer_to_the_oom_killer(process.pid)
    return process


def offer_to_the_oom_killer(pid: int) -> None:
    """When memory runs out, the kernel shall take this one and not the core."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


async def end(process: Child) -> None:
    """Ends the child and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    if isinstance(process, ForkedProcess):
        process.close()


def starting_nice(nice: int) -> int:
    """The nice value to start with, when it shall be taken back later."""
    return nice if _may_be_raised() else min(nice, _MODERATE_NICE)


def set_nice(pid: int, nice: int) -> bool:
    """Gives every thread of `pid` the nice value `nice`, or this process's own if that is more. Whether all
    took it; threads that end meanwhile do not count."""
    nice = min(_NICE_MAX, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    # In the idle class, whoever wakes takes the processor from a thread at once; by nice alone it would
    # finish its slice of some milliseconds first.
    policy = os.SCHED_IDLE if nice == _NICE_MAX else os.SCHED_OTHER
    done: set[int] = set()
    while fresh := _threads(pid) - done:
        for thread in fresh:
            try:
                # To Linux a thread is a process here. Threads that it starts from now on inherit the value.
                os.sched_setscheduler(thread, policy, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            except ProcessLookupError:
                pass
            except OSError:
                return False
        done |= fresh
    return True


async def watch_memory(process: Child, limit_bytes: int) -> None:
    """Returns when the child has ended. Kills it, and raises MemoryExceeded, when it holds more memory than
    `limit_bytes`; what it has mapped from files does not count, since the kernel can take that back."""
    while process.returncode is None:
        used = held_bytes(process.pid)
        if used > limit_bytes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise MemoryExceeded(used)
        await asyncio.sleep(_LOOK_S)


def _threads(pid: int) -> set[int]:
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


def _may_be_raised() -> bool:
    """Whether this process may give its own priority to a child that has less."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:") and int(line.split()[1], 16) & _CAP_SYS_NICE:
                return True
    except OSError:
        return False
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    # The limit counts from 1, for the nice value 19, to 40, for -20.
    return limit == resource.RLIM_INFINITY or 20 - limit <= own
