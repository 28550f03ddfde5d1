"""Drives a core process as the control process does, one command at a time and without a loop.

For tests of the data plane alone: models run on the null runtime, so neither TensorFlow nor a trial is
needed. Every wait has a limit.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fastserve._native.metrics import Metrics, MetricsSnapshot
from fastserve.control.shared_memory import METRICS, SIZES, TRACE, make_memory
from fastserve.protos import message

PATIENCE_S = 30.0
PREDICT = "/tensorflow.serving.PredictionService/Predict"

SERVER = {
    "io_threads": 0,
    "lame_duck_s": 0.0,
    "drain_timeout_s": 10.0,
    "reply_compression": "match",
    "tensor_content_replies": False,
    "reflection": True,
    "session_run": False,
    "check_method_names": False,
}
LIMITS = {
    "max_message_bytes": 256 << 20,
    "max_compressed_bytes": 64 << 20,
    "max_connection_bytes": 512 << 20,
    "max_total_bytes": 4 << 30,
    "max_connections": 10000,
    "max_concurrent_streams": 1024,
    "max_header_bytes": 16384,
    "request_timeout_s": 60.0,
    "stall_timeout_s": 60.0,
    "keepalive_s": 300.0,
    "keepalive_timeout_s": 20.0,
    "reset_burst": 5000,
    "reset_per_s": 500,
}
EXECUTOR = {"threads": 1, "spin_us": 0, "load_threads": 1}
_BATCHING = {
    "max_batch_size": 512,
    "batch_timeout_us": 0,
    "max_enqueued_batches": 100,
    "num_batch_threads": 0,
    "split_large_batches": True,
    "refuse_larger": False,
    "pad_variable_length_inputs": False,
    "broadcast": [],
}


class Refused(Exception):
    """The core answered a command with an error."""


def servable(
    model: str = "m",
    *,
    version: int = 1,
    options: str = "",
    inner: int = 1,
    batched: bool = True,
    warmup: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A version on the null runtime: x [-1, inner] float -> y of the same shape."""

    def port(alias: str) -> dict[str, Any]:
        return {"alias": alias, "tensor": f"{alias}:0", "dtype": 1, "dims": [-1, inner]}

    return {
        "model": model,
        "version": version,
        "path": f"null:{options}",
        "runtime": "null",
        "tags": ["serve"],
        "session_config": "",
        "plain_config": None,
        "signatures": [
            {
                "name": "serving_default",
                "inputs": [port("x")],
                "outputs": [port("y")],
                "compiled_outputs": None,
                "batched": batched,
                "why": "",
                "compiled": False,
                "compiled_why": "",
                "buckets": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
                "costs_us": {},
            }
        ],
        "batching": _BATCHING,
        "warmup": warmup,
    }


