"""What the core's threads tell: read here, in the control process, for spans and for recordings.

The core writes events to a memory that both have mapped (csrc/trace_ring.h) as long as somebody here wants
them, and never notices who reads. A core that takes another's place has a memory of its own, so whoever reads
goes over to it. Spans are taken while there is an exporter, a recording for as long as `fastserve trace`
asks. Owned by the daemon, on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastserve._native.trace import RECORDING, SPANS, TraceReader, TraceUnreadable
from fastserve.control.otlp_export import Exporter
from fastserve.errors import CoreError
from fastserve.log import Log
from fastserve.trace_events import ACTIVITY, CALLS, RECORD_BYTES, events_of

MAX_SECONDS = 600.0
# Of one recording: 256 MiB.
MAX_EVENTS = 1 << 20
# How often a memory is looked at: before a thread that is busy has overwritten what was not read yet.
_SPANS_S = 0.1
_RECORDING_S = 0.02
# And how often it is seen to that another core has the right flags, while nobody wants any spans.
_IDLE_S = 1.0

Answer = dict[str, Any]


class Memories(Protocol):
    """What is needed of SharedMemory."""

    generation: int

    def current(self, name: str) -> int | None: ...


class Traces:
    """Made once; `run` for as long as the daemon runs. The other methods are the admin socket's."""

    def __init__(
        self,
        memories: Memories,
        core_pid: Callable[[], int | None],
        state_dir: str,
        log: Log,
        *,
        exporter: Exporter | None = None,
        share: float = 0.0,
    ) -> None:
        self._memories = memories
        self._core_pid = core_pid
        self._directory = Path(state_dir, "recordings")
        self._log = log
        self._exporter = exporter
        self._share = share
        self._generation = -1  # of the memory that `_reader` reads
        self._reader: TraceReader | None = None
        self._unreadable = -1  # of the memory that could not be read
        self._recording: _Recording | None = None
        self._beginning = asyncio.Lock()
        self._lost = 0

    async def run(self) -> None:
        """Follows the core from life to life, and takes spans."""
        sending = None
        if self._exporter is not None:
            sending = asyncio.create_task(self._exporter.run(), name="otlp-export")
        try:
            while True:
                self.look()
                await asyncio.sleep(self._pause_s())
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if self._recording is not None:
                await self._recording.stop()

    def _pause_s(self) -> float:
        """A recording's events are in the same rings as spans, which are full the sooner."""
        if self._exporter is None:
            return _IDLE_S
        return _SPANS_S if self._recording is None else _RECORDING_S

    async def close(self) -> None:
        """Sends what is left. `run` is over, and so is the core."""
        if self._exporter is not None:
            self.look()
            await self._exporter.close()

    def look(self) -> None:
        """Takes the spans that there are."""
        reader = self._current()
        if reader is None or self._exporter is None:
            return
        self._exporter.offer(events_of(reader.read(CALLS)))
        self._exporter.count_lost(reader.lost - self._lost)
        self._lost = reader.lost

    def stats(self) -> Answer | None:
        """What has come of the spans; None: nobody wants any."""
        return None if self._exporter is None else self._exporter.stats()

    # ---- recordings ----

    async def begin(self, seconds: float) -> Answer:
        """Begins to record; the file is being written. CoreError."""
        if not 0 < seconds <= MAX_SECONDS:
            raise CoreError(
                "INVALID_ARGUMENT", f"{seconds:g} seconds: expected more than 0, up to {MAX_SECONDS:g}"
            )
        async with self._beginning:
            if self._recording is not None and not self._recording.finished:
                raise CoreError("FAILED_PRECONDITION", "a trace is being recorded already")
            try:
                fd, path = await asyncio.to_thread(self._place)
            except OSError as error:
                raise CoreError(
                    "UNAVAILABLE", f"there is no place for it: {self._directory}: {error.strerror}"
                ) from None
            reader = None if self._current() is None else self._open()
            if reader is None:
                os.close(fd)
                raise CoreError("UNAVAILABLE", "the core cannot be traced: there is none, or it just starts")
            self._recording = _Recording(
                reader, fd, path, seconds, self._core_pid() or 0, self._generation, self._memories
            )
            self._want()
            self._recording.start(self._want)
            return {"file": path}

    def progress(self) -> Answer:
        """How far it is: seconds, events, finished, error. CoreError when there is none."""
        if self._recording is None:
            raise CoreError("FAILED_PRECONDITION", "no trace is being recorded")
        return self._recording.progress()

    async def end(self) -> Answer:
        """Ends it, if it has not ended by itself: file, tracks, pid, begin_us, end_us, events, lost, note.
        The file is the caller's. CoreError when there is none."""
        recording = self._recording
        if recording is None:
            raise CoreError("FAILED_PRECONDITION", "no trace is being recorded")
        await recording.stop()
        self._recording = None
        return recording.answer()

    # ---- the memory of the core of now ----

    def _current(self) -> TraceReader | None:
        """The reader of the core of now, which has been told what is wanted; None: there is no such memory
        yet."""
        if self._generation != self._memories.generation:
            if self._reader is not None:
                self._finish(self._reader)
                self._reader = None
            reader = self._open()
            if reader is not None:
                self._reader, self._lost = reader, 0
                self._generation = self._memories.generation
                self._want()
        return self._reader

    def _finish(self, reader: TraceReader) -> None:
        """A core has ended: its last spans are still there."""
        if self._exporter is not None:
            self._exporter.offer(events_of(reader.read(CALLS)))
        reader.close()

    def _open(self) -> TraceReader | None:
        fd = self._memories.current("trace")
        if fd is None or self._unreadable == self._memories.generation:
            return None
        try:
            return TraceReader.open(fd)
        except TraceUnreadable as error:
            self._unreadable = self._memories.generation
            self._log.warning("the core cannot be traced", why=error)
            return None

    def _want(self) -> None:
        """Tells the core."""
        wanted = SPANS if self._exporter is not None else 0
        if self._recording is not None and not self._recording.finished:
            wanted |= RECORDING
        if self._reader is not None:
            self._reader.want(wanted, self._share)

    def _place(self) -> tuple[int, str]:
        """A new file; what was left of earlier ones goes."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._directory.glob("trace-*"):
            with suppress(OSError):
                old.unlink()
        return tempfile.mkstemp(prefix="trace-", dir=self._directory)


class _Recording:
    """One recording, and the file that it goes to."""

    def __init__(
        self,
        reader: TraceReader,
        fd: int,
        path: str,
        seconds: float,
        pid: int,
        generation: int,
        memories: Memories,
    ) -> None:
        """`fd` is the file's, and this object's from here on."""
        self._reader = reader
        self._fd = fd
        self._path = path
        self._seconds = seconds
        self._pid = pid
        self._generation = generation
        self._memories = memories
        self._task: asyncio.Task[None] | None = None
        self._tracks: list[str] = []
        self._events = 0
        self._note = ""
        self.begin_us = time.monotonic_ns() // 1000
        self._end_us = 0

    @property
    def finished(self) -> bool:
        return bool(self._end_us)

    def start(self, on_end: Callable[[], None]) -> None:
        """`on_end` is called when it has ended, however that came."""
        # What began before and goes on still is part of the picture.
        self._reader.rewind()
        self._task = asyncio.create_task(self._run(on_end), name="trace-recording")

    async def stop(self) -> None:
        """Ends it now, if it has not ended yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def progress(self) -> Answer:
        until_us = self._end_us or time.monotonic_ns() // 1000
        return {
            "seconds": (until_us - self.begin_us) / 1e6,
            "events": self._events,
            "finished": self.finished,
            "error": self._note,
        }

    def answer(self) -> Answer:
        return {
            "file": self._path,
            "tracks": self._tracks,
            "pid": self._pid,
            "begin_us": self.begin_us,
            "end_us": self._end_us,
            "events": self._events,
            "lost": self._reader.lost,
            "note": self._note,
        }

    async def _run(self, on_end: Callable[[], None]) -> None:
        try:
            while not self._note and time.monotonic_ns() // 1000 < self.begin_us + self._seconds * 1e6:
                await asyncio.sleep(_RECORDING_S)
                self._take()
        finally:
            self._take()
            os.close(self._fd)
            self._tracks = self._reader.tracks()
            self._end_us = time.monotonic_ns() // 1000
            on_end()

    def _take(self) -> None:
        """Moves what there is to the file."""
        records = self._reader.read(ACTIVITY, self.begin_us)
        room = (MAX_EVENTS - self._events) * RECORD_BYTES
        if len(records) > room:
            records = records[:room]
            self._note = f"ended early: {MAX_EVENTS} events are the most"
        try:
            if os.write(self._fd, records) < len(records):
                self._note = f"ended early: {self._path} could not take all of it"
            self._events += len(records) // RECORD_BYTES
        except OSError as error:
            self._note = f"ended early: {self._path} cannot be written: {error.strerror}"
        if self._memories.generation != self._generation:
            self._note = "ended early: the core was replaced by another"
