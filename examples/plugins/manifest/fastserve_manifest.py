"""A Source, source = "manifest": the versions are those that a file lists, wherever they lie.

`base_path` is a JSON file, written by whatever releases models:

    {"versions": [{"version": 7, "path": "/models/ranker-2024-05-01"},
                  {"version": 8, "path": "ranker-2024-05-02"}]}

Relative paths start at the file's directory. Replace the file by renaming a new one over it.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from fastserve.extensions import Aspire, Aspired, SourceContext, VersionPath


class ManifestError(ValueError):
    """The file does not list versions."""


class ManifestSource:
    """fastserve.extensions.Source for one model."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._listed: list[VersionPath] = []

    async def run(self, aspire: Aspire) -> None:
        """Reads the file every poll_s seconds, once if that is 0. A file that cannot be used changes nothing
        of what is served; the model's status says what is wrong with it. May be cancelled and run again."""
        said: tuple[tuple[VersionPath, ...], tuple[str, ...], str] | None = None
        while True:
            problem = ""
            try:
                # Even stat may block for long, on a network's file system.
                self._listed = await asyncio.to_thread(read_manifest, self._context.model.base_path)
            except (OSError, ManifestError) as error:
                problem = str(error)
            known = self._chosen()
            now = known, tuple(version.fingerprint for version in known), problem
            if now != said:
                aspire(Aspired(known, problem))
                said = now
            if self._context.poll_s == 0:
                await asyncio.Event().wait()  # until it is cancelled
            await asyncio.sleep(self._context.poll_s)

    def _chosen(self) -> tuple[VersionPath, ...]:
        """Those that [models.versions] asks for, and who operates the daemon."""
        by_number = {version.version: version for version in self._listed}
        return tuple(by_number[number] for number in self._context.choose(by_number))


def read_manifest(path: str) -> list[VersionPath]:
    """The versions in the file at `path`. OSError, or ManifestError when it does not list versions."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))["versions"]
        listed = [_version(entry["version"], entry["path"], Path(path).parent) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f'{path}: expected {{"versions": [{{"version": 7, "path": "..."}}, ...]}}: '
            f"{type(error).__name__}: {error}"
        ) from None
    numbers = [version.version for version in listed]
    if len(set(numbers)) != len(numbers):
        raise ManifestError(f"{path}: a version is there twice: {numbers}")
    return listed


def _version(number: object, path: object, start: Path) -> VersionPath:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
        raise ValueError(f"a version is a number, not {number!r}")
    if not isinstance(path, str):
        raise ValueError(f"a path is a text, not {path!r}")
    place = start / path
    # A path that is not there yet is for the loader to report; it changes when it comes.
    status = os.stat(place) if place.exists() else None
    fingerprint = f"{place} {status.st_ino} {status.st_mtime_ns}" if status else str(place)
    return VersionPath(number, str(place), fingerprint)
