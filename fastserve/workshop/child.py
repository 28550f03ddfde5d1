"""Children of the workshop's commands, in which models run: given bytes, they answer in bytes, and a model
that crashes or hangs brings down such a process and no other.

Ctrl-C is for the parent, which ends its child; when the parent dies, the kernel does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from fastserve.environment import child_argv
from fastserve.parent import die_with

# Longer than any model that somebody waits for, and a child that hangs ends after all.
LIMIT_S = 3600.0
_SAID_CHARS = 2000
_LAST_LINE_CHARS = 300


class ChildDied(Exception):
    """There is no answer. `how`: "ended with signal SIGSEGV"; `said`: the end of its standard error. The text
    has both, of `said` the last line."""

    def __init__(self, how: str, said: str) -> None:
        last = said.splitlines()[-1:]
        super().__init__(how + "".join(f": {line[:_LAST_LINE_CHARS]}" for line in last))
        self.how = how
        self.said = said


# ---- the parent's side ---------------------------------------------------------------------------


def ask(module: str, environment: Mapping[str, str], asked: bytes, limit_s: float = LIMIT_S) -> bytes:
    """What `python -m module`, whose main is `serve`, answers. ChildDied."""
    command = [*child_argv(module), str(os.getpid())]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    ) as child:
        try:
            answer, said = child.communicate(asked, timeout=limit_s)
        except subprocess.TimeoutExpired:
            _kill(child)
            _, said = child.communicate()
            raise ChildDied(f"gave no answer within {limit_s:g} s", _end_of(said)) from None
        except BaseException:
            _kill(child)
            child.wait()
            raise
    if child.returncode != 0 or not answer:
        raise ChildDied(f"ended with {_status(child.returncode)}", _end_of(said))
    return answer


def _kill(child: subprocess.Popen[bytes]) -> None:
    """It, and what it started: XLA has compilers."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end_of(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()[-_SAID_CHARS:]


# ---- the child's side ----------------------------------------------------------------------------


def serve(answer: Callable[[bytes], bytes]) -> None:
    """A child's main: answers what it is asked, and ends the process."""
    die_with(int(sys.argv[1]))
    # What libraries print to the standard output is no answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answers.write(answer(sys.stdin.buffer.read()))
    answers.flush()
    # TensorFlow's threads and static destructors have nothing left to do.
    os._exit(0)
