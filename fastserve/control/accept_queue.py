"""The queue of a listening socket: connections that are made and that nobody has accepted yet.

What is said here holds for the socket itself, whichever processes have copies of it. A TCP socket that is
shut resets everything in its queue, together with the requests that have come there; so its queue is closed
first, is emptied by whoever accepts, and only then the socket is shut.
"""

from __future__ import annotations

import asyncio
import ctypes
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

_SO_ATTACH_FILTER = 26
# Classic BPF (code, jump if true, jump if false, k) on what begins with the TCP header: nothing with SYN, so
# that no connection begins; those that have begun are made, and all that are made go on.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # is SYN set?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # take it
)
# At least so long it takes until what has begun is in the queue; and no longer than this until it is empty.
_LEAST_S = 0.1
_MOST_S = 1.0
_LOOK_S = 0.01


async def empty_and_shut(listening: Sequence[socket.socket]) -> None:
    """From here on nobody new is let in, and soon connections are refused; what is in the queues is left to
    those who accept there, for a while."""
    for sock in listening:
        # Where that cannot be had, what is in the queue is lost, and nothing else.
        with suppress(OSError):
            _close(sock)
    loop = asyncio.get_running_loop()
    end = loop.time() + _MOST_S
    await asyncio.sleep(_LEAST_S)
    while loop.time() < end and any(map(_has_some, listening)):  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(_LOOK_S)
    for sock in listening:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _close(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        # It refuses from here on, and what is in its queue can be accepted all the same.
        sock.shutdown(socket.SHUT_RDWR)
        return
    code = b"".join(struct.pack("HBBI", *step) for step in _NO_SYN)
    at = ctypes.create_string_buffer(code, len(code))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), ctypes.addressof(at))
    )


def _has_some(sock: socket.socket) -> bool:
    if sock.family == socket.AF_UNIX:
        return False  # one that is shut does not tell
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
