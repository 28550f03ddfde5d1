"""What messages and services look like: protobuf's FileDescriptorProtos, by file and by symbol.

Read from fastserve/protos.binpb, a FileDescriptorSet, without protobuf: of each file its bytes are kept as they
are, and of what is in it only names. Used by reflection, on the loop; read at the core's start, which takes a few
milliseconds that no request waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from fastserve.core import wire

PATH = Path(__file__).parents[1] / "protos.binpb"

# The fields of descriptor.proto's messages that hold what has a name, and what that is described by.
_FILE = {4: "message", 5: "enum", 6: "service", 7: "leaf"}
_WITHIN: dict[str, dict[int, str]] = {
    "message": {2: "leaf", 3: "message", 4: "enum", 6: "leaf", 8: "leaf"},
    "enum": {2: "leaf"},
    "service": {2: "leaf"},
    "leaf": {},
}
_NAME, _PACKAGE, _DEPENDENCY = 1, 2, 3


class Descriptors:
    """The files of a FileDescriptorSet. Raises wire.Malformed when `data` is none."""

    def __init__(self, data: bytes) -> None:
        self._files: dict[str, bytes] = {}
        self._dependencies: dict[str, list[str]] = {}
        self._homes: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        for field, file in wire.fields(data):
            if field == (1, wire.BYTES):
                self._add(file)

    @classmethod
    def read(cls, path: Path = PATH) -> Descriptors:
        return cls(path.read_bytes())

    def file(self, name: str) -> bytes | None:
        """A serialized FileDescriptorProto."""
        return self._files.get(name)

    def home(self, symbol: str) -> str | None:
        """The file in which the full name `symbol` is described."""
        return self._homes.get(symbol)

    def kind(self, symbol: str) -> str | None:
        """What `symbol` is: "message", "enum", "service", or "leaf" for what is in one of these."""
        return self._kinds.get(symbol)

    def needed(self, name: str) -> Iterator[str]:
        """`name`, and the files that it needs, each once."""
        seen = {name}
        waiting = [name]
        while waiting:
            file = waiting.pop()
            yield file
            more = [needed for needed in self._dependencies.get(file, ()) if needed not in seen]
            seen.update(more)
            waiting += reversed(more)

    def keep(self, services: Iterable[str]) -> None:
        """Forgets the files that none of these services needs."""
        homes = [self._homes[service] for service in services if service in self._homes]
        kept = {file for home in homes for file in self.needed(home)}
        self._files = {name: data for name, data in self._files.items() if name in kept}
        self._homes = {symbol: home for symbol, home in self._homes.items() if home in kept}
        self._kinds = {symbol: kind for symbol, kind in self._kinds.items() if symbol in self._homes}

    def _add(self, file: bytes) -> None:
        texts: dict[int, list[str]] = {_NAME: [], _PACKAGE: [], _DEPENDENCY: []}
        parts = []
        for (number, kind), value in wire.fields(file):
            if kind == wire.BYTES and number in texts:
                texts[number].append(wire.text(value))
            elif kind == wire.BYTES and number in _FILE:
                parts.append((_FILE[number], value))
        name = texts[_NAME][-1] if texts[_NAME] else ""
        scope = f"{texts[_PACKAGE][-1]}." if texts[_PACKAGE] else ""
        self._files[name] = file
        self._dependencies[name] = texts[_DEPENDENCY]
        for kind_of, part in parts:
            for symbol, what in _symbols(kind_of, part, scope):
                self._homes[symbol] = name
                self._kinds[symbol] = what


def _symbols(kind: str, described: bytes, scope: str) -> Iterator[tuple[str, str]]:
    """The full names of what is described, and of what is in it."""
    name = ""
    parts = []
    for (number, wire_type), value in wire.fields(described):
        if wire_type != wire.BYTES:
            continue
        if number == _NAME:
            name = wire.text(value)
            if kind == "leaf":
                break
        elif number in _WITHIN[kind]:
            parts.append((_WITHIN[kind][number], value))
    yield scope + name, kind
    # An enum's values are its siblings, as in C++.
    within = scope if kind == "enum" else f"{scope}{name}."
    for kind_of, part in parts:
        yield from _symbols(kind_of, part, within)
