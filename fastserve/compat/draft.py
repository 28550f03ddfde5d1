"""A configuration in the making: the tables of a config.toml, why each key is there, and what was said on
the way.

Filled by the readers of flags and files, each of which knows one part. Becomes a Config, or a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastserve.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """A key's value and where it comes from."""

    value: Any
    why: str = ""


@dataclass(frozen=True)
class WrittenFile:
    """A file that the configuration names and that is not there yet."""

    path: str
    text: str
    mode: int


Table = dict[str, Entry]


@dataclass
class Draft:
    """`tables` by dotted name, "server" or "server.tls"; `models` in their order, each with its own tables by
    name, "" for the keys of [[models]] itself; `every_model`: what each of them gets, too. `notes`: one
    line for each thing that has no effect. `files`: to be written before the configuration is used."""

    tables: dict[str, Table] = field(default_factory=dict)
    models: list[dict[str, Table]] = field(default_factory=list)
    every_model: dict[str, Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[WrittenFile] = field(default_factory=list)

    def set(self, table: str, key: str, value: Any, why: str = "") -> None:
        self.tables.setdefault(table, {})[key] = Entry(value, why)

    def set_every_model(self, table: str, key: str, value: Any, why: str = "") -> None:
        self.every_model.setdefault(table, {})[key] = Entry(value, why)

    def whole_models(self) -> list[dict[str, Table]]:
        """The models with what each of them gets, the keys of [[models]] first."""
        return [self._whole(model) for model in self.models]

    def _whole(self, model: dict[str, Table]) -> dict[str, Table]:
        names = dict.fromkeys(["", *model, *self.every_model])
        every = self.every_model
        return {name: {**model.get(name, {}), **every.get(name, {}), **model.get(name, {})} for name in names}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def trying(self) -> Collector:
        """`with draft.trying():` makes the ConfigErrors of a part problems of the whole."""
        return Collector(self)

    def toml_tables(self, models: Sequence[dict[str, Table]] | None = None) -> dict[str, Any]:
        """As tomllib would give them; with these models instead of the draft's own."""
        tables: dict[str, Any] = {}
        for name, table in self.tables.items():
            _put(tables, name, table)
        tables["models"] = []
        for model in self.whole_models() if models is None else map(self._whole, models):
            item: dict[str, Any] = {}
            for name, table in model.items():
                _put(item, name, table)
            tables["models"].append(item)
        return tables


class Collector:
    """See Draft.trying."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ConfigError):
            self._draft.problems += error.problems
            return True
        return False


def _put(tables: dict[str, Any], name: str, table: Table) -> None:
    for step in filter(None, name.split(".")):
        tables = tables.setdefault(step, {})
    tables.update({key: entry.value for key, entry in table.items()})
