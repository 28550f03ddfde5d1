"""Taking over the core of a control process that has died, without a lost request.

Such a core goes on serving and listens on a unix socket in the state directory (core/successor.py is its
side). `find_orphan` connects there. When the orphan is what the configuration asks for (`Orphan.fits`), it is
adopted: the supervisor goes on with it as with a core of its own. When it is not, another core is started on
the same listening sockets, loaded and told to serve, and then the orphan is drained: nobody is refused
meanwhile, for both accept from the same queues. Used by the daemon at its start, on the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastserve.config_address import parse_address
from fastserve.control.child_output import CoreChild, Output, follow_pipe, output_pipe
from fastserve.control.core_process import CoreProcess, OnRequest
from fastserve.control.foreign_process import ForeignProcess
from fastserve.control.listeners import Listener, Listeners, bind_unix
from fastserve.control.state import StateDir
from fastserve.errors import CoreError, CoreLost, StartError
from fastserve.log import Log
from fastserve.version import __version__

_PATIENCE_S = 15.0
_DRAIN_TIMEOUT_S = 30.0
_FDS_MAX = 250
_HELLO_MAX_BYTES = 1 << 20
# Of the environment, what changes how a core runs.
_ENVIRONMENT = (
    "TF_",
    "XLA_",
    "CUDA_",
    "NVIDIA_",
    "OMP_",
    "KMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "LD_",
    "MALLOC_",
)


def settings_digest(configure: Mapping[str, Any], env: Mapping[str, str], library_version: str) -> str:
    """What a core is told at its start, in a few letters: another digest, another core. The listening sockets
    are left out: they are compared as such."""
    told = {key: value for key, value in configure.items() if key not in ("listeners", "control_listener")}
    around = {key: value for key, value in env.items() if key.startswith(_ENVIRONMENT)}
    text = json.dumps([told, around, library_version], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ControlListener:
    """The unix socket on which the next control process will find the core: core.sock in the state directory.

    While another core still has that, this one is at next.sock until `take_over`."""

    def __init__(self, sock: socket.socket, path: str, final_path: str) -> None:
        self._sock = sock
        self._path = path
        self._final_path = final_path

    @classmethod
    def bind(cls, state: StateDir, orphan: Orphan | None = None) -> ControlListener:
        """A new one. StartError when the path cannot be had."""
        path = state.core_socket if orphan is None else state.next_core_socket
        sock = bind_unix(path, mode=0o600)
        sock.listen(1)
        return cls(sock, path, state.core_socket)

    @property
    def fd(self) -> int:
        return self._sock.fileno()

    def take_over(self) -> None:
        """From here on this is where the core is looked for."""
        if self._path != self._final_path:
            os.rename(self._path, self._final_path)
            self._path = self._final_path

    def close(self) -> None:
        """There is no core any more."""
        self._sock.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class Orphan:
    """A core that an earlier control process has left behind, and the connection with it."""

    def __init__(
        self, hello: dict[str, Any], process: ForeignProcess, core: CoreProcess, fds: Sequence[int]
    ) -> None:
        """`fds`: of its listeners, of the socket where it is found, of its shared memories."""
        addresses, memories = hello["listeners"], hello.get("shared", ())
        listening, shared = fds[: len(addresses)], fds[len(addresses) + 1 :]
        self._control_socket = socket.socket(fileno=fds[len(addresses)])
        self.pid: int = hello["pid"]
        self.version: str = hello["version"]
        self.settings_digest: str = hello["settings"]
        self.draining: bool = hello["draining"]
        self.listeners = [
            Listener(socket.socket(fileno=fd), parse_address(address))
            for fd, address in zip(listening, addresses, strict=True)
        ]
        # By name; whoever adopts it has them.
        self.shared: dict[str, int] = dict(zip(memories, shared, strict=True))
        # Each {"model", "version", "state", "servable", "note"}: as the core's `list` has it, and what `load`
        # was given. "published": it is served. Any other state was under way when the control process died.
        self.servables: list[dict[str, Any]] = []
        self._process = process
        self._core = core
        self._left = False

    @property
    def paths(self) -> list[str]:
        """What its versions were opened from: for StateDir.remove_prepared to keep."""
        return [row["servable"]["path"] for row in self.servables if row["servable"]]

    def fits(self, digest: str, listeners: Listeners) -> bool:
        """Whether it is the core that `digest` asks for, on exactly these sockets."""
        return (self.version, self.settings_digest) == (__version__, digest) and listeners.as_given

    def adopt(self, state: StateDir, on_request: OnRequest) -> tuple[CoreProcess, ControlListener]:
        """The core as one of our own, for CoreSupervisor.adopt, and the listener for the cores after it."""
        self._left = True
        self._core.on_request = on_request
        return self._core, ControlListener(self._control_socket, state.core_socket, state.core_socket)

    async def settle(self) -> None:
        """Finishes what the last control process had begun: waits for it, and closes every version that is
        not published. To be awaited before anything is loaded; takes as long as a load that was under way.
        When the core ends meanwhile, nothing is left to finish."""
        begun = {(row["model"], row["version"]) for row in self.servables if row["state"] != "published"}
        with suppress(CoreLost):
            await self._core.call("settle")
            for row in (await self._core.call("list"))["servables"]:
                if (row["model"], row["version"]) in begun and row["state"] == "loaded":
                    await self._core.call("close", model=row["model"], version=row["version"])

    async def drain(self, lame_duck_s: float, drain_timeout_s: float) -> bool:
        """Lets it answer what it has and end. False when it did not, and was killed."""
        self._left = True
        self._control_socket.close()
        self._close_shared()
        return await self._core.drain(lame_duck_s, drain_timeout_s)

    async def leave(self) -> None:
        """Leaves it as it was found: serving. Does nothing once it has been adopted or drained."""
        if self._left:
            return
        self._left = True
        self._control_socket.close()
        self._close_shared()
        for listener in self.listeners:
            listener.socket.close()
        await self._core.leave()
        self._process.leave()

    def _close_shared(self) -> None:
        for fd in self.shared.values():
            os.close(fd)
        self.shared = {}


async def find_orphan(state: StateDir, log: Log, env: Mapping[str, str]) -> Orphan | None:
    """The core that is still serving from an earlier control process with this state directory, if any.

    `env`: as for child_output.Output. StartError when there is one that does not answer."""
    orphan = await _find(state.core_socket, state, log, env)
    other = await _find(state.next_core_socket, state, log, env)
    if orphan is None and other is not None:
        os.rename(state.next_core_socket, state.core_socket)
        return other
    if other is not None:
        # The control process died just when one took the other's place: either would do.
        await other.drain(0.0, _DRAIN_TIMEOUT_S)
    return orphan


async def _find(path: str, state: StateDir, log: Log, env: Mapping[str, str]) -> Orphan | None:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno == errno.EAGAIN:  # its queue is full: it does not accept
            raise _no_answer(state) from None
        return None
    ours, theirs = output_pipe()
    try:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                socket.send_fds(sock, [b"{}\n"], [theirs])
                line, rest, fds = await _hello(sock)
        except TimeoutError:
            raise _no_answer(state) from None
        finally:
            os.close(theirs)
        hello = json.loads(line)
        process = ForeignProcess(hello["pid"])
    except (EOFError, OSError):
        # It was about to end: a core that never served, or one that had been drained.
        sock.close()
        os.close(ours)
        return None
    except BaseException:
        sock.close()
        os.close(ours)
        raise
    following = await follow_pipe(Output(log, "core", env), ours, "core-output")
    core = await CoreProcess.adopt(CoreChild(process, following), sock, rest, log)
    orphan = Orphan(hello, process, core, fds)
    if orphan.draining:
        await orphan.leave()
        return None
    try:
        orphan.servables = (await core.call("inventory"))["servables"]
    except CoreLost:
        await orphan.leave()
        return None
    except CoreError as error:
        # Another version's core, which is to be replaced anyway.
        log.warning("the core of an earlier fastserve does not say what it serves", error=error)
    return orphan


async def _hello(sock: socket.socket) -> tuple[bytes, bytes, list[int]]:
    """The first line, what came after it, and the descriptors that came with it. EOFError: there is none."""
    loop = asyncio.get_running_loop()
    got, fds, taken = b"", [], []
    try:
        while b"\n" not in got:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(sock)
            data, more, _flags, _address = socket.recv_fds(sock, _HELLO_MAX_BYTES, _FDS_MAX)
            fds += more
            for fd in more:
                os.set_inheritable(fd, False)  # recv_fds does not pass MSG_CMSG_CLOEXEC on
            if not data:
                raise EOFError
            got += data
        line, _, rest = got.partition(b"\n")
        fds, taken = [], fds
        return line, rest, taken
    finally:
        for fd in fds:
            os.close(fd)


def _no_answer(state: StateDir) -> StartError:
    pid = state.orphaned_core()
    how = f"process {pid}) does not answer; end it with kill {pid}" if pid else "not known) does not answer"
    return StartError(f"the core of an earlier fastserve that died ({how}")
