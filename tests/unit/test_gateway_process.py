"""A gateway process's beginning and end: what it is told early, and how long it waits for answers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fastserve.gateway import routes
from fastserve.gateway.control_link import ControlLink
from fastserve.gateway.process import Gateway
from fastserve.gateway.settings import Listening, RouteSettings, Settings

ROUTE = {
    "path": "/r",
    "file": "r.py",
    "model": "",
    "version": None,
    "label": "",
    "signature": "",
    "methods": ["POST"],
    "workers": 1,
    "concurrency": 1,
    "max_waiting": 1,
    "timeout_s": 1.0,
    "reload": False,
    "max_body_bytes": 1,
}


def settings_of(path: Path, *listeners: Listening, max_connections: int = 100) -> Settings:
    return Settings(
        listeners=listeners,
        rest_socket=str(path / "rest.sock"),
        web_socket=str(path / "web.sock"),
        monitor_socket=str(path / "monitor.sock"),
        metrics_path="/metrics",
        nice=0,
        timeout_s=10.0,
        drain_timeout_s=10.0,
        max_connections=max_connections,
        max_body_bytes=1000,
        max_total_bytes=1000,
        cors=False,
        forward=(),
    )


class PoolThatIsNone:
    def __init__(self) -> None:
        self.settled = asyncio.Event()

    def open(self) -> None: ...

    async def close(self, timeout_s: float) -> None: ...


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The routes whose pools were made."""
    made: list[str] = []

    def make_pool(route: RouteSettings, *args: Any) -> Any:
        made.append(route.path)
        return PoolThatIsNone()

    monkeypatch.setattr(routes, "make_pool", make_pool)
    yield made


@pytest.mark.parametrize("cut", [0, 10, 10_000])
async def test_routes_and_headers_that_come_with_the_settings_are_taken(
    tmp_path: Path, opened: list[str], cut: int
) -> None:
    """`cut`: how much of them the gateway has read together with its settings."""
    said = [{"event": "routes", "routes": [ROUTE]}, {"event": "forward", "headers": ["x-a"]}]
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in said)
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(lines[cut:])
        link = ControlLink(lines[:cut])
        gateway = Gateway(settings_of(tmp_path), link)
        await link.open(theirs)
        await gateway.open()
        async with asyncio.timeout(10):
            while "x-a" not in gateway._routes._passed_on:  # noqa: ASYNC110 - the loop reads a socket
                await asyncio.sleep(0.001)
        assert opened == ["/r"]
        assert await gateway.drain(1.0)


async def test_a_drain_waits_for_answers_as_long_as_it_may_and_once(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    gateway = Gateway(
        settings_of(tmp_path, Listening(listening.detach(), f"127.0.0.1:{port}")), ControlLink()
    )
    began = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        await asyncio.sleep(60)
        raise AssertionError

    gateway._dispatcher._exact["/slow"] = slow  # type: ignore[index]
    await gateway.open()
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/slow"))
        await began.wait()
        at = loop.time()
        assert not await gateway.drain(2.0)
        assert 1.9 < loop.time() - at < 3.5
        with pytest.raises(aiohttp.ClientError):
            await asking


async def test_connections_beyond_the_limit_are_closed_and_the_others_served(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    settings = settings_of(tmp_path, Listening(listening.detach(), f"127.0.0.1:{port}"), max_connections=2)
    ours, theirs = socket.socketpair()
    link = ControlLink()
    await link.open(theirs)
    gateway = Gateway(settings, link)
    await gateway.open()

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /none HTTP/1.1\r\nHost: here\r\n\r\n")
        return await reader.readline()

    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for pair in kept:
        assert await asked(*pair) == b"HTTP/1.1 404 Not Found\r\n"
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert await asked(*kept[0]) != b""
    kept.pop()[1].close()
    async with asyncio.timeout(10.0):
        while True:  # until the gateway has seen that it is gone
            pair = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                if await asked(*pair) == b"HTTP/1.1 404 Not Found\r\n":
                    break
            pair[1].close()
    ours.setblocking(False)
    said = [json.loads(line) for line in ours.recv(1 << 16).splitlines()]
    assert [line["fields"]["refused"] for line in said][:3] == [1, 2, 4]
    assert "limits.max_connections" in said[0]["message"]
    for _, writer in (*kept, pair):
        writer.close()
    await gateway.drain(1.0)


@pytest.mark.parametrize("lame_duck", [False, True])
async def test_clients_are_told_before_their_connection_is_closed(tmp_path: Path, lame_duck: bool) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    link = ControlLink()
    gateway = Gateway(settings_of(tmp_path, Listening(listening.detach(), "here")), link)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="yes")

    gateway._dispatcher._exact["/ask"] = answer  # type: ignore[index]
    await gateway.open()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /ask HTTP/1.1\r\nHost: here\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(3) == b"yes"
        return head

    reader, writer = await asyncio.open_connection(*address)
    assert b"Connection: close" not in await ask(reader, writer)
    assert b"Connection: close" not in await ask(reader, writer)
    if lame_duck:
        link.data_received(b'{"event": "lame_duck"}\n')
        assert b"Connection: close" in await ask(reader, writer)
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_connection(*address)  # it serves on
    draining = asyncio.create_task(gateway.drain(5.0))
    await asyncio.sleep(0)
    assert b"Connection: close" in await ask(reader, writer)
    assert await draining
    writer.close()
