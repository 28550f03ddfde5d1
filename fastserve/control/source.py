"""What sources share: the versions in a directory, and which of them are to be served.

A version is a directory in the model's base path whose name is a number. Used by sources, the manager,
`fastserve check` and `fastserve inspect`; reads directory listings only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fastserve.config import Versions
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath

# Versions travel as int64.
_VERSION_MAX = (1 << 63) - 1


def list_versions(base_path: str) -> dict[int, str]:
    """Every version in `base_path` and its directory, rising. ModelError when it cannot be listed."""
    return _numbered(base_path, _entries(base_path))


def newest_version(base_path: str) -> VersionPath:
    """The highest version in `base_path`. ModelError, in words for the user, when there is none."""
    entries = _entries(base_path)
    found = _numbered(base_path, entries)
    if not found:
        raise ModelError(_why_none(base_path, entries))
    version = max(found)
    return VersionPath(version, found[version])


def why_none(base_path: str) -> str:
    """Why there is no version in `base_path`, and what would be right."""
    return _why_none(base_path, _entries(base_path))


def version_number(name: str) -> int | None:
    """The version that a directory of this name is; None when it is none."""
    if not (name.isascii() and name.isdigit()):
        return None
    number = int(name)
    return number if number <= _VERSION_MAX else None


def select(versions: Versions, there: Iterable[int]) -> list[int]:
    """Those of `there` that [models.versions] wants served, the newest last."""
    numbers = sorted(set(there))
    if versions.policy == "all":
        return numbers
    if versions.policy == "specific":
        return [number for number in numbers if number in versions.specific]
    return numbers[-versions.num_versions :]


@dataclass
class Choice:
    """Which versions of a model are to be served: what the configuration says, and what an operator has said
    since. Called by sources, from any thread; changed on the event loop."""

    versions: Versions
    # Replaced whole, never changed: a source may be looking.
    loaded: frozenset[int] = frozenset()  # served whatever the configuration says
    unloaded: frozenset[int] = frozenset()  # not served whatever it says
    paused: bool = False  # nothing is served
    changed: Callable[[], None] = field(default=lambda: None)

    def __call__(self, there: Iterable[int]) -> list[int]:
        if self.paused:
            return []
        numbers = set(there) - self.unloaded
        return sorted({*select(self.versions, numbers), *(numbers & self.loaded)})


def _entries(base_path: str) -> list[tuple[str, bool]]:
    try:
        return [(entry.name, entry.is_dir()) for entry in os.scandir(base_path)]
    except FileNotFoundError:
        raise ModelError(f"there is no directory {base_path}") from None
    except NotADirectoryError:
        raise ModelError(f"{base_path} is not a directory") from None
    except OSError as error:
        raise ModelError(f"{base_path} cannot be listed: {error.strerror}") from None


def _numbered(base_path: str, entries: list[tuple[str, bool]]) -> dict[int, str]:
    # "3" before "03" before "003", when they are there side by side.
    names = sorted((name for name, is_dir in entries if is_dir), key=len, reverse=True)
    found = {number: name for name in names if (number := version_number(name)) is not None}
    return {number: os.path.join(base_path, found[number]) for number in sorted(found)}


def _why_none(base_path: str, entries: list[tuple[str, bool]]) -> str:
    if any(name in ("saved_model.pb", "saved_model.pbtxt") for name, _ in entries):
        return (
            f"{base_path} is itself a SavedModel; base_path is the directory above it, "
            f"and a version's directory has a number for a name: move the model to {base_path}/1"
        )
    return f"{base_path} has no version: no directory in it has a number for a name, such as 1"
