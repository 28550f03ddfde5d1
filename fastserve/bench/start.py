"""Starts the servers that a run names, one child process each on a free loopback port."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastserve.bench.child import Child
from fastserve.bench.daemon_config import with_options, write_config
from fastserve.bench.target import Plan, Target, TargetError, at_address

READY_TIMEOUT_S = 300.0

# Modules that each kind needs beyond FastServe's own, and what to install for them.
_NEEDS = {
    "grpc-aio": ("grpc", "tensorflow", "tensorflow_serving"),
    "flask": ("flask", "gunicorn", "tensorflow"),
    "fastserve": ("tensorflow",),
}
_INSTALL = {
    "grpc": "'fastserve[bench]'",
    "flask": "'fastserve[bench]'",
    "gunicorn": "'fastserve[bench]'",
    "tensorflow": "'fastserve[tensorflow]'",
    "tensorflow_serving": "--no-deps tensorflow-serving-api",
}
_REFERENCE = {
    "grpc-aio": ("fastserve.bench.reference_grpc_aio", "grpc"),
    "flask": ("fastserve.bench.reference_flask", "http"),
}


@contextmanager
def started(
    plan: Plan, model: str, saved_model: Path, signature: str, serve: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Target, Child]]:
    """The server that `plan` describes, once it is ready; ended when the block is left.

    saved_model: a model's base path or a version's directory. serve: tables of config.toml for FastServe.
    Raises TargetError, ChildError.
    """
    for module in _NEEDS[plan.kind]:
        if importlib.util.find_spec(module) is None:
            raise TargetError(f"--start {plan.kind} needs {module}: pip install {_INSTALL[module]}")
    with Child(plan.name) as child:
        version = version_directory(saved_model)
        if plan.kind == "fastserve":
            target = _fastserve(plan, child, model, version, with_options(serve, plan.options))
        else:
            target = _reference(plan, child, model, version, signature)
        child.remember_family()
        yield target, child


def version_directory(saved_model: Path) -> Path:
    """`saved_model`, or its newest version when it is a model's base path. Raises TargetError."""
    if (saved_model / "saved_model.pb").exists():
        return saved_model
    versions = (
        [path for path in saved_model.glob("*") if path.name.isdecimal()] if saved_model.is_dir() else []
    )
    if not versions:
        raise TargetError(f"{saved_model}: neither a SavedModel nor a directory with versions 1/, 2/, ...")
    return max(versions, key=lambda path: int(path.name))


def _fastserve(
    plan: Plan, child: Child, model: str, version: Path, tables: Mapping[str, Mapping[str, Any]]
) -> Target:
    # A base path of its own, so that the version that the others serve is served, and no newer one.
    base_path = child.folder / "model"
    base_path.mkdir()
    (base_path / (version.name if version.name.isdecimal() else "1")).symlink_to(version.resolve())
    config = write_config(child.folder, tables, model, base_path)
    ready = child.folder / "ready.json"
    child.start(
        [sys.executable, "-m", "fastserve", "serve", str(config), "--strict", "--ready-file", str(ready)]
    )
    addresses = child.wait_until(lambda: ready_addresses(ready), READY_TIMEOUT_S)
    return _named(plan, at_address(plan.name, addresses[0]), child)


def ready_addresses(ready: Path) -> list[str] | None:
    """The addresses in FastServe's ready file; None while it is not there."""
    try:
        addresses: list[str] = json.loads(ready.read_text())["addresses"]
    except (FileNotFoundError, ValueError):
        return None
    return addresses


def _reference(plan: Plan, child: Child, model: str, version: Path, signature: str) -> Target:
    module, protocol = _REFERENCE[plan.kind]
    command = [sys.executable, "-m", module, "--model", model, "--saved-model", str(version.resolve())]
    command += ["--signature", signature]
    for key, value in plan.options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    child.start(command, {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"})
    address = child.wait_until(lambda: _said_ready(child), READY_TIMEOUT_S)
    return _named(plan, at_address(plan.name, address, "grpc" if protocol == "grpc" else "http"), child)


def _said_ready(child: Child) -> str | None:
    """The address in the lines "ready ADDRESS WORKERS", once each worker has written one."""
    lines = [line.split() for line in child.log_lines() if line.startswith("ready ")]
    return lines[0][1] if lines and len(lines) >= int(lines[0][2]) else None


def _named(plan: Plan, at: Target, child: Child) -> Target:
    return Target(plan.name, plan.kind, at.protocol, at.address, at.authority, child.pid, plan.options)
