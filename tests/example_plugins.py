"""The plug-ins of examples/plugins, installed by pip as their users would, once for each state of them.

They lie in build/; a test puts the directory on sys.path, and on PYTHONPATH for its children.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SOURCES = REPO / "examples" / "plugins"
HEADERS = REPO / "fastserve" / "include"
NAMES = ("lookup", "manifest", "priority", "spare")


@cache
def installed_plugins() -> Path:
    """The directory that they are installed in."""
    files = sorted(path for folder in (SOURCES, HEADERS) for path in folder.rglob("*.*") if path.is_file())
    state = hashlib.sha256(sys.version.encode())
    for path in files:
        if path.suffix in {".c", ".h", ".py", ".toml"}:
            state.update(path.name.encode() + path.read_bytes())
    kept = REPO / "build" / "test-plugins"
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / state.hexdigest()[:16]
    with open(kept / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes: one installs, the others wait
        if not target.exists():
            _install(kept / "sources", kept / "fresh")
            (kept / "fresh").rename(target)
    return target


def _install(sources: Path, target: Path) -> None:
    for folder in (sources, target):
        shutil.rmtree(folder, ignore_errors=True)
    # A copy: building leaves its traces beside the sources.
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-build-isolation",
    ]
    made = subprocess.run(
        [*pip, "--no-deps", "--no-index", "--target", target, *(sources / name for name in NAMES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])},
    )
    if made.returncode != 0:
        raise RuntimeError(
            f"the examples' plug-ins cannot be installed:\n{made.stdout}\n{made.stderr[-4000:]}"
        )
