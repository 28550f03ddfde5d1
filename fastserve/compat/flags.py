"""A command line of tensorflow_model_server, read as TensorFlow's flag parser reads it.

--name=value, and for bools also --name, --name=true, --name=false. What is given twice counts as given
last. What no flag takes is left over, and neither it nor anything after -- ends the start. Pure functions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastserve.compat.flag_table import BY_NAME, FLAGS, Flag, Value

_BITS = {"int32": 31, "int64": 63}


class WrongFlags(Exception):
    """The command line cannot be used, or asks for help: usage is shown. `problems` may be empty."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Flags:
    """The values given, by name, and arguments that no flag took."""

    given: Mapping[str, Value]
    unknown: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        return str(self._value(name))

    def number(self, name: str) -> int:
        return int(self._value(name))

    def fraction(self, name: str) -> float:
        return float(self._value(name))

    def is_on(self, name: str) -> bool:
        return bool(self._value(name))

    def _value(self, name: str) -> Value:
        value = self.given.get(name, BY_NAME[name].default)
        assert value is not None, f"{name} has no default of its own"
        return value


def parse_flags(arguments: Sequence[str]) -> Flags:
    """WrongFlags names every value that its flag does not take; without any for --help."""
    given: dict[str, Value] = {}
    unknown: list[str] = []
    problems: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            unknown += arguments[i:]
            break
        for flag in FLAGS:
            text = _after(flag, argument)
            if text is None:
                continue
            value = _read(flag, text)
            if value is None:
                problems.append(
                    f"Couldn't interpret value {text} for flag {flag.name}: expected {_expected(flag)}"
                )
            else:
                given[flag.name] = value
            break
        else:
            unknown.append(argument)
    if problems or unknown[:1] == ["--help"]:
        raise WrongFlags(problems)
    return Flags(given, tuple(unknown))


def why_unknown(argument: str) -> str:
    """What may have been meant by an argument that no flag takes; "" when nobody knows."""
    name = argument.removeprefix("--").partition("=")[0]
    if argument.startswith("--no") and BY_NAME.get(name[2:]) and BY_NAME[name[2:]].kind == "bool":
        return f"write --{name[2:]}=false"
    if argument.startswith("--") and name in BY_NAME:
        return f"write --{name}=VALUE"
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    if argument.startswith("-") and near:
        return f"did you mean --{near[0]}?"
    return ""


def usage(program: str) -> str:
    """All flags with their types and defaults, and what becomes of them."""
    lines = [f"usage: {program}", "Flags:"]
    for flag in FLAGS:
        default = f'"{flag.default}"' if flag.kind == "string" else flag.shown_default
        words = flag.text if flag.verdict.value == "works" else f"{flag.verdict.value}: {flag.text}"
        lines.append(f"\t{f'--{flag.name}={default}':33}\t{flag.kind}\t{words}")
    return "\n".join(lines) + "\n"


def _after(flag: Flag, argument: str) -> str | None:
    """What follows the flag's name, "=value" for bools; None when the argument is not this flag's."""
    start = f"--{flag.name}" if flag.kind == "bool" else f"--{flag.name}="
    return argument.removeprefix(start) if argument.startswith(start) else None


def _read(flag: Flag, text: str) -> Value | None:
    """None: not a value of this flag."""
    if flag.kind == "string":
        return text
    if flag.kind == "bool":
        return {"": True, "=true": True, "=false": False}.get(text.lower())
    if flag.kind == "float":
        number = re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII)
        return float(text) if number else None
    if not re.fullmatch(r"\s*[+-]?\d+", text, re.ASCII):
        return None
    bits = _BITS[flag.kind]
    return int(text) if -(1 << bits) <= int(text) < 1 << bits else None


def _expected(flag: Flag) -> str:
    if flag.kind == "bool":
        return f"--{flag.name}, --{flag.name}=true or --{flag.name}=false"
    return "a number" if flag.kind == "float" else "a whole number"
