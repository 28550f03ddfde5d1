"""The end of a listening socket with connections in its queue: whoever is in there is accepted first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.control import accept_queue
from fastserve.control.accept_queue import empty_and_shut


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(str(tmp_path / "here.sock"))
    elif request.param == "tcp":
        sock = socket.create_server(("127.0.0.1", 0))
    else:
        sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with sock:
        sock.listen(100)
        yield sock


def connected(to: socket.socket) -> socket.socket:
    client = socket.socket(to.family, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(to.getsockname())
    return client


async def echo(listening: socket.socket) -> None:
    """As a gateway with a copy of its own, until nothing comes from there."""
    loop = asyncio.get_running_loop()
    with listening.dup() as copy:
        copy.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(copy)
            except OSError:
                return
            with accepted:
                await loop.sock_sendall(accepted, await loop.sock_recv(accepted, 100))


@pytest.mark.parametrize(
    # Nobody can see whether the queue of a unix socket is empty.
    ("listening", "late_s"),
    [("tcp", 0.0), ("tcp", 0.3), ("tcp6", 0.3), ("unix", 0.0)],
    indirect=["listening"],
)
async def test_who_is_in_the_queue_is_answered_and_then_connections_are_refused(
    listening: socket.socket, late_s: float
) -> None:
    """`late_s`: whoever accepts is busy for so long."""
    clients = [connected(listening) for _ in range(20)]
    for number, client in enumerate(clients):
        client.sendall(b"request %d" % number)
    shutting = asyncio.create_task(empty_and_shut([listening]))
    await asyncio.sleep(late_s)
    accepting = asyncio.create_task(echo(listening))
    await shutting
    # A copy that is still there makes no difference.
    with listening.dup() as copy:
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            connected(copy)
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    for number, client in enumerate(clients):
        with client:
            assert client.recv(100) == b"request %d" % number


async def test_nobody_new_comes_in_and_nobody_is_waited_for_without_end(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_queue, "_MOST_S", 0.4)
    loop = asyncio.get_running_loop()
    with connected(listening):  # nobody accepts it
        began = loop.time()
        shutting = asyncio.create_task(empty_and_shut([listening]))
        await asyncio.sleep(0)
        with socket.socket(listening.family, socket.SOCK_STREAM) as late:
            late.settimeout(0.05)
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                late.connect(listening.getsockname())
        await shutting
        assert loop.time() - began < 2.0


async def test_without_filters_connections_are_refused_all_the_same(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_queue, "_SO_ATTACH_FILTER", 0x7FFF)
    await empty_and_shut([listening])
    with pytest.raises(ConnectionRefusedError):
        connected(listening)
