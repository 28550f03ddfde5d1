"""The reader of a core's trace (csrc/trace_ring.h), in the control process.

A trace is a memory that the core has made of a memfd: a track for each thread, with its latest events.
Reading costs the core nothing. Each reader has its own place in every track.
"""

RECORDING: int
SPANS: int

class TraceUnreadable(Exception):
    """It has another layout than this version's, or cannot be mapped."""

class TraceReader:
    """Made by `open`. Not for two threads at once."""

    @classmethod
    def open(cls, fd: int) -> TraceReader | None:
        """A reader of what is written from now on. None: the core has not made its trace yet.
        TraceUnreadable. `fd` may be closed afterwards."""
    def close(self) -> None:
        """Unmaps it; nothing else may be called any more."""
    def want(self, wanted: int, share: float) -> None:
        """Says to the core what is to be told: RECORDING and SPANS, or neither (0), and which share of the
        calls without a parent gets a span."""
    def tracks(self) -> list[str]:
        """The names of the threads that have a track, in their order."""
    def rewind(self) -> None:
        """The next `read` begins with the oldest events that are still there."""
    def read(self, kinds: int, since_us: int = 0) -> bytes:
        """The events since the last time whose kind is among `kinds` (bits: 1 << kind), without those that
        had ended before `since_us`, tasks aside: 256 bytes each, the number of the track in eight bytes and
        then the event. Those of a track come in their order."""
    @property
    def lost(self) -> int:
        """Events that were overwritten before they were read."""
