"""Runs bare_loop.c: what TensorFlow gives one thread when nothing stands around it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import dataclass
from typing import Any

from compiled import compiled

_MAX_BATCHES = 64


class BareError(RuntimeError):
    """The program failed, or has nothing to run on."""


@dataclass(frozen=True)
class BareRun:
    """One timed run of the loop."""

    batch: int
    rows_per_s: float
    run_us_min: float
    run_us_median: float
    command: str


def library_dir() -> str:
    """Where the installed TensorFlow's libraries are, found without importing it."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise BareError("TensorFlow is not installed")
    return str(spec.submodule_search_locations[0])


def loop(model: dict[str, Any], batch: int, seconds: float, session_config: bytes) -> BareRun:
    """One thread, batches of `batch` rows, up to 64 different ones in turn, for `seconds`."""
    batches = max(1, min(_MAX_BATCHES, 20_000 // batch))
    command = _command(model, session_config)
    command += ["--batch", str(batch), "--batches", str(batches), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60.0 + 3.0 * seconds)
    if done.returncode != 0:
        raise BareError(f"{' '.join(command)}:\n{done.stderr}")
    result = json.loads(done.stdout)
    return BareRun(
        batch, result["rows_per_s"], result["run_us_min"], result["run_us_median"], " ".join(command)
    )


class IdleProcess:
    """A process that has opened TensorFlow and a model, has run it once and waits: the least memory."""

    def __init__(self, model: dict[str, Any], session_config: bytes) -> None:
        self.command = [*_command(model, session_config), "--idle", "--batch", "1"]

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise BareError(f"{' '.join(self.command)} ended early")
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10.0)


def _command(model: dict[str, Any], session_config: bytes) -> list[str]:
    command = [str(compiled("bare_loop", "-ldl")), "--library-dir", library_dir(), "--model", model["path"]]
    command += ["--config", session_config.hex()]
    for feed in model["feeds"]:
        command += ["--feed", feed["tensor"], str(feed["dtype"]), str(feed["row_bytes"])]
        command += [str(feed["row_dim"]), feed["file"]]
    for fetch in model["fetches"]:
        command += ["--fetch", fetch]
    return command
