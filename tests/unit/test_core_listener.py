"""The core's listening sockets at the end."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from fastserve.core.drain import Drain
from fastserve.core.listener import Listener


class FrontEndThatTakes:
    """Native threads that only count what they get."""

    io_threads = 1

    def __init__(self) -> None:
        self.taken: list[int] = []

    def connection_count(self) -> int:
        return len(self.taken)

    def adopt(self, fd: int, tls: bool, admin: bool, transport: str) -> None:
        self.taken.append(fd)


@pytest.mark.parametrize(
    ("started", "held", "taken"), [(True, False, 200), (False, False, 0), (True, True, 0)]
)
async def test_what_waits_at_the_end_is_accepted(started: bool, held: bool, taken: int) -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=300)
    address = sock.getsockname()
    front_end: Any = FrontEndThatTakes()
    wanted = [{"fd": sock.detach(), "held": held}]
    listener = Listener(asyncio.get_running_loop(), front_end, wanted, 1000, print)
    if started:
        listener.start()
    clients = [socket.create_connection(address) for _ in range(200)]
    listener.take_rest()
    listener.close()
    assert len(front_end.taken) == taken
    for client in clients:
        client.setblocking(False)
        # Who was not taken is reset, or nothing has come yet.
        with client, pytest.raises(BlockingIOError if taken else OSError):
            client.recv(1)
    for fd in front_end.taken:
        os.close(fd)


async def test_a_drain_accepts_what_waits_before_it_says_goaway() -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=500)
    counting = FrontEndThatTakes()
    taken_at_notice: list[int] = []
    front_end = Mock(
        io_threads=1,
        adopt=counting.adopt,
        connection_count=counting.connection_count,
        shutdown_notice=lambda: taken_at_notice.extend(counting.taken),
        all_closed=AsyncMock(),
        active_calls=lambda: 0,
    )
    address = sock.getsockname()
    listener = Listener(asyncio.get_running_loop(), front_end, [{"fd": sock.detach()}], 1000, print)
    listener.start()
    # More than what the loop accepts in the turns that it has until then.
    clients = [socket.create_connection(address) for _ in range(400)]
    assert await Drain(front_end, Mock(), Mock(), listener, {}).run(0.0, 1.0) == 0
    assert len(taken_at_notice) == 400
    for client in clients:
        client.close()
    for fd in counting.taken:
        os.close(fd)
