"""JSON as requests bring it: parsed by orjson, and what is wrong with it in TensorFlow Serving's words.

TensorFlow Serving takes the tokens NaN, Infinity and -Infinity, which orjson does not: a text that orjson
refuses is parsed again by the standard library's parser, which does, and whose errors say where. Pure
functions.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from fastserve.gateway.refusal import InvalidArgument

_BOM = b"\xef\xbb\xbf"
_PREFIX = "JSON Parse error: "
_SHOWN_CHARS = 1024
# What TensorFlow Serving's parser says where Python's says something else.
_WORDS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_TOO_BIG = "Number too big to be stored in double."
_TOKENS = re.compile(r"NaN|Inf")
# Possessive, and with no need of its last quotation mark: it never goes back, for which it would have to
# remember every character, and never begins again within a string.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_SHORT_INFINITY = re.compile(rf"{_STRING}|\bInf\b", re.DOTALL)
_BRACKETS = re.compile(rf"{_STRING}|[][{{}}]", re.DOTALL)
# In how much text it is worth while to look which bracket is open.
_LOOKED_AT_CHARS = 1 << 20
# What may be more than a double holds.
_LARGE = re.compile(r"[eE]\+?\d{3}|\d{309}")


def parse(body: bytes) -> dict[str, Any]:
    """The object that a request's body is. InvalidArgument when it is none."""
    if not body:
        raise InvalidArgument(f"{_PREFIX}The document is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _parse_again(body)
    if type(value) is not dict:
        raise InvalidArgument(f"JSON Value: {shown(value)} Is not object")
    return value


def shown(value: object) -> str:
    """A value as an error shows it: indented, and cut to a bearable length."""
    if isinstance(value, float):
        return number_text(value)
    text = ""
    for piece in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
        text += piece
        if len(text) > _SHOWN_CHARS:
            return text[:_SHOWN_CHARS] + "...TRUNCATED"
    return text


def number_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def type_name(value: object) -> str:
    """The kind of a JSON value, as TensorFlow Serving calls it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, (int, float)):
        return "Number"
    return "Object" if isinstance(value, dict) else "Array" if isinstance(value, list) else "String"


def _parse_again(body: bytes) -> Any:
    body = body.removeprefix(_BOM)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _error("Invalid encoding in string.", error.start) from None
    if not text.strip(" \t\r\n"):
        raise _error("The document is empty.", len(body))
    try:
        try:
            value = _loads(text)
        except json.JSONDecodeError:
            if "Inf" not in text:
                raise
            value = _loads(_SHORT_INFINITY.sub(lambda match: _whole_infinity(match[0]), text))
    except json.JSONDecodeError as error:
        raise _error(_words(error, text), len(text[: error.pos].encode())) from None
    except RecursionError:
        raise InvalidArgument(f"{_PREFIX}Terminate parsing due to Handler error. at offset: 0") from None
    if not _TOKENS.search(text) and not body.startswith(_BOM):
        _check(text)
    return value


def _loads(text: str) -> Any:
    if _LARGE.search(text):
        return json.loads(text, parse_float=_finite, parse_int=_whole)
    return json.loads(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidArgument(f"{_PREFIX}{_TOO_BIG} at offset: 0")
    return value


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= 20 else _finite(text)


def _whole_infinity(text: str) -> str:
    return "Infinity" if text == "Inf" else text


def _check(text: str) -> None:
    """Python's parser takes more than JSON: what orjson refuses even so is wrong."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        words = "The surrogate pair in string is invalid." if "surrogate" in error.msg else "Invalid value."
        raise _error(words, len(text[: error.pos].encode("utf-8", "replace"))) from None


def _words(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Expecting ',' delimiter":
        if error.pos > _LOOKED_AT_CHARS:
            return "Missing a comma or a closing bracket."
        if _opened(text[: error.pos]) == "{":
            return "Missing a comma or } after an object member."
        return "Missing a comma or ] after an array element."
    return _WORDS.get(error.msg, error.msg + ".")


def _opened(text: str) -> str:
    """The bracket that is still open at the end of a text that is good up to there."""
    open_: list[str] = []
    for token in _BRACKETS.finditer(text):
        if token[0] in "{[":
            open_.append(token[0])
        elif token[0] in "}]" and open_:
            open_.pop()
    return open_[-1] if open_ else ""


def _error(words: str, offset: int) -> InvalidArgument:
    return InvalidArgument(f"{_PREFIX}{words} at offset: {offset}")
