"""A core that serves nothing and answers every command: the far end of the control protocol.

In a test's own process, `FakeCores.spawn` stands in for starting the core; a test looks at the commands it
got, changes its answers, and kills it. Run as a script, it is a process: it accepts connections on the
listeners after `serve` and writes its process id to each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastserve.version import __version__

Answer = dict[str, Any]


class Died(Exception):
    """Raised by an answer: the core dies instead of answering."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class FakeCore:
    """One life. Also the process object that control holds."""

    def __init__(
        self, pid: int, sock: socket.socket, answer: Callable[[str, Answer], Any], hello: bool
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.commands: list[Answer] = []
        self.listener_fds: list[int] = []
        self._answer = answer
        self._sock = sock
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._writer: asyncio.StreamWriter | None = None
        self._task = asyncio.create_task(self._run(hello), name=f"fake-core-{pid}")

    async def wait(self) -> int:
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        self.die(-signal.SIGKILL)

    def die(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self._exited.set_result(status)
            self._task.cancel()
            if self._writer is not None:
                self._writer.close()
            self._sock.close()

    def send(self, message: object) -> None:
        assert self._writer is not None
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        self._writer.write(data)

    def request(self, number: int, method: str, message: bytes) -> None:
        """A client's call that control is to answer."""
        text = b64encode(message).decode()
        self.send({"event": "request", "request": number, "method": method, "message": text})

    def responses(self) -> dict[int, tuple[int, str, bytes]]:
        """What control has answered: code, message and reply of each request."""
        return {
            command["request"]: (command["code"], command["message"], b64decode(command["reply"]))
            for command in self.commands
            if command["op"] == "respond"
        }

    def ops(self) -> list[str]:
        """The commands so far, in words: "load m:1"."""
        return [_words(command) for command in self.commands]

    async def _run(self, hello: bool) -> None:
        self._sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=self._sock, limit=1 << 24)
        if hello:
            self.send({"event": "hello", "pid": self.pid, "version": "0"})
        answering = set()
        while line := await reader.readline():
            command = json.loads(line)
            if command["op"] != "status":  # which comes whenever something has changed
                self.commands.append(command)
            task = asyncio.create_task(self._reply(command))
            answering.add(task)
            task.add_done_callback(answering.discard)

    async def _reply(self, command: Answer) -> None:
        try:
            answer = self._answer(command["op"], command)
            if asyncio.iscoroutine(answer):
                answer = await answer
        except Died as died:
            self.die(died.status)
            return
        if self.returncode is None:
            self.send({"id": command["id"], "ok": True, **(answer or {})})
            if command["op"] == "drain":
                self.die(0)


class FakeOrphan:
    """A core that another control process has left behind: it listens on `path`, and gives its sockets away.

    It needs a process of its own, which ends when it has drained. Silent: it accepts nobody."""

    def __init__(self, path: str, process: subprocess.Popen[bytes], **hello: Any) -> None:
        self.process = process
        self.hello = {
            "event": "hello",
            "pid": process.pid,
            "version": __version__,
            "adopted": True,
            "settings": "digest",
            "draining": False,
            "listeners": [],
            **hello,
        }
        self.sockets: list[socket.socket] = []
        self.memories: list[int] = []  # of the names in hello's "shared"
        self.answers: dict[str, Callable[[Answer], Any]] = {
            "inventory": lambda command: {"servables": []},
            "drain": lambda command: process.kill(),
        }
        self.connections: list[FakeCore] = []
        self.said_with_hello = b""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.setblocking(False)
        self._sock.bind(path)
        self._sock.listen(1)
        self._task = asyncio.create_task(self._run(), name="fake-orphan")

    @property
    def now(self) -> FakeCore:
        return self.connections[-1]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._sock.close()
        for one in self.sockets:
            one.close()
        self.process.kill()
        self.process.wait()
        for connection in self.connections:
            connection.die(-9)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._sock)
            assert await loop.sock_recv(sock, 100) == b"{}\n"
            line = json.dumps(self.hello).encode() + b"\n" + self.said_with_hello
            fds = [*(one.fileno() for one in [*self.sockets, self._sock]), *self.memories]
            socket.send_fds(sock, [line], fds)
            self.connections.append(FakeCore(self.process.pid, sock, self._answer, hello=False))

    def _answer(self, op: str, command: Answer) -> Any:
        return self.answers.get(op, lambda command: {})(command)


class FakeCores:
    """All lives of the core in one test. `answers[op]`: a function from the command to the answer."""

    def __init__(self) -> None:
        self.lives: list[FakeCore] = []
        self.answers: dict[str, Callable[[Answer], Any]] = {}
        self.hello = True
        self.spawn_error: OSError | None = None

    async def spawn(self, env: Mapping[str, str], fds: Sequence[int]) -> FakeCore:
        if self.spawn_error is not None:
            raise self.spawn_error
        control = int(env["FASTSERVE_CONTROL_FD"])
        assert fds[0] == control
        sock = socket.socket(fileno=os.dup(control))
        core = FakeCore(1000 + len(self.lives), sock, self._answer, self.hello)
        core.listener_fds = list(fds[1:])
        self.lives.append(core)
        return core

    @property
    def now(self) -> FakeCore:
        return self.lives[-1]

    def _answer(self, op: str, command: Answer) -> Any:
        return self.answers.get(op, lambda command: {})(command)


def _words(command: Answer) -> str:
    servable = command.get("servable") or {}
    model = command.get("model") or servable.get("model")
    version = command.get("version") or servable.get("version")
    return f"{command['op']} {model}:{version}" if model else str(command["op"])


def main() -> None:
    """A core as a process, with blocking sockets: control's signals must not be needed to end it."""
    control = socket.socket(fileno=int(os.environ["FASTSERVE_CONTROL_FD"]))
    lines = control.makefile("rwb")

    def send(message: Answer) -> None:
        lines.write(json.dumps(message).encode() + b"\n")
        lines.flush()

    listeners: list[socket.socket] = []
    send({"event": "hello", "pid": os.getpid(), "version": "0"})
    for line in lines:
        command = json.loads(line)
        op = command["op"]
        if op == "configure":
            listeners = [socket.socket(fileno=listener["fd"]) for listener in command["listeners"]]
        send({"id": command["id"], "ok": True, "seconds": 0.0, "pid": os.getpid()})
        if op == "drain":
            return
        if op == "serve":
            import threading

            for listener in listeners:
                listener.setblocking(True)
                threading.Thread(target=_greet, args=(listener,), daemon=True).start()


def _greet(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.sendall(str(os.getpid()).encode())


if __name__ == "__main__":
    main()
