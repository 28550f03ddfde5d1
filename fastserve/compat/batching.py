"""Batching: --enable_batching, --batching_parameters_file, --enable_per_model_batching_parameters, and the
batching_parameters of a platform's configuration."""

from __future__ import annotations

from typing import Any

from fastserve.batching_parameters import DEFAULTS, batching_table, read_batching
from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags
from fastserve.text_proto import TextProto

VERSION_FILE = "batching_params.pbtxt"


def add_batching(draft: Draft, flags: Flags) -> None:
    """[models.batching] of every model."""
    file = flags.text("batching_parameters_file")
    own = flags.is_on("enable_per_model_batching_parameters")
    if not flags.is_on("enable_batching"):
        if file:
            draft.problem(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true. Give --enable_batching, too, or leave "
                "--batching_parameters_file out"
            )
        if own:
            draft.note("--enable_per_model_batching_parameters has no effect without --enable_batching")
        return
    with draft.trying():
        table, notes = read_batching(file) if file else (dict(DEFAULTS), [])
        draft.notes += notes
        _set(draft, table, own, "--batching_parameters_file" if file else "--enable_batching")


def add_platform_batching(draft: Draft, source: TextProto, path: tuple[str | int, ...], own: bool) -> None:
    """[models.batching] of every model, from the BatchingParameters at `path` in `source`."""
    with draft.trying():
        table, notes = batching_table(source, path)
        draft.notes += notes
        _set(draft, table, own, "--platform_config_file")


def _set(draft: Draft, table: dict[str, Any], own: bool, why: str) -> None:
    if own:
        threads = table.get("num_batch_threads")
        dropped = [key for key in table if key != "num_batch_threads" and table[key] != DEFAULTS.get(key)]
        if dropped:
            draft.note(
                f"{why}: {', '.join(dropped)}: no effect beside per-model batching parameters, which stand "
                "in a file of each version"
            )
        table = {"version_file": VERSION_FILE} | ({"num_batch_threads": threads} if threads else {})
    for key, value in table.items():
        draft.set_every_model("batching", key, value, why)
