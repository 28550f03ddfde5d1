"""A gateway process's beginning and end: what it is told early, and how long it waits for answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from msgspec.structs import replace

from fastserve.gateway import process, routes
from fastserve.gateway.control_link import ControlLink
from fastserve.gateway.dispatch import Handler
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


def settings_of(path: Path, *listeners: Listening, **others: Any) -> Settings:
    settings = Settings(
        listeners=listeners,
        rest_socket=str(path / "rest.sock"),
        web_socket=str(path / "web.sock"),
        monitor_socket=str(path / "monitor.sock"),
        metrics_path="/metrics",
        nice=0,
        timeout_s=10.0,
        drain_timeout_s=10.0,
        max_connections=100,
        max_body_bytes=1000,
        max_total_bytes=1000,
        cors=False,
        forward=(),
    )
    return replace(settings, **others)


def gateway_on(
    path: Path, handler: Handler, link: ControlLink | None = None, **settings: Any
) -> tuple[Gateway, tuple[str, int]]:
    """One that answers /ask with `handler`, and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    gateway = Gateway(
        settings_of(path, Listening(listening.detach(), "here"), **settings), link or ControlLink()
    )
    gateway._dispatcher._exact["/ask"] = handler  # type: ignore[index]
    return gateway, address


async def say_yes(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="yes")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The head of the answer to one question."""
    writer.write(b"GET /ask HTTP/1.1\r\nHost: here\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(3) == b"yes"
    return head


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
    began = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        await asyncio.sleep(60)
        raise AssertionError

    gateway, (_, port) = gateway_on(tmp_path, slow)
    await gateway.open()
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/ask"))
        await began.wait()
        at = loop.time()
        assert not await gateway.drain(2.0)
        assert 1.9 < loop.time() - at < 3.5
        with pytest.raises(aiohttp.ClientError):
            await asking


async def test_a_drain_has_one_deadline_though_others_ask_until_then(tmp_path: Path) -> None:
    began = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            began.set()
            await asyncio.sleep(60)
        return web.Response(text="yes")

    gateway, address = gateway_on(tmp_path, answer)
    await gateway.open()
    loop = asyncio.get_running_loop()
    slow, *others = [await asyncio.open_connection(*address) for _ in range(40)]
    slow[1].write(b"POST /ask HTTP/1.1\r\nHost: here\r\n\r\n")
    await began.wait()
    at = loop.time()
    draining = asyncio.create_task(gateway.drain(2.0))
    for other in others:
        if loop.time() < at + 1.5:
            assert b"Connection: close" in await ask(*other)
            await asyncio.sleep(0.05)
    assert not await draining
    assert 1.9 < loop.time() - at < 3.5
    for _, writer in (slow, *others):
        writer.close()


async def test_a_request_whose_body_is_on_its_way_is_answered_at_the_end(tmp_path: Path) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=await request.read())

    gateway, address = gateway_on(tmp_path, answer)
    await gateway.open()
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /ask HTTP/1.1\r\nHost: here\r\nContent-Length: 6\r\n\r\nabc")
    async with asyncio.timeout(10):
        while not gateway._dispatcher.active:  # noqa: ASYNC110 - the loop reads a socket
            await asyncio.sleep(0.001)
    at = loop.time()
    draining = asyncio.create_task(gateway.drain(5.0))
    await asyncio.sleep(0.3)
    writer.write(b"def")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Connection: close" in head
    assert await reader.read() == b"abcdef"
    assert await draining
    assert loop.time() - at < 3.0
    writer.close()


@pytest.mark.parametrize("chunks", [1, 100])
def test_all_of_the_last_answer_is_out_when_the_process_ends(tmp_path: Path, chunks: int) -> None:
    """Its reader is slow, and the gateway's process is gone right after the drain: what the kernel does not
    have by then is lost."""
    chunk = bytes(60_000)
    asked = threading.Event()
    got = bytearray()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        if chunks == 1:
            return web.Response(body=chunk)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(chunks):
            await response.write(chunk)
        return response

    def read(address: tuple[str, int]) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address)
            client.sendall(b"GET /ask HTTP/1.0\r\n\r\n")
            time.sleep(0.5)
            with suppress(ConnectionError):
                while data := client.recv(1 << 16):
                    got.extend(data)

    async def serve() -> bool:
        gateway, address = gateway_on(tmp_path, answer)
        for listening in gateway._settings.listeners:
            with socket.socket(fileno=os.dup(listening.fd)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await gateway.open()
        reading.append(threading.Thread(target=read, args=[address]))
        reading[0].start()
        await asyncio.to_thread(asked.wait, 10)
        return await gateway.drain(30.0)

    reading: list[threading.Thread] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve())
    reading[0].join(30)
    assert len(got.partition(b"\r\n\r\n")[2]) == chunks * len(chunk)


async def test_an_answer_that_nobody_reads_is_not_answered(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        return web.Response(body=bytes(32 << 20))

    gateway, address = gateway_on(tmp_path, answer)
    await gateway.open()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.connect(address)
        client.sendall(b"GET /ask HTTP/1.1\r\nHost: here\r\n\r\n")
        await asked.wait()
        assert not await gateway.drain(0.5)


async def test_connections_beyond_the_limit_are_closed_and_the_others_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A list of all, for each that comes, is no way to count them.
    monkeypatch.delattr(web.Server, "connections")
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
async def test_clients_are_told_before_their_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lame_duck: bool
) -> None:
    # However busy the machine is, the last question comes in time.
    monkeypatch.setattr(process, "_LAST_ANSWERS_S", 1.0)
    link = ControlLink()
    gateway, address = gateway_on(tmp_path, say_yes, link)
    await gateway.open()
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


async def test_one_that_starts_in_a_lame_duck_tells_its_clients_at_once(tmp_path: Path) -> None:
    gateway, address = gateway_on(tmp_path, say_yes, leaving=True)
    await gateway.open()
    reader, writer = await asyncio.open_connection(*address)
    assert b"Connection: close" in await ask(reader, writer)
    writer.close()
    assert await gateway.drain(1.0)
