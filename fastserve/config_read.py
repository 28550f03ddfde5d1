"""Reads config.toml into a Config, with defaults filled in and paths made absolute.

What is wrong is said in the file's own words: file and line, table, key, value, and what would be
right. All problems are found in one go. Called by the command line; touches nothing but the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fastserve.cgroup import available_memory_bytes
from fastserve.config import (
    Batching,
    Config,
    Executor,
    Gateway,
    Limits,
    Loading,
    Logging,
    MemorySize,
    MessageSize,
    Model,
    Monitoring,
    Rollout,
    Route,
    Server,
    ServerTls,
    Size,
    TensorFlow,
    Tracing,
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
        "[server.tls]": ServerTls,
        "[gateway]": Gateway,
        "[limits]": Limits,
        "[executor]": Executor,
        "[loading]": Loading,
        "[monitoring]": Monitoring,
        "[tensorflow]": TensorFlow,
        "[tracing]": Tracing,
        "[[models]]": Model,
        "[models.batching]": Batching,
        "[models.warmup]": Warmup,
        "[models.versions]": Versions,
        "[models.rollout]": Rollout,
        "[models.logging]": Logging,
        "[[routes]]": Route,
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
    return _daemon_paths(path)[1]


def monitor_socket(path: str | os.PathLike[str]) -> str:
    """As admin_socket, the socket on which that daemon tells how it does, over HTTP."""
    return f"{_daemon_paths(path)[0]}/monitor.sock"


def _daemon_paths(path: str | os.PathLike[str]) -> tuple[str, str]:
    """State directory and admin socket."""
    file = os.fspath(path)
    server = parse(read_text(file), file).get("server")
    keys = server if isinstance(server, dict) else {}
    state_dir, admin = (
        value if isinstance(value := keys.get(key), str) else "" for key in ("state_dir", "admin_socket")
    )
    return _own_paths(Path(file).resolve(), state_dir, admin)


def parse_config(text: str, file: str, listen: tuple[str, ...] = ()) -> Config:
    """As read_config, from the file's text; relative paths start at the directory of `file`."""
    tables = parse(text, file)
    if listen and isinstance(tables.setdefault("server", {}), dict):
        # From the command line: relative to where the user is, not to the file.
        tables["server"]["listen"] = [
            f"unix:{os.path.abspath(text[5:])}" if len(text) > 5 and text.startswith("unix:") else text
            for text in listen
        ]
    return _config(tables, text, file)


def config_of(tables: dict[str, Any], whence: str) -> Config:
    """The configuration in tables that stand in no file of ours; `whence` is what errors name. Without a
    model, too."""
    return _config(tables, "", whence, may_be_empty=True)


def _config(tables: dict[str, Any], text: str, file: str, *, may_be_empty: bool = False) -> Config:
    problems: list[Problem] = []
    config = build(_SCHEMA, Config, tables, (), problems)
    if config is not None and not problems:
        config = _resolve(config, Path(file).resolve())
        problems = check(config, tables, may_be_empty=may_be_empty)
    if config is None or problems:
        raise refuse(problems, _SCHEMA, text, file, tables)
    return config


# ---- defaults that depend on other values, paths -----------------------------------------------


def _resolve(config: Config, file: Path) -> Config:
    base = file.parent
    server, limits = config.server, config.limits
    state_dir, admin = _own_paths(file, server.state_dir, server.admin_socket)
    tls = server.tls
    total = limits.max_total_bytes or max(available_memory_bytes() // 4, limits.max_message_bytes)
    library_dir, litert_dir = config.tensorflow.library_dir, config.litert.library_dir
    cache_dir = config.loading.cache_dir
    return replace(
        config,
        server=replace(
            server,
            listen=tuple(_address(base, text) for text in server.listen),
            state_dir=state_dir,
            admin_socket=admin,
            admin_listen=_address(base, server.admin_listen),
            reload_roots=tuple(_path(base, root) for root in server.reload_roots),
            tls=replace(
                tls,
                certificate=_optional_path(base, tls.certificate),
                key=_optional_path(base, tls.key),
                client_ca=_optional_path(base, tls.client_ca),
            ),
        ),
        gateway=replace(config.gateway, listen=tuple(_address(base, text) for text in config.gateway.listen)),
        limits=replace(limits, max_total_bytes=total),
        loading=replace(config.loading, cache_dir=_optional_path(base, cache_dir) or f"{state_dir}/models"),
        monitoring=replace(
            config.monitoring,
            listen=tuple(_address(base, text) for text in config.monitoring.listen),
        ),
        tensorflow=replace(
            config.tensorflow,
            library_dir=_optional_path(base, library_dir),
            op_libraries=tuple(_path(base, library) for library in config.tensorflow.op_libraries),
        ),
        litert=replace(
            config.litert,
            library_dir=_optional_path(base, litert_dir),
            interpreters=config.litert.interpreters or config.executor.threads,
        ),
        models=tuple(
            replace(
                model,
                base_path=_path(base, model.base_path),
                token_file=_optional_path(base, model.token_file),
                batching=replace(
                    model.batching,
                    allowed_batch_sizes=model.batching.allowed_batch_sizes
                    or powers_of_two(model.batching.largest_batch),
                ),
                logging=replace(
                    model.logging,
                    filename_prefix=_path(base, model.logging.filename_prefix)
                    if model.logging.filename_prefix
                    else default_log_prefix(state_dir, model.name),
                ),
            )
            for model in config.models
        ),
        routes=tuple(replace(route, file=_path(base, route.file)) for route in config.routes),
    )


def default_log_prefix(state_dir: str, model: str) -> str:
    """Where a model's requests are logged unless the configuration says."""
    return f"{state_dir}/logs/{model}"


def _own_paths(file: Path, state_dir: str, admin: str) -> tuple[str, str]:
    """[server] state_dir and admin_socket as the file has them, resolved."""
    state_dir = _path(file.parent, state_dir) if state_dir else _default_state_dir(file)
    return state_dir, _path(file.parent, admin) if admin else f"{state_dir}/admin.sock"


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `largest` itself."""
    sizes = [1 << i for i in range(largest.bit_length()) if 1 << i < largest]
    return (*sizes, largest)


def _address(base: Path, text: str) -> str:
    """An address as the file has it, a unix socket's path resolved."""
    path = text.removeprefix("unix:")
    return f"unix:{_path(base, path)}" if path and path != text else text


def _optional_path(base: Path, text: str) -> str:
    return _path(base, text) if text else ""


def _path(base: Path, text: str) -> str:
    if "://" in text:
        return text
    return os.path.normpath(base / Path(text).expanduser())


def _default_state_dir(file: Path) -> str:
    """A directory of this configuration file's own, the same at every start."""
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    return str(state_home() / "fastserve" / digest)


def state_home() -> Path:
    """Where programs keep their state for the user."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return Path(home) if os.path.isabs(home) else Path("~/.local/state").expanduser()
