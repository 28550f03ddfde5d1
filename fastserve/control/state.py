"""What the control process remembers from one start to the next, in a directory of its own.

  core.sock   where the core waits for the next control process, once it has lost this one
  next.sock   the same of a core that is about to take another's place
  lock        held while a control process runs, so that two never share the directory
  rest.sock, web.sock  where the core answers the gateway
  state.json  XLA's choice per model, and the process ids of core and gateway
  prepared/   rewritten models, made by trials and opened by the core
  admin.sock  the admin socket, unless it is configured to be elsewhere
  monitor.sock  health, metrics and status over HTTP

A damaged state.json costs a measurement, nothing else: it is reported and left behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve.errors import StartError
from fastserve.log import Log


class StateDir:
    """The state directory, held by this process. A context manager."""

    def __init__(self, path: str, log: Log) -> None:
        """Takes the directory. StartError when another daemon has it, or it cannot be written."""
        self._path = Path(path)
        self._log = log
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(
                f"the state directory {path} cannot be used: {error.strerror}; set [server] state_dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise StartError(
                f"another fastserve (process {owner}) runs with the state directory {path}; "
                "give each its own [server] state_dir"
            ) from None
        # Paths below a descriptor are short, however long the directory's own is.
        self._directory = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.core_socket = f"/proc/self/fd/{self._directory}/core.sock"
        self.next_core_socket = f"/proc/self/fd/{self._directory}/next.sock"
        self.monitor_socket = f"/proc/self/fd/{self._directory}/monitor.sock"
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._data = self._read()

    def __enter__(self) -> StateDir:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._directory)
        os.close(self._lock)

    def remove_prepared(self, keep: Iterable[str] = ()) -> None:
        """Removes the prepared models of an earlier life, save those in `keep`, for an adopted core."""
        kept = {Path(path) for path in keep}
        for made in (self._path / "prepared").glob("*/*/*"):
            if not any(path.is_relative_to(made) for path in kept):
                shutil.rmtree(made, ignore_errors=True)
                with suppress(OSError):  # others are still in there
                    made.parent.rmdir()

    def prepared_path(self, model: str, version: int) -> Path:
        """Where a version's rewritten model is."""
        # A name may be "..": names are marked so that none is a path of its own.
        return self._path / "prepared" / f"model-{model}" / str(version)

    def work_dir(self, model: str, version: int) -> str:
        """A new and empty directory for what is made of a version, once. Blocks. OSError."""
        place = self.prepared_path(model, version)
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=place)

    def xla_choice(self, model: str, base_path: str) -> str | None:
        """What xla = "auto" chose for an earlier version of this model."""
        entry = self._data["models"].get(model)
        if not isinstance(entry, dict) or entry.get("base_path") != base_path:
            return None
        choice = entry.get("xla")
        return choice if isinstance(choice, str) else None

    def remember_xla_choice(self, model: str, base_path: str, choice: str) -> None:
        if self.xla_choice(model, base_path) != choice:
            self._data["models"][model] = {"base_path": base_path, "xla": choice}
            self._write()

    def remember_core(self, pid: int) -> None:
        self._data["core_pid"] = pid
        self._write()

    def orphaned_core(self) -> int | None:
        """The core of an earlier control process, when that one died and the core went on serving."""
        pid = self._data.get("core_pid")
        if not isinstance(pid, int):
            return None
        return pid if _runs(pid, b"fastserve.core") else None

    def remember_gateways(self, pids: Sequence[int]) -> None:
        self._data["gateways"] = [[pid, _start_ticks(pid)] for pid in pids]
        self._write()

    def remember_old_gateways(self, pids: Sequence[int]) -> None:
        """Those of an earlier control process that are to end: known until they have, whoever ends them."""
        self._data["old_gateways"] = [[pid, _start_ticks(pid)] for pid in pids]
        self._write()

    def orphaned_gateways(self) -> list[int]:
        """The gateway processes of earlier control processes that still run."""
        found = []
        for entry in (*self._data.get("gateways", ()), *self._data.get("old_gateways", ())):
            match entry:
                case [int(pid), int(started)] if started and _start_ticks(pid) == started:
                    found.append(pid)
        return [pid for pid in dict.fromkeys(found) if _runs(pid, b"fastserve.gateway")]

    def _read(self) -> dict[str, Any]:
        path = self._path / "state.json"
        try:
            data = json.loads(path.read_bytes())
            if isinstance(data, dict) and isinstance(data.get("models"), dict):
                return data
            raise ValueError("it has another form")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._log.warning("state file ignored", path=path, why=error)
        return {"models": {}}

    def _write(self) -> None:
        """All of it or nothing: a crash or a full disk leaves the file as it was."""
        path, new = self._path / "state.json", self._path / "state.json.new"
        try:
            with open(new, "w", encoding="utf-8") as file:
                json.dump(self._data, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError as error:
            self._log.warning("state file not written", path=path, why=error.strerror)


def _runs(pid: int, module: bytes) -> bool:
    """Whether process `pid` is `python -m module`."""
    try:
        return module in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _start_ticks(pid: int) -> int:
    """When process `pid` was started, in ticks since the machine was; 0 when there is none. With it, an id
    means one process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
