"""A configuration file with some keys changed: text in, text out, comments and layout kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AbstractTable
from tomlkit.toml_document import TOMLDocument

from fastserve.bench.target import TargetError
from fastserve.bench.tune_space import BATCH_SIZES, MAX_BATCH

MARK = "fastserve tune:"


def edited(text: str, model: str, values: Mapping[str, Any]) -> TOMLDocument:
    """The document with "executor.threads" and the like set; "model." is the [[models]] table `model`."""
    document = tomlkit.parse(text)
    for path, value in values.items():
        head, *steps, key = path.split(".")
        table: Any = _model(document, model) if head == "model" else _table(document, head)
        for step in steps:
            table = _table(table, step)
        if path == MAX_BATCH and BATCH_SIZES not in values:
            table.pop("allowed_batch_sizes", None)  # of another largest batch
        table[key] = list(value) if isinstance(value, tuple) else value
    return document


def _table(parent: Any, name: str) -> Any:
    if name not in parent:
        parent[name] = tomlkit.table()
    return parent[name]


def _model(document: TOMLDocument, name: str) -> AbstractTable:
    for table in document.get("models", ()):
        if table.get("name") == name:
            found: AbstractTable = table
            return found
    raise TargetError(f"there is no [[models]] with name = {json.dumps(name)}")


def for_trial(text: str, file: Path, model: str, values: Mapping[str, Any], state_dir: Path) -> str:
    """The configuration of a daemon beside the user's own: another port, state and admin socket; the models
    where they are."""
    document = edited(text, model, values)
    server = _table(document, "server")
    server["listen"] = ["127.0.0.1:0"]
    server["state_dir"] = str(state_dir)
    server.pop("admin_socket", None)
    base = file.resolve().parent
    for table in document.get("models", ()):
        table["base_path"] = os.path.normpath(base / Path(table["base_path"]).expanduser())
    library = document.get("tensorflow", {}).get("library_dir", "")
    if library:
        document["tensorflow"]["library_dir"] = os.path.normpath(base / Path(library).expanduser())
    return tomlkit.dumps(document)


def tuned(text: str, model: str, values: Mapping[str, Any], evidence: list[str]) -> str:
    """The configuration to keep: `values` set, and above everything, as a comment, the evidence."""
    body = tomlkit.dumps(edited(_without_evidence(text), model, values))
    return "".join(f"# {MARK} {line}\n" for line in evidence) + "\n" + body


def _without_evidence(text: str) -> str:
    """What an earlier run wrote at the head is replaced."""
    lines = text.splitlines(keepends=True)
    if not lines or not lines[0].startswith(f"# {MARK}"):
        return text
    while lines and lines[0].startswith(f"# {MARK}"):
        lines.pop(0)
    if lines and not lines[0].strip():
        lines.pop(0)
    return "".join(lines)
