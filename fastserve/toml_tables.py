"""TOML tables to msgspec structs, and what is wrong with them in the file's own words.

For every file that FastServe reads: an error says file and line, table, key, value, and what would be right,
and all of them are found in one go. Knows no file format of its own. Pure functions.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from fastserve.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)

# A place in the file: ("limits", "max_connections"), ("models", 0, "batching", "max_batch_size").
Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `text` says what would be right."""

    where: Where
    text: str
    show_value: bool = True


@dataclass(frozen=True)
class Schema:
    """What a kind of file may hold, beyond what its structs say.

    tables: table names as the file has them to their structs, to say where a misplaced key belongs.
    from_text: types that may also be given as a string, and what reads it (ValueError: not legal).
    """

    tables: Mapping[str, type[msgspec.Struct]]
    from_text: Mapping[Any, Callable[[str], Any]] = field(default_factory=dict)


def read_text(file: str) -> str:
    """The text of a UTF-8 file. Raises ConfigError."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{file}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: not UTF-8 text, at byte {error.start}"]) from None
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from None


def parse(text: str, file: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: not valid TOML: {error}"]) from None


def refuse(
    problems: list[Problem], schema: Schema, text: str, file: str, tables: dict[str, Any]
) -> ConfigError:
    """The error that lists `problems`, found in `tables`, which is what the file's `text` holds."""
    lines = _key_lines(text)
    return ConfigError([_describe(problem, schema, file, lines, tables) for problem in problems])


def build(
    schema: Schema, kind: type[S], table: dict[str, Any], where: Where, problems: list[Problem]
) -> S | None:
    """`table` as a `kind`; None, and the reasons added to `problems`, when it does not fit."""
    before = len(problems)
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for key, value in table.items():
        if key not in hints:
            problems.append(Problem((*where, key), _unknown_key(schema, kind, key, where), show_value=False))
        else:
            values[key] = _convert(schema, hints[key], value, (*where, key), problems)
    for known in msgspec.structs.fields(kind):
        if known.required and known.name not in table:
            problems.append(Problem((*where, known.name), "is missing", show_value=False))
    return kind(**values) if len(problems) == before else None


def _convert(schema: Schema, hint: Any, value: Any, where: Where, problems: list[Problem]) -> Any:
    if get_origin(hint) in (Union, types.UnionType):  # a table that need not be there
        hint = next(filter(_is_struct, get_args(hint)), hint)
    element: Any = get_args(hint)[0] if get_origin(hint) is tuple else None
    if _is_struct(hint):
        if isinstance(value, dict):
            return build(schema, hint, value, where, problems)
        problems.append(Problem(where, f"expected a table, [{_dotted(where)}]"))
        return None
    if _is_struct(element):
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return tuple(build(schema, element, item, (*where, i), problems) for i, item in enumerate(value))
        problems.append(
            Problem(where, f"expected one or more tables, [[{_dotted(where)}]]", show_value=False)
        )
        return None
    if get_origin(hint) is dict:
        inner = get_args(hint)[1]
        if not isinstance(value, dict):
            name = f"{_dotted(where)}.NAME" if _is_struct(inner) else _dotted(where)
            problems.append(Problem(where, f"expected a table, [{name}]"))
            return None
        return {key: _convert(schema, inner, item, (*where, key), problems) for key, item in value.items()}
    if isinstance(value, str) and hint in schema.from_text:
        try:
            value = schema.from_text[hint](value)
        except ValueError:
            problems.append(Problem(where, f"expected {_expected(hint)}"))
            return None
    try:
        converted = msgspec.convert(value, hint)
    except msgspec.ValidationError:
        problems.append(Problem(where, f"expected {_expected(hint)}{_nearest(hint, value)}"))
        return None
    if isinstance(converted, float) and math.isnan(converted):
        problems.append(Problem(where, f"expected {_expected(hint)}"))
    return converted


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _expected(hint: Any) -> str:
    """What values of a type look like, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next(meta.description or "" for meta in args[1:] if isinstance(meta, msgspec.Meta))
    if origin is Literal:
        return _or([json.dumps(arg) for arg in args])
    if origin is tuple:
        return f"a list, each item {_expected(args[0])}"
    if origin in (Union, types.UnionType):
        return _or([_expected(arg) for arg in args if arg is not type(None)])
    return {bool: "true or false", str: "a string"}[hint]


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _nearest(hint: Any, value: object) -> str:
    """; did you mean "full"? -- for a choice that is nearly right."""
    if get_origin(hint) is not Literal or not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, get_args(hint), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _unknown_key(schema: Schema, kind: type[msgspec.Struct], key: str, where: Where) -> str:
    near = difflib.get_close_matches(key, kind.__struct_fields__, n=1)
    home = [name for name, table in schema.tables.items() if key in table.__struct_fields__]
    if home and where:
        return f"no such key here; it belongs in {_or(home)}"
    if near:
        return f"no such key; did you mean {near[0]}?"
    if home:
        return f"no such key here; it belongs in {_or(home)}"
    return f"no such key; there are {', '.join(kind.__struct_fields__)}"


def _describe(
    problem: Problem, schema: Schema, file: str, lines: dict[Where, int], tables: dict[str, Any]
) -> str:
    where = problem.where
    line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
    place = f"{file}:{line}" if line else file
    if not where:
        return f"{place}: {problem.text}"
    found: Any = tables
    try:
        for step in where:
            found = found[step]
        value = f" = {_toml(found)}" if problem.show_value else ""
    except (KeyError, IndexError, TypeError):
        value = ""
    return f"{place}: {_place(where, schema, tables)}{value}: {problem.text}"


def _place(where: Where, schema: Schema, tables: dict[str, Any]) -> str:
    """Table and key: "[load] closed[0].in_flight", "[models.batching] of ranker, max_batch_size"."""
    start = 2 if len(where) > 2 and f"[[{where[0]}]]" in schema.tables else 0
    items = [i for i in range(start, len(where)) if isinstance(where[i], int)]
    last = items[0] - 1 if items else len(where) - 1
    key = str(where[last])
    for step in where[last + 1 :]:
        key += f"[{step}]" if isinstance(step, int) else f".{step}"
    return _table_name(where[:last], start, tables) + key


def _table_name(table: Where, start: int, tables: dict[str, Any]) -> str:
    if not table:
        return ""
    if start:
        array, number = str(table[0]), int(table[1])
        item = tables[array][number]
        given = item.get("name", item.get("path")) if isinstance(item, dict) else None
        which = given if isinstance(given, str) and given else f"number {number + 1}"
        if len(table) == start:
            return f"[[{array}]] {which}, "
        return f"[{'.'.join([array, *map(str, table[2:])])}] of {which}, "
    return f"[{_dotted(table)}] "


def _dotted(where: Where) -> str:
    return ".".join(str(step) for step in where if isinstance(step, str))


def _toml(value: object) -> str:
    """A value as the file would have it, cut to a readable length."""
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


_HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"\s*([\w-]+)\s*=")


def _key_lines(text: str) -> dict[Where, int]:
    """Line numbers of tables and keys, found by looking at line starts: good for messages only."""
    lines: dict[Where, int] = {}
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = ()
            for step in header[2].split("."):
                table = (*table, step)
                if header[1] == "[[" and table == tuple(header[2].split(".")):
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, key[1]), number)
    return lines
