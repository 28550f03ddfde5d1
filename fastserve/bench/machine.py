"""Where and how something was measured: processor, memory, kernel, versions, revision, command."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastserve.cgroup import available_cpus, available_memory_bytes
from fastserve.version import __version__

_PACKAGES = ("tensorflow", "tensorflow-cpu", "numpy", "uvloop", "grpcio", "flask", "gunicorn")


def machine() -> dict[str, Any]:
    """What the figures hang on."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "processors": available_cpus(),
        "memory_bytes": available_memory_bytes(),
        "kernel": platform.release(),
        "system": _system(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def command_line(words: Iterable[str]) -> str:
    """The command, with paths below the current directory from there: a report is read on other machines."""
    here = Path.cwd()
    paths = ((word, Path(word)) for word in words)
    return shlex.join(
        str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else word
        for word, path in paths
    )


def versions() -> dict[str, str]:
    found = {"fastserve": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The commit that FastServe's own code is at, with "+changes" where it differs; "" outside a checkout."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return ""
    commit = _git(here.parent, "rev-parse", "HEAD") or ""
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", "--", str(here.parents[1]))
    return commit[:12] + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _field(path: str, name: str) -> str:
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
