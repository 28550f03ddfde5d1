"""A route's worker: `python -m fastserve.gateway.worker`, a process with one thread, started by the gateway.

It speaks frames (frames.py) over the socket pair whose descriptor is in the environment. The gateway sends
"configure", then "request"s, "cancel"s and at last "stop"; the worker says "ready" or "failed", then
"answer"s and "log" lines. It imports the route's file once, calls its hooks, and calls the models over the
core's own unix socket. Plain hooks run on the event loop's thread: nothing else can happen meanwhile, and the
gateway sends one request at a time. A worker that does not come back is the gateway's to kill.

Must not know the daemon's control code or TensorFlow. Dies with the gateway.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

import uvloop

from fastserve.client import AsyncClient, RpcError
from fastserve.gateway.core_client import core_client
from fastserve.gateway.frames import FrameError, Head, Peer
from fastserve.gateway.worker_answer import Answer, answer_of, printable, refusal
from fastserve.gateway.worker_calls import Asking, result_of, rows_of
from fastserve.gateway.worker_hooks import HookError, Hooks, explain, load, loaded_files
from fastserve.gateway.worker_output import Output
from fastserve.parent import die_with
from fastserve.web import BadRequest, Call, Request, Response

WORKER_FD = "FASTSERVE_WORKER_FD"
PARENT_PID = "FASTSERVE_WORKER_PARENT"
# The answer to a request that was cancelled: nobody reads it.
_CANCELLED = Answer(499, [], b"")


class Worker:
    """Serves one connection to the gateway, from its first frame to its end."""

    def __init__(self) -> None:
        self.peer = Peer(self._frame, self._lost)
        self.ended = asyncio.Event()
        self._settings: Head = {}
        self._hooks: Hooks | None = None
        self._client: AsyncClient | None = None
        self._tasks: dict[int, asyncio.Task[Answer]] = {}
        self._dropped: set[asyncio.Task[Answer]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._modules = 0

    def printed(self, line: str) -> None:
        """A line of what the file prints."""
        self.peer.send(
            {"op": "log", "level": "info", "event": "hook output", "fields": {"line": printable(line)}}
        )

    # ---- what the gateway says ------------------------------------------------------------------

    def _frame(self, head: Head, body: bytes) -> None:
        match head["op"]:
            case "request":
                task = asyncio.create_task(self._answer(head, body), name=str(head["id"]))
                self._tasks[head["id"]] = task
                task.add_done_callback(self._done)
            case "cancel":
                if dropped := self._tasks.get(head["id"]):
                    self._dropped.add(dropped)
                    dropped.cancel()
            case "configure":
                self._settings = head
                self._starting = asyncio.create_task(self._start(), name="start")
            case "stop":
                self._stopping = True
                self._end_if_idle()

    def _done(self, task: asyncio.Task[Answer]) -> None:
        """Sends what a request came to, cancelled ones included: the gateway counts them."""
        number = int(task.get_name())
        del self._tasks[number]
        if task in self._dropped:
            self._dropped.discard(task)
            self._send(number, _CANCELLED)
        elif task.cancelled():
            self._send(number, self._defect("CancelledError, which nobody asked for", "a hook"))
        elif (failed := task.exception()) is not None:
            # An exception of a hook that fails even where it is put into words.
            self._send(number, self._defect(f"{type(failed).__name__}, while an error was told", "a hook"))
        else:
            try:
                self._send(number, task.result())
            except FrameError as error:
                self._send(number, self._defect(f"the answer is too large: {error}", "postprocess"))
            except Exception as error:  # what a hook put into its answer after that had been checked
                why = f"the answer cannot be sent: {type(error).__name__}"
                self._send(number, self._defect(why, "postprocess"))
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._stopping and not self._tasks:
            self.peer.close()

    def _lost(self, why: str) -> None:
        self.ended.set()

    # ---- start ----------------------------------------------------------------------------------

    async def _start(self) -> None:
        file = self._settings["file"]
        try:
            self._hooks = load(file)
            if self._hooks.setup is not None:
                try:
                    await result_of(self._hooks.setup())
                except (Exception, SystemExit) as error:
                    text, details = explain(error, file)
                    raise HookError(f"setup() failed: {text}", details) from None
        except HookError as error:
            self.peer.send(
                {"op": "failed", "why": printable(str(error)), "details": printable(error.details)}
                | {"files": loaded_files(file)}
            )
            self._stopping = True
            self._end_if_idle()
            return
        self._client = core_client(self._settings["address"], self._settings["timeout_s"])
        self.peer.send({"op": "ready", "concurrent": self._hooks.concurrent, **self._files()})

    def _files(self) -> dict[str, list[str]]:
        """The files to look at for a reload, whenever more have been imported."""
        if len(sys.modules) == self._modules:
            return {}
        self._modules = len(sys.modules)
        return {"files": loaded_files(self._settings["file"])}

    # ---- requests -------------------------------------------------------------------------------

    def _send(self, number: int, answer: Answer) -> None:
        said = {"status": answer.status, "headers": answer.headers, "error": answer.error}
        self.peer.send({"op": "answer", "id": number, **said, **self._files()}, answer.body)

    async def _answer(self, head: Head, body: bytes) -> Answer:
        hooks = self._hooks
        assert hooks is not None
        asking = Asking(self._client, self._settings, head)
        stage = "preprocess"
        try:
            request = Request(
                head["method"],
                head["path"],
                query=head["query"],
                headers=head["headers"],
                body=body,
                remote=head["remote"],
                predict=asking.predict,
            )
            wanted = await result_of(hooks.preprocess(request))
            if isinstance(wanted, Response):
                return answer_of(wanted)
            calls = self._calls(wanted)
            request.rows = rows_of(calls[0].inputs) if calls else 0
            stage = "inputs"
            outputs = await asking.all(calls)
            stage = "postprocess"
            returned = await result_of(
                hooks.postprocess(outputs if isinstance(wanted, list) else outputs[0], request)
            )
            return answer_of(returned)
        except BadRequest as error:
            return refusal(error.status, error.message)
        except RpcError as error:
            text = error.details.removeprefix(f"{self._settings['address']}: ")
            return refusal(error.code, text or error.code)
        except ValueError as error:
            if stage != "postprocess":
                return refusal(400, str(error))
            return self._failed(error, stage)
        except (Exception, SystemExit) as error:
            return self._failed(error, stage)

    def _calls(self, wanted: Any) -> list[Call]:
        """What preprocess returned, as calls of models. TypeError with what would be right."""
        if isinstance(wanted, list) and all(isinstance(call, Call) for call in wanted):
            return wanted
        if isinstance(wanted, Call):
            return [wanted]
        if not isinstance(wanted, Mapping):
            raise TypeError(
                f"preprocess returned {type(wanted).__name__}: expected the model's inputs (a dict of "
                "arrays), a fastserve.web.Call, a list of Calls, or a Response"
            )
        if not self._settings["model"]:
            raise TypeError(
                "preprocess returned inputs, and the route has no model: set `model` in [[routes]], or "
                "return fastserve.web.Call(MODEL, inputs)"
            )
        return [Call(self._settings["model"], wanted)]

    def _failed(self, error: BaseException, stage: str) -> Answer:
        text, details = explain(error, self._settings["file"])
        return self._defect(text, "preprocess" if stage == "inputs" else stage, details)

    def _defect(self, why: str, stage: str, details: str = "") -> Answer:
        """500: the client learns a number, which is in the log beside the reason."""
        incident = os.urandom(4).hex()
        fields = {"incident": incident, "hook": stage, "why": printable(why)}
        if details:
            fields["traceback"] = printable(details)
        self.peer.send({"op": "log", "level": "error", "event": "hook failed", "fields": fields})
        return refusal(500, f"{stage} of {self._settings['path']} failed; incident {incident} in the log")


async def serve(sock: socket.socket) -> None:
    worker = Worker()
    await asyncio.get_running_loop().create_connection(lambda: worker.peer, sock=sock)
    sys.stdout, sys.stderr = (Output(fd, worker.printed) for fd in (1, 2))
    try:
        await worker.ended.wait()
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def main() -> int:
    die_with(int(os.environ.pop(PARENT_PID)))
    # Ctrl-C in a terminal reaches the whole group: it is the gateway that ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(os.environ.pop(WORKER_FD)))
    sock.set_inheritable(False)  # what a hook starts must not hold the connection open
    sock.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sock))
    return 0


if __name__ == "__main__":
    sys.exit(main())