def predict_request(model: str, content: bytes, dims: list[int]) -> bytes:
    """A PredictRequest with one float input, x."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = model
    x = request.inputs["x"]
    x.dtype = 1
    for dim in dims:
        x.tensor_shape.dim.add(size=dim)
    x.tensor_content = content
    encoded: bytes = request.SerializeToString()
    return encoded


def predict_reply(data: bytes) -> list[float]:
    """The values of y."""
    reply = message("tensorflow.serving.PredictResponse").FromString(data)
    return list(reply.outputs["y"].float_val)


class Core:
    """A core process that listens on 127.0.0.1 and a unix socket. Use as a context manager: it is killed at
    the end if it has not ended itself."""

    io_threads = 0  # for the tests to remember

    def __init__(
        self,
        *,
        tls: bool = False,
        ablate: Iterable[str] = (),
        policy_library: str | None = None,
        environment: Mapping[str, str] | None = None,
        counting: bool = True,
        trace: int | None = None,
        **settings: dict[str, Any],
    ) -> None:
        """settings: server, limits, executor, loading, tensorflow and litert, each with what differs from the
        usual. environment: what is added to this process's. tls: the TCP address speaks TLS, for which the
        command `credentials` is due before it serves; the unix sockets are plain in any case. Of these one is
        the admin address, and one is as the gateway's for REST. counting: it has a memory for that. trace:
        the descriptor of a memory, the caller's, in which it tells what it does."""
        self._folder = tempfile.TemporaryDirectory(prefix="fastserve-core-")
        self.unix_address = f"unix:{self._folder.name}/core.sock"
        self.admin_address = f"unix:{self._folder.name}/admin.sock"
        self.rest_address = f"unix:{self._folder.name}/rest.sock"
        tcp = socket.create_server(("127.0.0.1", 0), backlog=4096)
        unix, admin, rest = (socket.socket(socket.AF_UNIX) for _ in range(3))
        addresses = (self.unix_address, self.admin_address, self.rest_address)
        for sock, address in zip((unix, admin, rest), addresses, strict=True):
            sock.bind(address.removeprefix("unix:"))
            sock.listen(4096)
        self.port: int = tcp.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._listeners = [tcp, unix, admin, rest]
        self._memory = make_memory(METRICS, SIZES[METRICS]) if counting else -1
        fds = [sock.fileno() for sock in self._listeners] + ([self._memory] if counting else [])
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fastserve.core"],
                pass_fds=[theirs.fileno(), *fds, *([] if trace is None else [trace])],
                env={**os.environ, **(environment or {}), "FASTSERVE_CONTROL_FD": str(theirs.fileno())},
            )
        ours.settimeout(PATIENCE_S)
        self._lines = ours.makefile("rwb")
        ours.close()  # the file keeps it open
        self._last_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        try:
            self._read()
            assert self.events[0]["event"] == "hello"
            self.call(
                "configure",
                listeners=[
                    {
                        "fd": sock.fileno(),
                        "address": "",
                        "tls": tls and sock is tcp,
                        "admin": sock is admin,
                        "transport": "rest" if sock is rest else "grpc",
                    }
                    for sock in self._listeners
                ],
                server={
                    **SERVER,
                    **({"tls": {"handshake_timeout_s": 10.0}} if tls else {}),
                    **settings.get("server", {}),
                },
                limits={**LIMITS, **settings.get("limits", {})},
                executor={**EXECUTOR, **settings.get("executor", {})},
                tensorflow={"library_dir": "", **settings.get("tensorflow", {})},
                litert={"library_dir": "", "run_threads": 1, "interpreters": 1, **settings.get("litert", {})},
                loading={"nice": 19, **settings.get("loading", {})},
                ablate=list(ablate),
                policy_library=policy_library,
                shared={
                    **({METRICS: self._memory} if counting else {}),
                    **({} if trace is None else {TRACE: trace}),
                },
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Core:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._lines.close()
        for listener in self._listeners:
            listener.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        self._folder.cleanup()

    def begin(self, op: str, **params: object) -> int:
        """Sends a command; its number is for `finish`."""
        self._last_id += 1
        self._lines.write(json.dumps({"id": self._last_id, "op": op, **params}).encode() + b"\n")
        self._lines.flush()
        return self._last_id

    def finish(self, number: int) -> dict[str, Any]:
        """Waits for an answer. Raises Refused."""
        while number not in self._answers:
            self._read()
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise Refused(f"{answer['code']}: {answer['error']}")
        return answer

    def call(self, op: str, **params: object) -> dict[str, Any]:
        return self.finish(self.begin(op, **params))

    def event(self, name: str) -> dict[str, Any]:
        """Waits for the next event of a kind, and takes it."""
        while True:
            for number, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(number)
            self._read()

    def abandon(self) -> None:
        """As a control process that dies: it is gone, the core's sockets stay."""
        self._lines.close()

    def serve(self, *servables: dict[str, Any]) -> None:
        """Loads and publishes versions, and starts accepting."""
        for one in servables:
            self.call("load", servable=one)
            self.call("publish", model=one["model"], version=one["version"])
        self.call("serve")

    def stats(self) -> dict[str, Any]:
        return self.call("stats")

    def metrics(self) -> MetricsSnapshot:
        """What it has counted. It does not notice."""
        return Metrics(self._memory).read()

    def stop_listening(self) -> None:
        """As a control process that drains: who connects from here on is refused, and waits for nobody."""
        for listener in self._listeners:
            listener.close()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_S)

    def threads(self) -> list[str]:
        """The names of the process's threads."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [(task / "comm").read_text().strip() for task in tasks.iterdir()]

    def _read(self) -> None:
        line = self._lines.readline()
        if not line:
            raise EOFError(f"the core has ended, with status {self.process.wait(PATIENCE_S)}")
        got = json.loads(line)
        if "event" in got:
            self.events.append(got)
        else:
            self._answers[got["id"]] = got
