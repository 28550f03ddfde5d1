"""README.md against the code: its tables of configuration keys, its examples and its commands.

What is documented must exist with that default, and what exists must be documented.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastserve import config
from fastserve.cli import main
from fastserve.compat.flag_table import FLAGS
from fastserve.config_read import parse_config, parse_size

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")

TABLES: dict[str, type[msgspec.Struct]] = {
    "[server]": config.Server,
    "[server.tls]": config.ServerTls,
    "[gateway]": config.Gateway,
    "[limits]": config.Limits,
    "[executor]": config.Executor,
    "[loading]": config.Loading,
    "[monitoring]": config.Monitoring,
    "[tensorflow]": config.TensorFlow,
    "[litert]": config.LiteRT,
    "[tracing]": config.Tracing,
    "[[models]]": config.Model,
    "[models.batching]": config.Batching,
    "[models.warmup]": config.Warmup,
    "[models.versions]": config.Versions,
    "[models.rollout]": config.Rollout,
    "[models.logging]": config.Logging,
    "[[routes]]": config.Route,
}

# Defaults that depend on the machine or on other keys: the README has them in words.
IN_WORDS = {
    "admin_socket",
    "allowed_batch_sizes",
    "cache_dir",
    "filename_prefix",
    "gpu_memory_fraction",
    "library_dir",
    "max_execution_batch_size",
    "max_total_bytes",
    "memory_limit_bytes",
    "source",
    "state_dir",
    "threads",
    "version",
    "visible_devices",
}


def _documented(table: str) -> dict[str, str]:
    """Key -> default, as the README's table for `table` has them."""
    section = README.split(f"\n### `{table}`\n", 1)[1].split("\n#", 1)[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {key.strip().strip("`"): default.strip() for key, default in rows}


def _is_table(default: object) -> bool:
    return isinstance(default, msgspec.Struct)


def _keys(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Key -> default, without the tables within."""
    fields = {
        field.name: {} if field.default_factory is dict else field.default
        for field in msgspec.structs.fields(kind)
    }
    return {key: default for key, default in fields.items() if not _is_table(default)}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_table_has_a_section() -> None:
    assert re.findall(r"^### `(\[.*\])`$", README, re.MULTILINE) == list(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_the_keys_are_all_there_in_order(table: str) -> None:
    assert list(_documented(table)) == list(_keys(TABLES[table]))


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table, kind in TABLES.items() for key in _keys(kind)]
)
def test_a_default_is_the_codes_own(table: str, key: str) -> None:
    text = _documented(table)[key]
    default = _keys(TABLES[table])[key]
    if default is msgspec.NODEFAULT and key not in IN_WORDS:
        assert text == "required"
    elif key in IN_WORDS:
        assert text
        assert default in ("", 0, (), None, msgspec.NODEFAULT)  # none of its own: what is written applies
    else:
        assert text.startswith("`") and text.endswith("`")
        value = tomllib.loads(f"value = {text.strip('`')}")["value"]
        if key.endswith("_bytes"):
            value = parse_size(value)
        assert value == (list(default) if isinstance(default, tuple) else default)
        assert isinstance(value, bool) == isinstance(default, bool)


def test_the_example_of_a_configuration_is_one() -> None:
    examples = _blocks("toml")
    assert examples
    for text in examples:
        assert parse_config(text, "/etc/fastserve/config.toml").models


def test_the_example_of_a_client_compiles() -> None:
    examples = _blocks("python")
    assert examples
    for text in examples:
        compile(text, "README.md", "exec")


def test_the_commands_are_those_there_are() -> None:
    assert sorted(re.findall(r"^\| `fastserve (\w+)", README, re.MULTILINE)) == sorted(main.commands)


def test_the_options_that_are_named_exist() -> None:
    others = {"--name", "--read-only", "--build-arg"}  # any flag's, and the container engine's
    used = set(re.findall(r"`(--[a-z_-]+)", README)) - others
    commands = list(main.commands.values())
    for group in main.commands.values():
        commands += getattr(group, "commands", {}).values()
    known = {name for command in commands for option in command.params for name in option.opts}
    assert used <= known | {"--help"} | {f"--{flag.name}" for flag in FLAGS}
