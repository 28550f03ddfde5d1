"""The source for directories of this machine: polls a model's base path for versions.

Runs in the control process; a look is made in a thread, for a network file system may take its time. A new
version counts when it is whole (complete.py); one that has counted stays until its directory is gone, so that
a file system's bad moment takes nothing out of service. A base path that is gone, or empty, changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastserve.control.complete import fingerprint, why_incomplete, written_before
from fastserve.control.source import list_versions, why_none
from fastserve.control.version_format import BUILT_IN_PLATFORMS, rule_of
from fastserve.errors import ModelError
from fastserve.extensions import Aspire, Aspired, SourceContext, VersionPath

# Whole versions beside those wanted, for when all of these fail.
_SPARES = 3
# What was written so long before the first look is at rest.
_REST_S = 1.0
# For versions that are too young, before the first word.
_FIRST_LOOKS = 3


class FileSource:
    """Finds versions below [[models]] base_path."""

    def __init__(self, context: SourceContext, *, now: Callable[[], float] = time.time) -> None:
        self._base_path = context.model.base_path
        self._marker = context.model.versions.complete_marker
        # What other platforms' versions consist of is not known here.
        self._known = context.model.platform in BUILT_IN_PLATFORMS
        self._tflite = rule_of(context.model)
        self._choose = context.choose
        self._poll_s = context.poll_s
        self._now = now
        self._last_look = now() - _REST_S
        # Every version that is there, as the last look found it, and those of them that count.
        self._seen: dict[int, str] = {}
        self._whole: dict[int, VersionPath] = {}
        self._told = Aspired(())
        # Whether the last look found one that is whole, as far as one can see, and was written just now.
        self._young = False

    async def run(self, aspire: Aspire) -> None:
        """Says what is aspired at every change."""
        first = True
        while True:
            aspired = await asyncio.to_thread(self.look)
            if first:
                aspired = await self._rested(aspired)
            # Fingerprints are not compared by ==, and a version that failed waits for a new one.
            if first or repr(aspired) != repr(self._told):
                first, self._told = False, aspired
                aspire(aspired)
            if not self._poll_s:
                await asyncio.Event().wait()
            await asyncio.sleep(self._poll_s)

    async def _rested(self, aspired: Aspired) -> Aspired:
        """The first word is what a start waits for: it comes a moment later when a version has just been
        written."""
        for _ in range(_FIRST_LOOKS - 1):
            if not self._young:
                break
            await asyncio.sleep(min(self._poll_s or _REST_S, _REST_S))
            aspired = await asyncio.to_thread(self.look)
        return aspired

    def look(self) -> Aspired:
        """What is aspired now. Blocks."""
        began = self._now()
        try:
            there = list_versions(self._base_path)
            problem = "" if there else why_none(self._base_path)
        except ModelError as error:
            there, problem = {}, str(error)
        if problem:
            # Nobody who wants a model gone removes its directory to say so: the configuration is the place.
            kept = {path.version: path for path in self._told.versions}
            return Aspired(tuple(kept[v] for v in self._choose(kept)), problem, self._told.spares)

        self._whole = {v: whole for v, whole in self._whole.items() if there.get(v) == whole.path}
        self._seen = {v: seen for v, seen in self._seen.items() if v in there}
        reasons: dict[int, str] = {}

        def counts(version: int) -> bool:
            if version not in reasons:
                reasons[version] = self._why_not(version, there[version])
            return not reasons[version]

        usable = set(there)
        chosen = list(self._choose(usable))
        while partial := {version for version in chosen if not counts(version)}:
            usable -= partial
            chosen = list(self._choose(usable))
        below = sorted((v for v in usable if chosen and v < max(chosen) and v not in chosen), reverse=True)
        spares = [version for version in below[:_SPARES] if counts(version)]
        self._last_look = began
        self._young = _YOUNG in reasons.values()
        return Aspired(
            versions=tuple(self._whole[version] for version in chosen),
            problem="; ".join(why for why in reasons.values() if why and why != _YOUNG),
            spares=tuple(self._whole[version] for version in reversed(spares)),
        )

    def _why_not(self, version: int, path: str) -> str:
        """Why the version in `path` does not count yet; "" when it does."""
        print_ = fingerprint(path)
        before = self._seen.get(version)
        self._seen[version] = print_
        known = self._whole.get(version)
        at_rest = before == print_ or (before is None and written_before(path, self._last_look))
        if known is not None:
            if print_ and print_ != known.fingerprint and at_rest:
                self._whole[version] = VersionPath(version, path, print_)
            return ""
        if self._known or self._marker:
            why = why_incomplete(path, self._marker, self._tflite)
            if why:
                return f"version {version} does not count: {why}"
        if not print_:
            return f"version {version} does not count: {path} cannot be listed"
        if not at_rest and not self._marker:
            return _YOUNG
        self._whole[version] = VersionPath(version, path, print_)
        return ""


_YOUNG = "its files have just changed"
