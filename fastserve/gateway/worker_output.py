"""What a route's file prints, line by line to the daemon's log. Used by a worker, on whichever thread prints.

Written here and not to the descriptors, whose other end goes away with the control process: a print must not
fail, nor wait, because nobody reads.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable

_LINE_MAX_CHARS = 2000


class Output(io.TextIOBase):
    """Takes the place of sys.stdout or sys.stderr, whose descriptor is `fd`. `say` gets each line, on the
    loop's thread."""

    def __init__(self, fd: int, say: Callable[[str], None]) -> None:
        self._fd = fd
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._begun = ""

    encoding = "utf-8"
    errors = "replace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            if len(self._begun) > _LINE_MAX_CHARS:
                lines.append(self._begun)
                self._begun = ""
        for line in lines:
            if line.strip():
                self._pass_on(line[:_LINE_MAX_CHARS])
        return len(text)

    def _pass_on(self, line: str) -> None:
        if threading.get_ident() == self._thread:
            self._say(line)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._say, line)
