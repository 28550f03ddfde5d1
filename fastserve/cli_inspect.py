"""`fastserve inspect`: what a SavedModel or a TFLite model offers, and whether XLA compiles it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve import tflite
from fastserve.config import Batching, Model, TensorFlow
from fastserve.config_read import powers_of_two
from fastserve.control.source import newest_version
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.version_format import is_tflite
from fastserve.environment import child_argv, child_environment, tensorflow_dir
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log
from fastserve.savedmodel import INTERNAL, Port, SavedModel, Signature, read
from fastserve.savedmodel.signature import dtype_name

_TRIAL_TIMEOUT_S = 3600.0


def show(directory: str, tags: tuple[str, ...], *, xla: bool) -> int:
    """Prints the SavedModel in `directory`, or in its newest version. The exit code: 1 when, with `xla`, no
    signature compiles."""
    version = _version(directory)
    console = Console(highlight=False)
    if is_tflite("alone", lambda name: os.path.exists(os.path.join(version.path, name))):
        if xla:
            raise ModelError(f"{version.path}: a TFLite model, and XLA compiles SavedModels only")
        console.print(f"[bold]{escape(version.path)}[/bold]  a TFLite model", soft_wrap=True)
        print_signatures(console, tflite.read(version.path))
        return 0
    saved_model = read(version.path, tags)
    console.print(
        f"[bold]{escape(version.path)}[/bold]  tags {escape(', '.join(saved_model.tags))}, "
        f"written by TensorFlow {escape(saved_model.tensorflow_version or '(unknown)')}",
        soft_wrap=True,
    )
    print_signatures(console, saved_model)
    if not xla:
        return 0
    trial = asyncio.run(_try(saved_model, version))
    console.print()
    compiled = [
        _print_verdict(console, entry, _costs(trial, entry))
        for entry in trial.servable["signatures"]
        if not entry["name"].startswith(INTERNAL)
    ]
    return 0 if any(compiled) else 1


def print_signatures(console: Console, model: SavedModel) -> None:
    """A table for each signature."""
    for signature in model.signatures:
        console.print()
        console.print(_signature(signature))
    if not model.signatures:
        console.print("no signatures: there is nothing to serve")


def _version(directory: str) -> VersionPath:
    """The directory itself when it holds a model, else its newest version."""
    path = os.path.abspath(directory)
    names = os.listdir(path)
    if any(name.startswith(("saved_model.", tflite.MODEL)) for name in names) or not any(
        map(str.isdecimal, names)
    ):
        name = os.path.basename(path)
        return VersionPath(int(name) if name.isascii() and name.isdigit() else 1, path)
    return newest_version(path)


def _signature(signature: Signature) -> Table:
    method = signature.method_name or "(none)"
    table = Table(
        title=f"[bold]{escape(signature.name)}[/bold]  method {escape(method)}",
        title_justify="left",
        title_style="",
        header_style="bold",
    )
    for column in ("", "name", "dtype", "shape", "tensor"):
        table.add_column(column, overflow="fold")
    for kind, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            table.add_row(kind, escape(port.alias), _dtype(port), escape(port.shape), escape(port.tensor))
    return table


def _dtype(port: Port) -> str:
    return dtype_name(port.dtype) + (", has a default" if port.has_default else "")


async def _try(saved_model: SavedModel, version: VersionPath) -> Trial:
    """A trial with XLA on, in a child process. ModelError when the model cannot be served at all."""
    tensorflow = TensorFlow()
    tensorflow = replace(tensorflow, library_dir=tensorflow_dir(tensorflow))
    batching = Batching()
    model = Model(
        name="inspected",
        base_path=os.path.dirname(version.path),
        tags=saved_model.tags,
        xla="full",
        batching=replace(batching, allowed_batch_sizes=powers_of_two(batching.largest_batch)),
    )
    log = Log()
    runner = TrialRunner(child_argv("fastserve.control.trial"), child_environment(tensorflow), log)

    def on_stage(stage: dict[str, Any]) -> None:
        log.status(" ".join(str(value) for value in stage.values()))

    with tempfile.TemporaryDirectory(prefix="fastserve-inspect-") as scratch:
        request = trial_request(
            model, version, tensorflow, previous_choice=None, prepared_dir=os.path.join(scratch, "prepared")
        )
        try:
            return await runner.run(request, _TRIAL_TIMEOUT_S, on_stage)
        finally:
            log.status("")


def _costs(trial: Trial, entry: dict[str, Any]) -> dict[str, Any]:
    """The trial's measurements of one signature."""
    for found in trial.report.get("signatures", []):
        if found.get("name") == entry["name"]:
            return dict(found)
    return {}


def _print_verdict(console: Console, entry: dict[str, Any], costs: dict[str, Any]) -> bool:
    """Says whether one signature compiles, and what it costs plain and compiled. Returns the former."""
    name = escape(entry["name"])
    compiled = bool(entry["compiled"])
    verdict = "[green]compiles[/green]" if compiled else "[yellow]runs without XLA[/yellow]"
    why = "" if compiled else f": {escape(entry['compiled_why'])}"
    console.print(f"[bold]{name}[/bold] {verdict}{why}", soft_wrap=True)
    if not entry["batched"]:
        console.print(f"  not batched: {escape(entry['why'])}", soft_wrap=True)
    plain, fast = costs.get("plain_us", {}), costs.get("compiled_us", {})
    rows = sorted({*plain, *fast}, key=int)
    if not rows:
        return compiled
    table = Table(header_style="bold")
    for column in ("rows", "plain us", "XLA us", "compiling s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row, *(_number(costs.get(key, {}).get(row)) for key in ("plain_us", "compiled_us", "compile_s"))
        )
    console.print(table)
    return compiled


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else ""
