"""Trials as forks of a process that has TensorFlow's library open already, the fork server.

It is started with the first trial that asks for one, and kept. Whenever it cannot be started, dies or does
not do what it should, it is ended, None says that the trial has to be started from nothing, and the next one
tries again, unless that has failed some times in a row. Used by trial_runner, on the event loop; the other
side is fork_server.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from fastserve.control import trial_process
from fastserve.control.child_output import Output, follow_pipe, output_pipe
from fastserve.control.core_process import describe_exit
from fastserve.control.forked_process import ForkedProcess, Pipes
from fastserve.environment import child_argv
from fastserve.log import Log

_PACKET_MAX_BYTES = 1 << 16
# So long the server may take to open its libraries, once it gives way no more.
_START_S = 60.0
_FORK_S = 10.0
# So often in a row it may fail before trials do without it: each time costs more than it could save.
_MOST_FAILURES = 3
# So long its last words are read after its end.
_LAST_WORDS_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36
# What may differ between the server's environment and a trial's: TensorFlow reads it at its first session.
# Some others it reads when its library is opened.
_MAY_DIFFER = {"TF_XLA_FLAGS"}


class NoFork(Exception):
    """Why there is none."""


class TrialForks:
    """Starts trials, one at a time.

    `library_dir`: of TensorFlow's library; "": none is opened. `env`: the environment of the server, and but
    for what may differ, of the trials. `module`: whose `main` is the trial.
    """

    def __init__(
        self,
        library_dir: str,
        env: Mapping[str, str],
        log: Log,
        *,
        module: str = "fastserve.control.trial",
        start_s: float = _START_S,
        fork_s: float = _FORK_S,
    ) -> None:
        self._configure = {"module": module, "library_dir": library_dir}
        self._env = dict(env)
        self._log = log
        self._start_s = start_s
        self._fork_s = fork_s
        self._server: _Server | None = None
        self._failures = 0  # in a row

    @property
    def pid(self) -> int | None:
        """The server's, while there is one."""
        return self._server.process.pid if self._server is not None else None

    async def start(self, env: Mapping[str, str], nice: int, hurry_after_s: float) -> ForkedProcess | None:
        """A child with pipes for all three streams, as trial_process.start makes one; None: there is none.

        `nice`: how much the server gives way while it starts, until `hurry_after_s` have passed.
        """
        differs = {name for name in {*env, *self._env} if env.get(name) != self._env.get(name)}
        if differs - _MAY_DIFFER or self._failures >= _MOST_FAILURES:
            return None
        try:
            if self._server is None:
                self._server = await self._launch(nice, hurry_after_s)
            asking = asyncio.create_task(
                self._fork({name: env.get(name) for name in differs}), name="trial-fork"
            )
            try:
                forked = await asyncio.shield(asking)
            except asyncio.CancelledError:
                # Nobody else would end it, and wait for it.
                with suppress(NoFork, OSError):
                    await trial_process.end(await asking)
                raise
        except (NoFork, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._failures += 1
            self._log.warning("trial without the fork server", why=why)
            if self._failures == _MOST_FAILURES:
                self._log.warning("the fork server is given up: trials start from nothing")
            return None
        self._failures = 0
        return forked

    async def close(self) -> None:
        """Ends the server, if there is one; a trial that it has forked goes on."""
        server, self._server = self._server, None
        if server is not None:
            await server.end()

    async def _launch(self, nice: int, hurry_after_s: float) -> _Server:
        """A server that is ready. NoFork, OSError."""
        server = await _Server.start(self._env, self._log)
        try:
            if nice:
                trial_process.set_nice(server.process.pid, nice)
            await server.say(self._configure)
            try:
                answer = await server.answer(hurry_after_s if nice else self._start_s)
            except TimeoutError:
                if not nice:
                    raise
                trial_process.set_nice(server.process.pid, 0)
                answer = await server.answer(self._start_s)
            if answer.get("ready") is not True:
                raise NoFork(str(answer.get("error", "it is not ready")))
            # What it does from now on takes no time, and children begin with what it has.
            trial_process.set_nice(server.process.pid, 0)
        except TimeoutError:
            await server.end()
            raise NoFork(f"it was not ready within {self._start_s:g} s") from None
        except BaseException:
            await server.end()
            raise
        self._log.debug("fork server is ready", pid=server.process.pid)
        return server

    async def _fork(self, env: Mapping[str, str | None]) -> ForkedProcess:
        """NoFork, OSError; then there is no server any more."""
        assert self._server is not None
        pipes = Pipes(trial_process.LINE_MAX_BYTES)
        try:
            with _adopting():
                await self._server.say({"env": env}, pipes.theirs)
                try:
                    answer = await self._server.answer(self._fork_s)
                except TimeoutError:
                    raise NoFork(f"it did not answer within {self._fork_s:g} s") from None
            pid = answer.get("pid")
            if not isinstance(pid, int):
                raise NoFork(str(answer.get("error", "it gave no process id")))
            try:
                process = ForkedProcess(pid, pipes, *await pipes.connect())
            except BaseException:
                os.killpg(pid, signal.SIGKILL)
                await asyncio.to_thread(os.waitpid, pid, 0)
                raise
        except BaseException:
            pipes.close()
            # An answer that comes late would be taken for the next one's.
            await self.close()
            raise
        trial_process.offer_to_the_oom_killer(pid)
        return process


class _Server:
    """A running server, its socket and its output."""

    def __init__(
        self, process: asyncio.subprocess.Process, sock: socket.socket, following: asyncio.Task[None]
    ) -> None:
        self.process = process
        self._sock = sock
        self._following = following

    @classmethod
    async def start(cls, env: Mapping[str, str], log: Log) -> _Server:
        """OSError."""
        sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            with theirs:
                ours, output = output_pipe()
                try:
                    following = await follow_pipe(Output(log, "fork server", env), ours, "fork-server-output")
                    process = await asyncio.create_subprocess_exec(
                        *child_argv("fastserve.control.fork_server"),
                        str(theirs.fileno()),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=env,
                        pass_fds=[theirs.fileno()],
                        # As trials are (see trial_process): a group, and no session.
                        process_group=0,
                    )
                finally:
                    os.close(output)
        except BaseException:
            sock.close()
            raise
        trial_process.offer_to_the_oom_killer(process.pid)
        return cls(process, sock, following)

    async def say(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """NoFork, OSError."""
        try:
            socket.send_fds(self._sock, [json.dumps(message).encode()], list(fds))
        except ConnectionError:
            await self._has_ended()

    async def answer(self, timeout_s: float) -> dict[str, Any]:
        """TimeoutError, NoFork."""
        async with asyncio.timeout(timeout_s):
            data = await asyncio.get_running_loop().sock_recv(self._sock, _PACKET_MAX_BYTES)
            if not data:
                await self._has_ended()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise NoFork("it answered with what is no JSON object")
        return answer

    async def end(self) -> None:
        self._sock.close()
        # One that has ended by itself may have done so long ago, and its id be another process's.
        if self.process.returncode is None:
            await trial_process.end(self.process)
        # A trial that is under way has its own streams.
        await asyncio.wait([self._following], timeout=_LAST_WORDS_S)
        self._following.cancel()

    async def _has_ended(self) -> NoReturn:
        raise NoFork(f"it ended with {describe_exit(await self.process.wait())}")


@contextmanager
def _adopting() -> Iterator[None]:
    """Meanwhile orphans of this process's descendants become its children: what the fork server forks."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
