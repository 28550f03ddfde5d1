"""The key of a compile cache: what makes compiled code of one process useless or wrong in another.

Called by the daemon, for the name of the directory that xla_cache looks after. Reads /proc, never TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fastserve.config import TensorFlow
from fastserve.environment import LIBRARY, installed_tensorflow

# Of what this package does to models before TensorFlow compiles them, and of the manifest.
_FORMAT = 1
# What a processor is and can; the rest of /proc/cpuinfo (clock, bugs, addresses) changes by itself.
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
_FLAGS = ("XLA_FLAGS", "TF_XLA_FLAGS")


def cache_key(settings: TensorFlow, environment: Mapping[str, str], proc: Path = Path("/proc")) -> str:
    """A short name. `settings` with library_dir; `environment`: of the processes that compile."""
    parts = {
        "format": _FORMAT,
        "tensorflow": _library(settings.library_dir),
        "processor": _processor(proc),
        # XLA divides the work of one op among the threads that it will have.
        "threads": [settings.intra_op_threads, len(os.sched_getaffinity(0))],
        "device": [settings.device, environment.get("CUDA_VISIBLE_DEVICES", "")],
        "gpus": [] if settings.device == "cpu" else _gpus(proc),
        "flags": [environment.get(name, "") for name in _FLAGS],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _library(directory: str) -> list[str | int]:
    """The version, where it is known, and what tells builds of one version apart."""
    installed = installed_tensorflow()
    version = installed.version if installed and installed.directory == directory else ""
    try:
        status = Path(directory, LIBRARY).stat()
    except OSError:
        return [version]
    return [version, status.st_size, status.st_mtime_ns]


def _processor(proc: Path) -> list[str]:
    found = set()
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _PROCESSOR:
            found.add(f"{name.strip()}: {value.strip()}")
    return [*sorted(found), os.uname().machine]


def _gpus(proc: Path) -> list[str]:
    """The models of NVIDIA's GPUs and the version of their driver."""
    driver = proc / "driver" / "nvidia"
    version = _text(driver / "version").partition("\n")[0]
    models = sorted(
        line.partition(":")[2].strip()
        for path in driver.glob("gpus/*/information")
        for line in _text(path).splitlines()
        if line.startswith("Model:")
    )
    return [version, *models] if version or models else []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
