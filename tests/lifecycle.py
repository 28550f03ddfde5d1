"""A daemon whose models' versions come and go, and clients that must not notice, for end-to-end tests."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from daemon_process import Daemon
from exported_models import exported_models
from predict_client import Client, request
from tensorflow_serving.apis import prediction_log_pb2

from fastserve.savedmodel.tfrecord import crc32c

EXPORTER = Path(__file__).with_name("export_lifecycle_models.py")
DATA = "variables/variables.data-00000-of-00001"
RECORDS = "assets.extra/tf_serving_warmup_requests"
LOADING = "poll_s = 0.1\nretries = 1\nretry_s = 0.2\nhurry_after_s = 2.0"


def exported(name: str) -> Path:
    """A version of one of export_lifecycle_models.py's models."""
    return exported_models(EXPORTER) / name


def install(name: str, target: Path, *, without: Iterable[str] = ()) -> Path:
    """Puts a copy of an exported version into `target`, at once as a deployment would: by renaming."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.copytree(exported(name), fresh)
    for file in without:
        (fresh / file).unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(target)
    return target


def with_records(version: Path, requests: Iterable[Any]) -> Path:
    """Gives a version warm-up requests of its own."""
    file = version / RECORDS
    file.parent.mkdir(exist_ok=True)
    with open(file, "wb") as out:
        for wanted in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(wanted)
            data = log.SerializeToString()
            length = struct.pack("<Q", len(data))
            out.write(length + _masked(length) + data + _masked(data))
    return version


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def table(name: str, base_path: Path | str, keys: str = "") -> str:
    """A [[models]] table."""
    return f'[[models]]\nname = "{name}"\nbase_path = "{base_path}"\n{keys}\n'


class Serving:
    """A daemon in a directory of its own, and what it says of its versions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon: Daemon = None  # type: ignore[assignment]

    def config(self, models: str, *, loading: str = LOADING, server: str = "", executor: str = "") -> str:
        return (
            f'[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "state"\nconfig_poll_s = 0\n{server}\n'
            f"[executor]\nthreads = 2\n{executor}\n[loading]\n{loading}\n{models}"
        )

    def begin(self, config: str, **options: Any) -> Serving:
        """Starts a daemon, also once one has died here."""
        self.daemon = Daemon(self.directory, config, **options)
        return self

    def start(self, config: str, **options: Any) -> Serving:
        self.begin(config, **options).daemon.wait_ready()
        return self

    def reload(self, config: str) -> list[str]:
        (self.directory / "config.toml").write_text(config)
        answer = self.daemon.admin("reload")
        assert answer["ok"], answer
        return answer["changed"]  # type: ignore[no-any-return]

    def model(self, name: str) -> dict[str, Any]:
        return next(m for m in self.daemon.admin("status")["models"] if m["name"] == name)

    def version(self, name: str, version: int) -> dict[str, Any]:
        """What status says of a version; state "" when it is not there."""
        rows = self.model(name)["versions"]
        return next((row for row in rows if row["version"] == version), {"state": "", "error": ""})

    def until_version(self, name: str, version: int, state: str = "AVAILABLE") -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            row = self.version(name, version)
            return row if row["state"] == state else None

        return self.daemon.until(look)

    def until_failed(self, name: str, version: int) -> str:
        """Why it failed for good."""

        def look() -> str:
            row = self.version(name, version)
            return row["error"] if row["state"] == "END" else ""  # type: ignore[no-any-return]

        return self.daemon.until(look)

    def until_problem(self, name: str, words: str) -> None:
        self.daemon.until(lambda: words in self.model(name)["problem"])

    def children(self) -> list[int]:
        """The processes that the control process has started and that live."""
        return children_of(self.daemon.process.pid)

    def trial(self) -> int:
        """The process id of the trial under way; waits for one."""
        return self.daemon.until(
            lambda: next((pid for pid in self.children() if "fastserve.control.trial" in command(pid)), None)
        )

    def fork_server(self) -> int | None:
        """The process id of what trials are forked from, while there is one."""
        name = "fastserve.control.fork_server"
        return next((pid for pid in self.children() if name in command(pid)), None)


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def command(pid: int) -> str:
    """The command line of a process; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Caller:
    """One call after the other to one model, on a channel of its own, in a thread. What is not answered, or
    not with x / 2 + 2, is remembered."""

    def __init__(
        self,
        serving: Serving,
        model: str,
        *,
        values: Iterable[float] = range(10),
        suffers: Callable[[grpc.RpcError], bool] = lambda error: False,
    ) -> None:
        """`suffers`: refusals that do not count."""
        self.answered = 0
        self.suffered = 0
        self.versions: set[int] = set()
        self.last_version = 0
        self.wrong: list[str] = []
        self._serving, self._model, self._suffers = serving, model, suffers
        self._values = itertools.cycle(values)
        self._channel = serving.daemon.channel()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"caller-{model}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client = Client(self._channel)
        for x in self._values:
            if self._ending.is_set() or len(self.wrong) > 5:
                return
            try:
                reply = client.predict(request(self._model, {"x": [x]}), timeout=30, wait_for_ready=False)
            except grpc.RpcError as error:
                if self._suffers(error):
                    self.suffered += 1
                else:
                    self.wrong.append(f"{x}: {error.code().name}: {error.details()}")
                continue
            got = reply.outputs["y"].float_val[0]
            self.last_version = reply.model_spec.version.value
            self.versions.add(self.last_version)
            if got != x / 2 + 2:
                self.wrong.append(f"{x} -> {got} by version {self.last_version}")
            self.answered += 1

    def more(self, calls: int = 20) -> None:
        before = self.answered
        self._serving.daemon.until(lambda: self.wrong or self.answered >= before + calls)
        assert self.wrong == [], self._serving.daemon.log

    def until_served_by(self, version: int) -> None:
        self._serving.daemon.until(lambda: self.wrong or self.last_version == version)
        assert self.wrong == [], self._serving.daemon.log

    def __enter__(self) -> Caller:
        self.more(1)
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            if failed is None:
                self.more()
        finally:
            self._ending.set()
            self._thread.join(40)
            self._channel.close()


def not_found(client: Client, model: str) -> bool:
    """Whether a model is not served."""
    try:
        client.predict(request(model, {"x": [1.0]}))
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.NOT_FOUND)
    return False


def burn() -> subprocess.Popen[bytes]:
    """Keeps a processor busy until it is killed. No fork of this process, which has gRPC's threads."""
    return subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
