"""The models: --model_config_file, or --model_name and --model_base_path.

The file's ModelConfigs are read as HandleReloadConfigRequest's are, with TensorFlow Serving's words for
what is wrong, and with the line where it stands.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fastserve.compat.draft import Draft, Entry, Table
from fastserve.compat.flags import Flags
from fastserve.config import Model
from fastserve.control.reload_request import Refused, models_of, new_model
from fastserve.protos import message
from fastserve.text_proto import TextProto, read_text_proto

_PLACE = "model_config_list"


def add_models(draft: Draft, flags: Flags, logs: str) -> None:
    """[[models]] of the flags, or of the file where there is one. `logs`: where requests are logged to."""
    file = flags.text("model_config_file")
    if not file:
        _add_one(draft, flags, logs)
        return
    for name in ("model_name", "model_base_path"):
        if name in flags.given:
            draft.note(f"--{name} has no effect beside --model_config_file, which names the models")
    with draft.trying():
        _add_listed(draft, read_text_proto(file, "tensorflow.serving.ModelServerConfig"), logs)


def _add_one(draft: Draft, flags: Flags, logs: str) -> None:
    name, base_path = flags.text("model_name"), flags.text("model_base_path")
    if not base_path:
        draft.problem(
            "Both server_options.model_base_path and server_options.model_config_file are empty! "
            "Give --model_base_path, or --model_config_file"
        )
        return
    config = message("tensorflow.serving.ModelConfig")(
        name=name, base_path=base_path, model_platform="tensorflow"
    )
    _add(draft, config, "--model_base_path", logs)


def _add_listed(draft: Draft, source: TextProto, logs: str) -> None:
    config = source.message
    if config.WhichOneof("config") == "custom_model_config":
        draft.problem(
            f"{source.at('custom_model_config')}: custom_model_config is not served, here or in "
            "TensorFlow Serving's own binary: expected model_config_list"
        )
        return
    if config.WhichOneof("config") is None:
        # Half a file looks like this, too.
        draft.problem(f"{source.file}: nothing is in it: expected model_config_list {{ config {{ ... }} }}")
    listed = config.model_config_list.config
    seen: set[str] = set()
    for i, entry in enumerate(listed):
        where = source.at(_PLACE, "config", i)
        if entry.name in seen:
            draft.problem(f"{where}: Illegal to list model {entry.name} multiple times in config list")
        seen.add(entry.name)
        _add(draft, entry, where, logs)


def _add(draft: Draft, config: Any, where: str, logs: str) -> None:
    try:
        (model,) = models_of([config], {}, logs)
    except Refused as refused:
        draft.problem(f"{where}: {refused}")
        return
    draft.models.append(_tables(model, where))


def _tables(model: Model, where: str) -> dict[str, Table]:
    """What the model's entry says that is not the default."""
    default = new_model(model.name, "")
    tables: dict[str, Table] = {"": {}}
    for name in model.__struct_fields__:
        value, usual = getattr(model, name), getattr(default, name)
        if isinstance(value, Struct):
            inner = {
                key: Entry(getattr(value, key))
                for key in value.__struct_fields__
                if getattr(value, key) != getattr(usual, key)
            }
            tables |= {name: inner} if inner else {}
        elif value != usual or name == "name":
            tables[""][name] = Entry(value, where if name == "name" else "")
    return tables
