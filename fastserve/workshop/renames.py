"""What signatures, inputs and outputs are to be called: OLD=NEW from the command line, resolved. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from keyword import iskeyword

from fastserve.savedmodel import INTERNAL
from fastserve.workshop.errors import WorkshopError


def chosen_signatures(asked: Sequence[str], there: Sequence[str], *, named: bool) -> dict[str, str]:
    """By their new names, the signatures of the source that `asked`, NAME or OLD=NEW each, stands for; all
    of them where nothing is asked. Where the source's has no name (not `named`), NAME gives it one.
    WorkshopError."""
    if not asked:
        return {name: name for name in there}
    chosen: dict[str, str] = {}
    for text in asked:
        old, equals, new = text.partition("=")
        if not equals and not named:
            old, new = there[0], text
        elif not equals:
            new = old
        if old not in there:
            raise WorkshopError(
                f"--signature {text}: the source has no signature {old!r}; it has {_listed(there)}"
                + ("" if equals or len(there) != 1 else f", which --signature {there[0]}={text} renames")
            )
        if not new:
            raise WorkshopError(f"--signature {text}: expected NAME or OLD=NEW")
        if new.startswith(INTERNAL):
            raise WorkshopError(f"--signature {text}: names that begin with {INTERNAL} are TensorFlow's own")
        if new in chosen:
            raise WorkshopError(f"--signature {text}: two signatures cannot both be {new!r}")
        chosen[new] = old
    return chosen


class Renames:
    """OLD=NEW of inputs or of outputs; each must be of use somewhere."""

    def __init__(self, option: str, asked: Iterable[str], *, arguments: bool = False) -> None:
        """`option` is for the messages: "--input". `arguments`: names have to be such that TensorFlow takes
        them for arguments; others than those that are asked for are made so. WorkshopError."""
        self._option = option
        self._arguments = arguments
        self._new: dict[str, str] = {}
        self._unused: set[str] = set()
        self._seen: dict[str, None] = {}
        for text in asked:
            old, equals, new = text.partition("=")
            if not (old and equals):
                raise WorkshopError(f"{option} {text}: expected OLD=NEW, such as {option} input_1=features")
            if old in self._new:
                raise WorkshopError(f"{option} {text}: {old!r} has a new name already, {self._new[old]!r}")
            if not new or (arguments and argument_name(new) != new):
                raise WorkshopError(
                    f"{option} {text}: {new!r} is no name; letters, digits and _, with a letter first"
                )
            self._new[old] = new
            self._unused.add(old)

    def of(self, signature: str, names: Iterable[str]) -> dict[str, str]:
        """The new names of one signature's, by the old ones. WorkshopError: two would be the same."""
        found: dict[str, str] = {}
        by_new: dict[str, str] = {}
        for old in names:
            self._seen[old] = None
            self._unused.discard(old)
            new = self._new.get(old) or (argument_name(old) if self._arguments else old)
            if new in by_new:
                raise WorkshopError(
                    f"signature {signature!r}: {by_new[new]!r} and {old!r} would both be called {new!r}; "
                    f"give one of them another name with {self._option} OLD=NEW"
                )
            by_new[new] = old
            found[old] = new
        return found

    def check_used(self) -> None:
        """After the last signature. WorkshopError: a name that is none."""
        for old in sorted(self._unused):
            raise WorkshopError(
                f"{self._option} {old}={self._new[old]}: there is no {old!r}; there are {_listed(self._seen)}"
            )


def pairs(option: str, asked: Iterable[str], example: str) -> Mapping[str, str]:
    """NAME=VALUE each. WorkshopError."""
    found: dict[str, str] = {}
    for text in asked:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise WorkshopError(f"{option} {text}: expected {example}")
        found[name] = value
    return found


def argument_name(name: str) -> str:
    """`name` as TensorFlow calls a function's argument, and so an input: letters, digits and _, a letter
    first, and no word of Python's."""
    swapped = re.sub(r"\W", "_", name, flags=re.ASCII)
    taken = iskeyword(swapped) or swapped == "self"
    return swapped if swapped[:1].isalpha() and not taken else f"arg_{swapped}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
