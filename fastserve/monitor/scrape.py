"""A scrape: the figures of this moment as a text, rendered in a thread.

Rendering takes Python tens of milliseconds where many models are served, and probes must have their answer
meanwhile: the event loop goes on, and gets the interpreter between two of the thread's slices. One is
rendered at a time; who asks while it is, or shortly after, gets the same one.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastserve.monitor.clean_names import write_clean
from fastserve.monitor.exposition import Exposition
from fastserve.monitor.tensorflow_names import write_tensorflow
from fastserve.monitor.values import Figures, View

# More often than that nobody needs other figures.
_SHARED_S = 0.2
# Selections of families that are kept; there are only so many that anybody asks for.
_KEPT = 8

# The cheapest: what repeats itself as this does is small all the same.
_GZIP_LEVEL = 1

Key = tuple[bool, bool, tuple[str, ...]]


class Scraper:
    """Renders what `view` has. On the event loop."""

    def __init__(self, view: View, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._clock = clock
        self._turn = asyncio.Lock()
        # Its own: what downloads models may take all that others share.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor-scrape")
        self._last: dict[Key, tuple[float, bytes]] = {}

    def close(self) -> None:
        """Nothing is rendered any more."""
        self._thread.shutdown(wait=False)

    async def text(self, *, openmetrics: bool, zipped: bool = False, only: tuple[str, ...] = ()) -> bytes:
        """`only`: names of families or samples; none: all. `zipped`: with gzip."""
        key = (openmetrics, zipped, only)
        async with self._turn:
            if key in self._last:
                at, text = self._last[key]
                if self._clock() - at < _SHARED_S:
                    return text
            figures = await self._view.figures()
            work = partial(render, figures, openmetrics=openmetrics, zipped=zipped, only=only)
            text = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            if len(self._last) >= _KEPT:
                self._last.clear()
            self._last[key] = self._clock(), text
            return text


def render(figures: Figures, *, openmetrics: bool, zipped: bool = False, only: tuple[str, ...] = ()) -> bytes:
    """Everything, TensorFlow Serving's names first."""
    out = Exposition(openmetrics=openmetrics, only=only)
    write_tensorflow(out, figures)
    write_clean(out, figures)
    return gzip.compress(out.bytes(), _GZIP_LEVEL) if zipped else out.bytes()
