"""What systemd is told of the daemon: that it is ready, reads its configuration again, drains.

The datagrams of sd_notify(3), to the socket that NOTIFY_SOCKET names; without one every method does
nothing. Made by the daemon, used on its event loop. Nobody waits for systemd: a datagram for which there is
no room, or nobody to take it, is let go.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress

_VARIABLE = "NOTIFY_SOCKET"
_SECOND_US = 1_000_000
# How much more time systemd gives for stopping than draining may take.
_STOP_MARGIN_S = 15.0


class ServiceManager:
    """Tells what `address` is the socket of: a path, or "@" and a name without one; "": nobody. `status`
    makes a line for `systemctl status`, whenever it is told that the daemon serves."""

    def __init__(self, address: str = "", status: Callable[[], str] = str) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status = status
        self._up = False

    @classmethod
    def of(
        cls, status: Callable[[], str] = str, environment: MutableMapping[str, str] = os.environ
    ) -> ServiceManager:
        """The one that started this process. Its socket's name leaves `environment`, so that no child says
        something in our place."""
        return cls(environment.pop(_VARIABLE, ""), status)

    def ready(self) -> None:
        """It serves."""
        self._up = True
        self._tell("READY=1", f"STATUS={self._status()}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Meanwhile the configuration is read again, whatever becomes of it."""
        if self._up:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            if self._up:
                self.ready()

    def stopping(self, within_s: float) -> None:
        """It drains, which takes up to `within_s`: a unit whose TimeoutStopSec is shorter must not cut it."""
        self._up = False
        extend_us = round((within_s + _STOP_MARGIN_S) * _SECOND_US)
        self._tell("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={extend_us}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
