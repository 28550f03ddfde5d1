"""Models that a workload's Python file exports: made in a child process, kept until the code changes.

`python FILE OUT_DIR` writes OUT_DIR/1/, a SavedModel, and maybe OUT_DIR/requests.npz. What is kept is good as
long as FILE, and every module of its own that it imported, is what it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fastserve.errors import FastServeError

MANIFEST = "manifest.json"
_TIMEOUT_S = 1800


class ExportError(FastServeError):
    """A workload's model could not be made."""


@dataclass(frozen=True)
class Export:
    """What an export left. base_path: holds the versions. recorded: requests.npz, if there is one."""

    base_path: Path
    recorded: Path | None


def cache_dir() -> Path:
    """Below $XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "fastserve" / "bench"


def export(file: Path, cache: Path | None = None) -> Export:
    """What `file` exports, made now unless it is there already. Raises ExportError."""
    file = file.resolve()
    if not file.exists():
        raise ExportError(f"{file}: no such file; [workload] export names the code that writes the model")
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    target = (cache or cache_dir()) / f"{file.stem}-{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs at once one exports, the other waits
        if not _current(target):
            _make(file, target)
    return _found(target)


def _found(target: Path) -> Export:
    recorded = target / "requests.npz"
    return Export(target, recorded if recorded.exists() else None)


def _current(target: Path) -> bool:
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        return all(file_digest(Path(path)) == digest for path, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make(file: Path, target: Path) -> None:
    fresh = Path(f"{target}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    command = [sys.executable, "-m", "fastserve.bench.export_run", str(file), str(fresh)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{file}: did not end within {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise ExportError(f"{file}: exporting ended with {done.returncode}:\n{done.stderr[-3000:].rstrip()}")
    if not (fresh / "1" / "saved_model.pb").exists():
        raise ExportError(f"{file}: wrote no OUT_DIR/1/saved_model.pb")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
