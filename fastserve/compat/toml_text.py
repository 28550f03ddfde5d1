"""A draft as the text of a config.toml, with where each key comes from as its comment. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastserve.compat.draft import Draft, Table

# A comment beside its key would make the line longer than this: it goes above.
_WIDTH = 110


def toml_text(draft: Draft, title: str) -> str:
    """The whole file. `title`: its first comment."""
    lines = [f"# {line}" for line in title.splitlines()]
    lines += [f"# {note}" for note in draft.notes]
    for name, table in draft.tables.items():
        lines += ["", f"[{name}]", *_keys(table)]
    for model in draft.whole_models():
        lines += ["", "[[models]]", *_keys(model.get("", {}))]
        for name, table in model.items():
            if name:
                lines += ["", f"[models.{name}]", *_keys(table)]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _keys(table: Table) -> Iterator[str]:
    for key, entry in table.items():
        line = f"{key} = {toml_value(entry.value)}"
        if entry.why and "\n" not in line and len(line) + len(entry.why) + 4 <= _WIDTH:
            yield f"{line}  # {entry.why}"
            continue
        if entry.why:
            yield f"# {entry.why}"
        yield line


def toml_value(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        items = ", ".join(f'"{_escaped(key)}" = {toml_value(item)}' for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return repr(value)


def _string(text: str) -> str:
    if "\n" in text:
        lines = [_escaped(line) for line in text.split("\n")]
        return '"""\n' + "\n".join(lines) + '"""'
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
