"""`fastserve check`: what a configuration would serve, as a table, without loading anything."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve.config import Config, Model, Route
from fastserve.control.credentials import read_credentials
from fastserve.control.plugins import check_plugins
from fastserve.control.remote_store import protocol_of
from fastserve.control.source import list_versions, select, why_none
from fastserve.control.source_remote import list_remote_versions
from fastserve.environment import (
    check_op_libraries,
    litert_dir,
    needs_tensorflow,
    optional_litert_dir,
    tensorflow_dir,
)
from fastserve.errors import ConfigError, ModelError, StartError
from fastserve.web_file import look_at


def show(config: Config) -> int:
    """Prints the table, or what stands in the way. The exit code: 0 or 2."""
    problems = []
    table = Table(title="would be served", title_justify="left", header_style="bold")
    for column in ("model", "version", "directory", "XLA", "batches of", "weight"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("version", "weight") else "left"
        )
    for examine in (check_plugins, read_credentials):
        try:
            examine(config)
        except ConfigError as error:
            problems += error.problems
    for model in config.models:
        if model.source not in ("", "files", "remote"):  # a plug-in's, which alone knows what there is
            place = f"{model.base_path}, by source = {model.source}"
            table.add_row(escape(model.name), "?", escape(place), model.xla, _batches(model), _weight(model))
            continue
        try:
            versions = _chosen(model)
        except ModelError as error:
            problems.append(f"[[models]] {model.name}, {error}")
            continue
        for version, path in versions.items():
            table.add_row(
                escape(model.name), str(version), escape(path), model.xla, _batches(model), _weight(model)
            )
    for route in config.routes:
        if why := look_at(route.file):
            problems.append(f"[[routes]] {route.path}, file: {why}")
    library, litert = "not needed", "not installed"
    try:
        if needs_tensorflow(config.models):
            library = "not found"
            library = tensorflow_dir(config.tensorflow)
        check_op_libraries(config.tensorflow)
    except StartError as error:
        problems.append(str(error))
    try:
        find = (
            litert_dir if any(model.platform == "tflite" for model in config.models) else optional_litert_dir
        )
        litert = find(config.litert) or litert
    except StartError as error:
        problems.append(str(error))

    console = Console(soft_wrap=False)
    if table.row_count:
        console.print(table)
    if config.routes:
        console.print(_routes(config.routes))
    executor, server = config.executor, config.server
    drive = f"{server.io_threads} I/O threads" if server.io_threads else "the event loop"
    facts = [
        ("listens on", ", ".join(server.listen)),
        ("threads", f"{executor.threads} executors, {executor.load_threads} loading, connections by {drive}"),
        ("memory", f"{config.limits.max_total_bytes >> 20} MiB for messages in flight"),
        ("tensorflow", f"{library}, device {config.tensorflow.device}"),
        ("litert", litert),
        ("state", server.state_dir),
    ]
    if config.gateway.listen:
        processes = config.gateway.processes
        where = ", ".join(config.gateway.listen)
        facts.insert(1, ("HTTP", f"{where}, {processes} process{'es' if processes > 1 else ''}"))
    if server.tls.certificate:
        clients = "must show a certificate" if server.tls.client_ca else "need no certificate"
        facts.insert(1, ("TLS", f"{server.tls.certificate}, clients {clients}"))
    for name, text in facts:
        console.print(f"[bold]{name:11}[/bold] {escape(text)}", highlight=False, soft_wrap=True)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"[bold red]error:[/bold red] {escape(problem)}")
    return 2 if problems else 0


def _routes(routes: tuple[Route, ...]) -> Table:
    table = Table(title="web service", title_justify="left", header_style="bold")
    for column in ("route", "methods", "file", "model", "workers", "time-out"):
        table.add_column(column, overflow="fold", justify="right" if column == "workers" else "left")
    for route in routes:
        version = f":{route.version}" if route.version is not None else f" {route.label}" * bool(route.label)
        table.add_row(
            escape(route.path),
            " ".join(route.methods),
            escape(route.file),
            escape(route.model + version) or "by preprocess",
            str(route.workers),
            f"{route.timeout_s:g} s",
        )
    return table


def _chosen(model: Model) -> dict[int, str]:
    """The versions that [models.versions] wants of those there are, and where. ModelError when none is."""
    try:
        if protocol_of(model.base_path):
            there = list_remote_versions(model)
        else:
            there = list_versions(model.base_path)
            if not there:
                raise ModelError(why_none(model.base_path))
    except ModelError as error:
        raise ModelError(f"base_path: {error}") from error
    chosen = {version: there[version] for version in select(model.versions, there)}
    if not chosen:
        raise ModelError(
            f"versions: none of specific = {list(model.versions.specific)} is in {model.base_path}; "
            f"there are: {', '.join(map(str, there))}"
        )
    return chosen


def _batches(model: Model) -> str:
    if model.row_wise is False:
        return ", ".join(["not batched (row_wise = false)", *_broadcast(model)])
    batching = model.batching
    words = [f"1 to {batching.largest_batch}"]
    if model.xla != "off":
        words.append(f"padded to {len(batching.allowed_batch_sizes)} sizes")
    if batching.batch_timeout_us:
        words.append(f"waiting up to {batching.batch_timeout_us} us")
    return ", ".join([*words, *_broadcast(model)])


def _broadcast(model: Model) -> list[str]:
    names = model.batching.broadcast
    return [f"one row of {' and '.join(names)} for all"] if names else []


def _weight(model: Model) -> str:
    reserved = f", {model.reserved_executors} reserved" if model.reserved_executors else ""
    return f"{model.weight:g}{reserved}"
