"""The gateway's server without a core: what is passed on to the control process, what becomes of errors, and
memory for bodies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fastserve.client.errors import Unavailable
from fastserve.gateway.body import Body, Budget
from fastserve.gateway.dispatch import Dispatcher
from fastserve.gateway.proxy import Proxy
from fastserve.gateway.refusal import InvalidArgument, Refusal


class World:
    """A monitor on a unix socket, and a gateway in front of it whose REST handler is the test's."""

    def __init__(self, root: Path) -> None:
        self.path = str(root / "monitor.sock")
        self.seen: list[tuple[str, str]] = []
        self.more = asyncio.Event()
        self.breaks = False
        self.budget = Budget(10_000)
        self.error: Exception | None = None
        self.logged: list[dict[str, Any]] = []
        self.proxy = Proxy(self.path)
        exact = dict.fromkeys(("/", "/healthz", "/events"), self.proxy.handle)
        self.dispatcher = Dispatcher(
            self.rest,
            exact,
            cors=False,
            server="unix:/core",
            log=lambda *_, **fields: self.logged.append(fields),
        )
        self.runners: list[web.ServerRunner] = []
        self.base = ""

    async def monitor(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path))
        if request.path != "/events":
            return web.Response(
                status=503, text="not ready", headers={"Cache-Control": "no-store", "X-Other": "1"}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self.more.wait()
        if self.breaks:
            assert request.transport is not None
            request.transport.abort()
        await response.write(b"data: 2\n\n")
        return response

    async def rest(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.error is not None:
            raise self.error
        with Body(4096, 0.3, self.budget) as body:
            return web.Response(body=await body.read(request))

    async def start(self, monitor: bool = True) -> None:
        if monitor:
            await self._serve(web.Server(self.monitor), unix=True)
        await self._serve(web.Server(self.dispatcher, auto_decompress=False))

    async def _serve(self, server: web.Server, unix: bool = False) -> None:
        runner = web.ServerRunner(server)
        await runner.setup()
        self.runners.append(runner)
        if unix:
            await web.UnixSite(runner, self.path).start()
            return
        sock = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        await web.SockSite(runner, sock).start()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    world.more.set()
    await world.proxy.close()
    for runner in world.runners:
        await runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def test_what_the_control_process_says_is_passed_on(
    world: World, client: aiohttp.ClientSession
) -> None:
    await world.start()
    async with client.get(f"{world.base}/healthz?full=1") as answer:
        assert (answer.status, await answer.text()) == (503, "not ready")
        assert answer.headers["Cache-Control"] == "no-store" and "X-Other" not in answer.headers
        assert answer.headers["Content-Type"].startswith("text/plain")
    async with client.head(f"{world.base}/") as answer:
        assert answer.status == 503
    assert world.seen == [("GET", "/healthz?full=1"), ("HEAD", "/")]
    async with client.post(f"{world.base}/healthz", data=b"x") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_a_stream_is_passed_on_as_it_comes(world: World, client: aiohttp.ClientSession) -> None:
    await world.start()
    async with client.get(f"{world.base}/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        world.more.set()
        assert await answer.content.read() == b"data: 2\n\n"


async def test_a_stream_ends_with_the_gateway(world: World, client: aiohttp.ClientSession) -> None:
    await world.start()
    async with client.get(f"{world.base}/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        world.proxy.end_streams()
        with pytest.raises(aiohttp.ClientError):
            await answer.content.read()
    assert world.dispatcher.active == 0


async def test_half_an_answer_does_not_end_as_a_whole_one(
    world: World, client: aiohttp.ClientSession
) -> None:
    await world.start()
    world.breaks = True
    async with client.get(f"{world.base}/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
        world.more.set()
        with pytest.raises(aiohttp.ClientError):
            await answer.content.read()
    assert world.logged == []


async def test_a_client_that_leaves_a_stream_is_forgotten(
    world: World, client: aiohttp.ClientSession
) -> None:
    await world.start()
    async with client.get(f"{world.base}/events") as answer:
        await answer.content.readuntil(b"\n\n")
    world.more.set()
    async with asyncio.timeout(10):
        while world.dispatcher.active:  # noqa: ASYNC110 - some steps of the loop later
            await asyncio.sleep(0.01)
    assert world.logged == []


async def test_a_control_process_that_is_not_there(world: World, client: aiohttp.ClientSession) -> None:
    await world.start(monitor=False)
    async with client.get(f"{world.base}/healthz") as answer:
        assert answer.status == 502
        told = await answer.json()
    assert told["error"].startswith("the control process, which answers /healthz, cannot be reached")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Refusal(418, "no"), 418, "no"),
        (InvalidArgument("bad"), 400, "bad"),
        (Unavailable("UNAVAILABLE", "unix:/core: full"), 503, "full"),
        (Unavailable("UNAVAILABLE", ""), 503, "UNAVAILABLE"),
        (KeyError("x"), 500, "KeyError: 'x'"),
    ],
)
async def test_errors_become_answers(
    world: World, client: aiohttp.ClientSession, error: Exception, status: int, text: str
) -> None:
    world.error = error
    await world.start()
    async with client.get(f"{world.base}/v1/x") as answer:
        assert (answer.status, await answer.json()) == (status, {"error": text})
    assert len(world.logged) == (status == 500)
    assert world.dispatcher.active == 0


async def test_bodies_share_what_memory_there_is(world: World, client: aiohttp.ClientSession) -> None:
    await world.start()
    host, port = world.base.removeprefix("http://").split(":")
    held = []
    for _ in range(2):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\n" + b"x" * 4000)
        held.append((reader, writer))
    async with asyncio.timeout(10):
        while world.budget._left > 2000:  # noqa: ASYNC110 - until they have been read
            await asyncio.sleep(0)
    async with client.post(f"{world.base}/v1/x", data=b"y" * 3000) as answer:
        assert answer.status == 429
        assert "limits.max_total_bytes" in (await answer.json())["error"]
    for reader, writer in held:
        assert b" 408 " in await reader.readline()
        writer.close()
    async with client.post(f"{world.base}/v1/x", data=b"y" * 3000) as answer:
        assert (answer.status, len(await answer.read())) == (200, 3000)
    assert world.budget._left == 10_000
