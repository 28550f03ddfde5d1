"""Protobuf messages written as text, as TensorFlow Serving's configuration files are.

An error says file and line, what is wrong there and what would be right; a field that the message does not
have is one. Used by the command line, the configuration's checks and the control process; touches nothing
but the file that it is given.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from fastserve.errors import ConfigError
from fastserve.protos import message, pool

_UNKNOWN_FIELD = re.compile(r'Message type "(?P<type>[\w.]+)" has no field named "(?P<field>\w+)"')
_WRAPPERS = "google.protobuf."


@dataclass(frozen=True)
class TextProto:
    """A message, and the text that it was read from."""

    file: str
    text: str
    message: Any

    def at(self, *fields: str | int) -> str:
        """FILE:LINE of a field, as good as can be told by looking for its name: `at("config", 1,
        "base_path")` is base_path in the second config."""
        start, end = 0, len(self.text)
        place = 0
        for i, field in enumerate(fields):
            if isinstance(field, int):
                continue
            number = fields[i + 1] if i + 1 < len(fields) else 0
            found = [
                m.start()
                for m in re.finditer(rf"\b{field}\b(?=\s*[:{{<\[])", self.text)
                if start <= m.start() < end
            ]
            index = number if isinstance(number, int) else 0
            if index >= len(found):
                break
            place = start = found[index]
            end = found[index + 1] if index + 1 < len(found) else end
        return f"{self.file}:{self.text.count(chr(10), 0, place) + 1}"


def read_text_proto(file: str, name: str) -> TextProto:
    """The message `name` that `file` holds. ConfigError says what is wrong with the file."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{file}: no such file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{file}: not UTF-8 text, at byte {error.start}; expected {_an(name)} as text"]
        ) from None
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from None
    return parse_text_proto(text, name, file)


def parse_text_proto(text: str, name: str, file: str) -> TextProto:
    """As read_text_proto, from the file's text."""
    try:
        parsed = text_format.Parse(text, message(name)(), descriptor_pool=pool())
    except text_format.ParseError as error:
        raise ConfigError([_describe(error, text, name, file)]) from None
    return TextProto(file, text, parsed)


def one_line(parsed: Any) -> str:
    """A message as text in one line, for errors and notes."""
    return text_format.MessageToString(parsed, as_one_line=True, descriptor_pool=pool())


def _describe(error: text_format.ParseError, text: str, name: str, file: str) -> str:
    line = error.GetLine()
    place = f"{file}:{line}" if line else file
    words = re.sub(r"^\d+:\d+ : ", "", str(error)).strip()
    # The parser repeats the line before what it has to say of it.
    words = re.sub(r"^'.*': ", "", words, flags=re.DOTALL).rstrip(".")
    unknown = _UNKNOWN_FIELD.search(words)
    if unknown:
        return f"{place}: {_unknown_field(unknown['type'], unknown['field'])}"
    here = text.splitlines()[line - 1].strip() if line and line <= len(text.splitlines()) else ""
    return f"{place}: {words}{_wrapped(here, name)}; expected {_an(name)} as text"


def _unknown_field(kind: str, field: str) -> str:
    short = kind.rsplit(".", 1)[-1]
    try:
        there = [known.name for known in pool().FindMessageTypeByName(kind).fields]
    except KeyError:
        there = []
    near = difflib.get_close_matches(field, there, n=1)
    if near:
        return f"{short} has no field {field}; did you mean {near[0]}?"
    return f"{short} has no field {field}; there are {', '.join(there) or 'none'}"


def _wrapped(here: str, name: str) -> str:
    """The usual mistake with the numbers that need a { value: } around them."""
    given = re.match(r"(\w+)\s*:\s*([^{\s]+)", here)
    if given is None:
        return ""
    field = pool().FindMessageTypeByName(name).fields_by_name.get(given[1])
    if field is None or field.message_type is None or not field.message_type.full_name.startswith(_WRAPPERS):
        return ""
    return f": write {given[1]} {{ value: {given[2]} }}"


def _an(name: str) -> str:
    short = name.rsplit(".", 1)[-1]
    return f"{'an' if short.startswith('SSL') else 'a'} {short}"
