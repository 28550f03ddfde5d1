"""The fork server: a process that has imported what trials need and opened TensorFlow's library, and forks a
child for each of them. Python's start, the imports and the library's relocations, more than half of what a
small model's trial costs, are paid for once.

Run as `python -m fastserve.control.fork_server FD` by trial_forks, which speaks with it over the socket FD,
one JSON object a packet. It is sent {"module": ..., "library_dir": ...} and answers {"ready": true}; then,
each time, {"env": {...}}, what differs from this process's environment, with the child's stdin, stdout and
stderr, and answers {"pid": ...}. {"error": "..."} instead says why it forks none. It ends with the socket.

The child runs the module's `main`. It is a child of the control process and not of this one: whoever waits
for it learns how it ended, and this process may die meanwhile. It is forked while this process has one
thread, so that no lock that it inherits is held.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fastserve._native.breaks import Breaks
from fastserve.parent import die_with

_PACKET_MAX_BYTES = 1 << 16
# numpy's library of linear algebra starts threads when it is opened, unless it is told of one processor.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


class CannotFork(Exception):
    """Why no child comes of it."""


class ForkServer:
    """Forks children that run `module`. `parent`: the process that they become children of, which is that of
    this one, too."""

    def __init__(self, sock: socket.socket, parent: int) -> None:
        self._sock = sock
        self._parent = parent
        self._module = ""
        # Held open: the children find the library there.
        self._runtime: Any = None

    def run(self) -> None:
        """Returns when the socket's other end is closed."""
        try:
            with Breaks(os.getpriority(os.PRIO_PROCESS, self._parent)):
                self._prepare()
        except CannotFork as error:
            self._say({"error": str(error)})
            return
        self._say({"ready": True})
        while True:
            data, fds, _flags, _address = socket.recv_fds(self._sock, _PACKET_MAX_BYTES, 3)
            if not data:
                return
            try:
                self._say({"pid": self._fork(json.loads(data)["env"], fds)})
            except CannotFork as error:
                self._say({"error": str(error)})
            finally:
                for fd in fds:
                    os.close(fd)

    def _prepare(self) -> None:
        asked = json.loads(self._sock.recv(_PACKET_MAX_BYTES) or b"{}")
        if not asked:
            raise CannotFork("nobody says what for")
        kept = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(_ONE_THREAD)
        self._module = asked["module"]
        importlib.import_module(self._module)
        change_environment(kept)
        if asked["library_dir"]:
            self._runtime = _open_library(asked["library_dir"])
        # A collection would write to every object, and each child would copy them all.
        gc.collect()
        gc.freeze()

    def _fork(self, env: Mapping[str, str | None], fds: Sequence[int]) -> int:
        """The id of a child that runs the module. CannotFork."""
        if len(fds) != 3:
            raise CannotFork("the descriptors of its streams did not arrive")
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise CannotFork(f"the process to fork from has {threads} threads")
        go, let_go = os.pipe()
        told, tell = os.pipe()
        try:
            between = os.fork()
            if between == 0:
                self._fork_once_more(env, fds, go, let_go, tell)
            os.close(tell)
            tell = -1
            # Once that has ended, the child is the control process's, which asks to be given orphans.
            os.waitpid(between, 0)
            said = os.read(told, 32)
            if not said:
                raise CannotFork("the system refuses another process")
            pid = int(said)
            if _parent_of(pid) != self._parent:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise CannotFork("it did not become a child of the control process")
            os.write(let_go, b"1")
            return pid
        except OSError as error:
            raise CannotFork(error.strerror) from None
        finally:
            for fd in (go, let_go, told, tell):
                if fd >= 0:
                    os.close(fd)

    def _fork_once_more(
        self, env: Mapping[str, str | None], fds: Sequence[int], go: int, let_go: int, tell: int
    ) -> NoReturn:
        """In the process between this one and the child."""
        try:
            pid = os.fork()
            if pid == 0:
                os.close(let_go)
                os.close(tell)
                self._become(env, fds, go)
            # Before anybody else knows of it.
            os.setpgid(pid, pid)
            os.write(tell, str(pid).encode())
        finally:
            os._exit(0)

    def _become(self, env: Mapping[str, str | None], fds: Sequence[int], go: int) -> NoReturn:
        """In the child: runs the module, as if it were a process of its own."""
        status = 1
        try:
            if os.read(go, 1):
                die_with(self._parent)
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                for number in map(int, os.listdir("/proc/self/fd")):
                    if number > 2:
                        with suppress(OSError):  # the listing's own
                            os.close(number)
                change_environment(env)
                show_as([sys.executable, "-P", "-m", self._module])
                status = _exit_status(sys.modules[self._module].main)
        finally:
            os._exit(status)

    def _say(self, message: Mapping[str, object]) -> None:
        with suppress(ConnectionError):
            self._sock.send(json.dumps(message).encode())


def change_environment(changes: Mapping[str, str | None]) -> None:
    """Sets variables, and takes away those that shall be None."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def show_as(argv: Sequence[str]) -> None:
    """Has ps and its like show `argv` as this process's command, if it is no longer than what they show."""
    fields = Path("/proc/self/stat").read_text().rsplit(") ", 1)[1].split()
    start, end = int(fields[45]), int(fields[46])
    shown = Path("/proc/self/cmdline").read_bytes()
    wanted = b"".join(os.fsencode(word) + b"\0" for word in argv)
    # Only where the kernel's account of it is true.
    if start and len(wanted) <= end - start == len(shown) and ctypes.string_at(start, len(shown)) == shown:
        ctypes.memmove(start, wanted.ljust(end - start, b"\0"), end - start)


def _open_library(directory: str) -> Any:
    """Opens TensorFlow's library as a trial does. CannotFork."""
    from fastserve._native.runtime import Runtime, RuntimeFailure

    try:
        return Runtime("tensorflow", library_dir=directory)
    except RuntimeFailure as error:
        raise CannotFork(error.message) from None


def _parent_of(pid: int) -> int:
    """0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    except OSError:
        return 0


def _exit_status(main: Any) -> int:
    """What a process whose program is `main` would end with."""
    try:
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def main() -> None:
    parent = os.getppid()
    die_with(parent)
    ForkServer(socket.socket(fileno=int(sys.argv[1])), parent).run()


if __name__ == "__main__":
    main()
