"""config.toml for a FastServe that the harness starts, from tables: checked, and written."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.bench.target import TargetError
from fastserve.config_read import parse_config
from fastserve.errors import ConfigError

Tables = dict[str, dict[str, Any]]


def with_options(tables: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Tables:
    """`tables` with "executor.spin_us" and the like set. Raises TargetError."""
    merged: Tables = copy.deepcopy({name: dict(table) for name, table in tables.items()})
    for path, value in options.items():
        *steps, key = path.split(".")
        if not steps:
            raise TargetError(f"{path}: expected TABLE.KEY of config.toml, such as executor.{path}")
        table: dict[str, Any] = merged
        for step in steps:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise TargetError(f"{path}: {step} is not a table")
        table[key] = value
    return merged


def write_config(folder: Path, tables: Mapping[str, Mapping[str, Any]], model: str, base_path: Path) -> Path:
    """folder/config.toml: one model, any free port of 127.0.0.1, all state in `folder`.

    Raises TargetError when FastServe would refuse it.
    """
    others = {name: table for name, table in tables.items() if name != "model"}
    served = {"name": model, "base_path": str(base_path), **tables.get("model", {})}
    return write_models_config(folder, others, [served])


def write_models_config(
    folder: Path, tables: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]
) -> Path:
    """As write_config, with any [[models]]."""
    merged: Tables = {name: dict(table) for name, table in tables.items()}
    merged["server"] = {
        "listen": ["127.0.0.1:0"],
        **merged.get("server", {}),
        "state_dir": str(folder / "state"),
    }
    lines = []
    for name, table in merged.items():
        lines += [f"[{name}]", *_lines(table)]
    for model in models:
        lines += ["[[models]]", *_lines(model)]
    text = "\n".join(lines) + "\n"
    try:
        parse_config(text, str(folder / "config.toml"))
    except ConfigError as error:
        told = "\n".join(problem.split(": ", 1)[1] for problem in error.problems)
        raise TargetError(f"FastServe cannot be started with these settings:\n{told}") from None
    path = folder / "config.toml"
    path.write_text(text)
    return path


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in table.items()]


def toml_value(value: Any) -> str:
    """A value in TOML's notation; tables inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
