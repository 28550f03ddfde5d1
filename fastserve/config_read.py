"""Reads config.toml into a Config, with defaults filled in and paths made absolute.

What is wrong is said in the file's own words: file and line, table, key, value, and what would be
right. All problems are found in one go. Called by the command line; touches nothing but the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from msgspec.structs import replace

from fastserve.cgroup import available_memory_bytes
from fastserve.config import (
    Batching,
    Config,
    Executor,
    Limits,
    Loading,
    MemorySize,
    MessageSize,
    Model,
    Rollout,
    Server,
    Size,
    TensorFlow,
    Versions,
    Warmup,
)
from fastserve.config_check import check
from fastserve.toml_tables import Problem, Schema, build, parse, read_text, refuse

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


def parse_size(text: str) -> int:
    """Bytes of "64MiB", "1.5GiB", "2GB", "4096". ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise ValueError("no size")
    return int(float(match[1]) * _UNITS[match[2]])


_SCHEMA = Schema(
    tables={
        "[server]": Server,
        "[limits]": Limits,
        "[executor]": Executor,
        "[loading]": Loading,
        "[tensorflow]": TensorFlow,
        "[[models]]": Model,
        "[models.batching]": Batching,
        "[models.warmup]": Warmup,
        "[models.versions]": Versions,
        "[models.rollout]": Rollout,
    },
    from_text={Size: parse_size, MessageSize: parse_size, MemorySize: parse_size},
)


def read_config(path: str | os.PathLike[str], listen: tuple[str, ...] = ()) -> Config:
    """The configuration in the file at `path`, with [server] listen replaced by `listen` if that is given.

    ConfigError lists everything that is wrong with it.
    """
    file = os.fspath(path)
    return parse_config(read_text(file), file, listen)


def admin_socket(path: str | os.PathLike[str]) -> str:
    """The admin socket of the daemon that runs with the file at `path`, whatever else is wrong in there.

    ConfigError when the file cannot be read or is not TOML.
    """
    file = os.fspath(path)
    server = parse(read_text(file), file).get("server")
    keys = server if isinstance(server, dict) else {}
    state_dir, admin = (
        value if isinstance(value := keys.get(key), str) else "" for key in ("state_dir", "admin_socket")
    )
    return _own_paths(Path(file).resolve(), state_dir, admin)[1]


def parse_config(text: str, file: str, listen: tuple[str, ...] = ()) -> Config:
    """As read_config, from the file's text; relative paths start at the directory of `file`."""
    tables = parse(text, file)
    if listen and isinstance(tables.setdefault("server", {}), dict):
        # From the command line: relative to where the user is, not to the file.
        tables["server"]["listen"] = [
            f"unix:{os.path.abspath(text[5:])}" if len(text) > 5 and text.startswith("unix:") else text
            for text in listen
        ]
    problems: list[Problem] = []
    config = build(_SCHEMA, Config, tables, (), problems)
    if config is not None and not problems:
        config = _resolve(config, Path(file).resolve())
        problems = check(config, tables)
    if config is None or problems:
        raise refuse(problems, _SCHEMA, text, file, tables)
    return config


# ---- defaults that depend on other values, paths -----------------------------------------------


def _resolve(config: Config, file: Path) -> Config:
    base = file.parent
    server, limits = config.server, config.limits
    state_dir, admin = _own_paths(file, server.state_dir, server.admin_socket)
    listen = tuple(
        f"unix:{_path(base, text.removeprefix('unix:'))}"
        if text.startswith("unix:") and text != "unix:"
        else text
        for text in server.listen
    )
    total = limits.max_total_bytes or max(available_memory_bytes() // 4, limits.max_message_bytes)
    library_dir, litert_dir = config.tensorflow.library_dir, config.litert.library_dir
    cache_dir = config.loading.cache_dir
    return replace(
        config,
        server=replace(server, listen=listen, state_dir=state_dir, admin_socket=admin),
        limits=replace(limits, max_total_bytes=total),
        loading=replace(
            config.loading, cache_dir=_path(base, cache_dir) if cache_dir else f"{state_dir}/models"
        ),
        tensorflow=replace(
            config.tensorflow,
            library_dir=_path(base, library_dir) if library_dir else "",
            op_libraries=tuple(_path(base, library) for library in config.tensorflow.op_libraries),
        ),
        litert=replace(
            config.litert,
            library_dir=_path(base, litert_dir) if litert_dir else "",
            interpreters=config.litert.interpreters or config.executor.threads,
        ),
        models=tuple(
            replace(
                model,
                base_path=_path(base, model.base_path),
                batching=replace(
                    model.batching,
                    allowed_batch_sizes=model.batching.allowed_batch_sizes
                    or powers_of_two(model.batching.largest_batch),
                ),
            )
            for model in config.models
        ),
    )


def _own_paths(file: Path, state_dir: str, admin: str) -> tuple[str, str]:
    """[server] state_dir and admin_socket as the file has them, resolved."""
    state_dir = _path(file.parent, state_dir) if state_dir else _default_state_dir(file)
    return state_dir, _path(file.parent, admin) if admin else f"{state_dir}/admin.sock"


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `largest` itself."""
    sizes = [1 << i for i in range(largest.bit_length()) if 1 << i < largest]
    return (*sizes, largest)


def _path(base: Path, text: str) -> str:
    if "://" in text:
        return text
    return os.path.normpath(base / Path(text).expanduser())


def _default_state_dir(file: Path) -> str:
    """A directory of this configuration file's own, the same at every start."""
    home = os.environ.get("XDG_STATE_HOME", "")
    state_home = Path(home) if os.path.isabs(home) else Path("~/.local/state").expanduser()
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return str(state_home / "fastserve" / digest)
