"""What was counted since this process began, whatever has closed or died: sums that never go down.

A version's series ends with it, and all series end with their core. What they had come to is added up here
for each model and signature, and shown as a series without a version, as long as the model is configured.
Used by telemetry: `follow` and `keep` on the event loop, `look` in its thread.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import TypeVar

from fastserve._native.metrics import Metrics, MetricsSnapshot, Series
from fastserve.control.shared_memory import METRICS, SharedMemory

Key = TypeVar("Key")


class MetricTotals:
    """Reads the core of now, and remembers those before. Read at least as often as cores come and go."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._generation = -1
        self._reader: Metrics | None = None
        # Of the core of now, as they were read last, by serial number.
        self._seen: dict[int, Series] = {}
        self._ended: dict[tuple[str, str], Series] = {}
        self._unresolved: dict[tuple[str, str, str], int] = {}
        # Whose sums are kept; None: all.
        self._models: Collection[str] | None = None

    def follow(self) -> None:
        """Turns to the core of now. On the event loop, where cores come and go."""
        if self._shared.generation != self._generation:
            self._change()

    def keep(self, models: Collection[str]) -> None:
        """From the next look on there are no sums of closed versions of other models than these; "" stands
        for versions that share one block, and is kept."""
        self._models = {"", *models}

    def look(self) -> MetricsSnapshot:
        """One series for each signature of each version that is open; and for each signature of which
        versions have closed, one of all of these, with version None. Of the core that was there when `follow`
        was called last; in a thread, one at a time and with no `follow` meanwhile. ValueError: the core is of
        another version of FastServe."""
        now = self._reader.read() if self._reader is not None else MetricsSnapshot()
        there = {series.serial: series for series in now.series}
        for serial, series in self._seen.items():
            if serial not in there:
                _add(self._ended, (series.model, series.signature), series, None)
        self._seen = there
        if self._models is not None:
            self._ended = {key: series for key, series in self._ended.items() if key[0] in self._models}

        open_series: dict[tuple[str, int | None, str], Series] = {}
        ended = dict(self._ended)
        for series in now.series:
            if series.closed:
                _add(ended, (series.model, series.signature), series, None)
            else:
                # A version that is being renewed is there twice.
                _add(open_series, (series.model, series.version, series.signature), series, series.version)
        return MetricsSnapshot(
            _sum(self._unresolved, now.unresolved), [*open_series.values(), *ended.values()]
        )

    def _change(self) -> None:
        """Another core has come: what the one before had counted at its end is final. It is added once,
        whatever can be read of either."""
        reader, self._reader = self._reader, None
        seen, self._seen = self._seen, {}
        if reader is not None:
            with suppress(ValueError):
                last = reader.read()
                seen.update({series.serial: series for series in last.series})
                self._unresolved = _sum(self._unresolved, last.unresolved)
            for series in seen.values():
                _add(self._ended, (series.model, series.signature), series, None)
        fd = self._shared.current(METRICS)
        self._reader = Metrics(fd) if fd is not None else None
        self._generation = self._shared.generation


def _add(to: dict[Key, Series], key: Key, series: Series, version: int | None) -> None:
    if version is None:  # what is over waits for nobody
        series = _at_rest(series)
    to[key] = to[key].plus(series, version) if key in to else series


def _at_rest(series: Series) -> Series:
    ended = Series(series.model, None, series.signature).plus(series)
    ended.waiting_calls = ended.waiting_rows = 0
    return ended


def _sum(one: dict[Key, int], other: dict[Key, int]) -> dict[Key, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in one.keys() | other.keys()}
