"""The monitor over HTTP: every path, listeners that read and that do not, connections beyond the limit."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from unit.test_monitor_metrics import figures

from fastserve.http_paths import MONITOR_PATHS
from fastserve.monitor import live as live_module
from fastserve.monitor import scrape as scrape_module
from fastserve.monitor.scrape import Scraper
from fastserve.monitor.server import MonitorServer, bounded
from fastserve.monitor.values import Figures, Health

METRICS = "/monitoring/prometheus/metrics"


class FakeView:
    def __init__(self) -> None:
        self.alive = Health(True)
        self.ready = Health(False, "it is starting", {"m": "it is LOADING"})
        self.made = 0
        self.scraped = 0
        self.status_text = b'{"models": []}'
        self.gate: asyncio.Event | None = None

    def health(self) -> Health:
        return self.alive

    def readiness(self) -> Health:
        return self.ready

    def status(self) -> bytes:
        self.made += 1
        return self.status_text

    def history(self) -> bytes:
        return b'{"points": []}'

    async def figures(self) -> Figures:
        self.scraped += 1
        if self.gate is not None:
            await self.gate.wait()
        return figures()


class Served:
    """A monitor on a port of its own and on a unix socket, and a client."""

    def __init__(self, folder: Path) -> None:
        self.view = FakeView()
        self.path = str(folder / "monitor.sock")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(self.path)
        self.address = self.tcp.getsockname()
        self.server = MonitorServer(self.view, metrics_path=METRICS, page=True)
        self.client: aiohttp.ClientSession

    async def __aenter__(self) -> Served:
        await self.server.open([self.unix, self.tcp])
        self.client = aiohttp.ClientSession(f"http://127.0.0.1:{self.address[1]}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()
        await self.server.close()
        self.tcp.close()
        self.unix.close()

    async def get(self, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
        async with asyncio.timeout(10), self.client.get(path, headers=headers) as response:
            return response.status, await response.text(), dict(response.headers)


async def until(holds: Callable[[], bool]) -> None:
    """What a server does in the same loop, a few of its steps later."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path) as one:
        yield one


async def test_health_says_what_is_wrong(served: Served) -> None:
    status, body, headers = await served.get("/healthz")
    assert (status, json.loads(body)) == (200, {"ok": True}) and headers["Content-Type"] == "application/json"
    served.view.alive = Health(False, "the core has died")
    status, body, _ = await served.get("/healthz")
    assert (status, json.loads(body)) == (503, {"ok": False, "why": "the core has died"})


async def test_readiness_names_the_models(served: Served) -> None:
    status, body, _ = await served.get("/readyz")
    assert status == 503
    assert json.loads(body) == {"ok": False, "why": "it is starting", "models": {"m": "it is LOADING"}}
    served.view.ready = Health(True)
    assert (await served.get("/readyz"))[0] == 200


async def test_the_metrics_are_in_the_format_that_is_accepted(served: Served) -> None:
    status, body, headers = await served.get(METRICS)
    assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Encoding"] == "gzip" and "fastserve_ready{} 1\n" in body and "# EOF" not in body
    status, body, headers = await served.get(METRICS, Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith("# EOF\n")
    _, body, headers = await served.get(
        f"{METRICS}?name[]=fastserve_ready", **{"Accept-Encoding": "identity"}
    )
    assert "Content-Encoding" not in headers
    assert body.splitlines()[1:] == ["# TYPE fastserve_ready gauge", "fastserve_ready{} 1"]
    status, _, _ = await served.get(f"{METRICS}?" + "&".join(f"name[]={i}" for i in range(65)))
    assert status == 400


async def test_scrapes_at_one_time_share_one_rendering(served: Served) -> None:
    await asyncio.gather(*(served.get(METRICS) for _ in range(8)))
    assert served.view.scraped == 1


async def test_a_later_scrape_has_figures_of_its_own() -> None:
    view, now = FakeView(), [0.0]
    scraper = Scraper(view, clock=lambda: now[0])
    first = await scraper.text(openmetrics=False)
    assert await scraper.text(openmetrics=False) is first
    now[0] += 1
    await scraper.text(openmetrics=False)
    assert view.scraped == 2
    for number in range(20):
        await scraper.text(openmetrics=False, only=(f"x{number}",))
    assert len(scraper._last) <= 8
    scraper.close()


async def test_health_is_answered_while_a_scrape_is_not(served: Served) -> None:
    served.view.gate = asyncio.Event()
    scrape = asyncio.create_task(served.get(METRICS))
    await until(lambda: served.view.scraped == 1)
    assert (await served.get("/healthz"))[0] == 200
    assert not scrape.done()
    served.view.gate.set()
    assert (await scrape)[0] == 200


async def test_health_is_answered_while_a_scrape_is_rendered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering, go_on = threading.Event(), threading.Event()

    def slow(*args: object, **options: bool) -> bytes:
        rendering.set()
        assert go_on.wait(20)
        return b""

    monkeypatch.setattr(scrape_module, "render", slow)
    scrape = asyncio.create_task(served.get(METRICS))
    await until(rendering.is_set)
    assert (await served.get("/healthz"))[0] == 200
    assert (await served.get("/status.json"))[0] == 200
    assert not scrape.done()
    go_on.set()
    assert (await scrape)[0] == 200


async def test_status_history_and_the_page(served: Served) -> None:
    _, body, headers = await served.get("/status.json")
    assert json.loads(body) == {"models": []} and headers["Cache-Control"] == "no-store"
    assert json.loads((await served.get("/history.json"))[1]) == {"points": []}
    status, body, headers = await served.get("/")
    assert status == 200 and "FastServe" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]


async def test_where_there_is_nothing_it_says_what_there_is(served: Served) -> None:
    status, body, _ = await served.get("/metrics")
    assert status == 404 and all(path in body for path in (*MONITOR_PATHS, METRICS))
    async with served.client.post("/status.json", data=b"x") as response:
        assert response.status == 405


async def test_it_is_the_same_on_the_unix_socket(served: Served) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(served.path)) as client,
        client.get("http://localhost/healthz") as response,
    ):
        assert response.status == 200


async def test_without_a_page_there_is_none(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.server = MonitorServer(served.view, metrics_path="/m", page=False)
    async with served:
        assert (await served.get("/"))[0] == 404
        assert (await served.get("/m"))[0] == 200


# ---- events --------------------------------------------------------------------------------------


async def _message(response: aiohttp.ClientResponse) -> Any:
    async with asyncio.timeout(10):
        while True:
            line = await response.content.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                return json.loads(line[6:])


async def test_listeners_share_each_seconds_status(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == 1.0
        await tick.wait()
        tick.clear()

    served.server._live._sleep = sleep
    listeners = [await served.client.get("/events") for _ in range(3)]
    assert listeners[0].headers["Content-Type"] == "text/event-stream"
    assert [await _message(one) for one in listeners] == [{"models": []}] * 3
    before = served.view.made
    served.view.status_text = b'{"models": [1]}'
    tick.set()
    assert [await _message(one) for one in listeners] == [{"models": [1]}] * 3
    assert served.view.made == before + 1
    for one in listeners:
        one.close()


async def test_nobody_is_told_when_nobody_listens(served: Served) -> None:
    served.server._live._every_s = 0.0
    listener = await served.client.get("/events")
    await _message(listener)
    listener.close()
    await until(lambda: served.server._live.listeners == 0)
    assert served.server._live._telling is not None
    async with asyncio.timeout(10):
        await served.server._live._telling
    assert (await served.get("/healthz"))[0] == 200


async def test_who_does_not_read_is_hung_up_on_and_the_others_go_on(served: Served) -> None:
    served.view.status_text = json.dumps("x" * 500_000).encode()
    reading = await served.client.get("/events")
    await _message(reading)
    with socket.socket() as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sleeper.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sleeper, served.address)
        await asyncio.get_running_loop().sock_sendall(sleeper, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: served.server._live.listeners == 2)
        served.server._live._every_s = 0.0  # not before: it may be hung up on sooner than it is seen
        async with asyncio.timeout(20):
            while served.server._live.listeners == 2:
                await _message(reading)
        assert len(await _message(reading)) == 500_000
    reading.close()


async def test_there_is_room_for_so_many_listeners(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MAX_LISTENERS", 1)
    listener = await served.client.get("/events")
    await _message(listener)
    status, body, headers = await served.get("/events")
    assert status == 503 and "listen already" in body and headers["Retry-After"]
    listener.close()


async def test_the_end_ends_streams(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        listener = await served.client.get("/events")
        await _message(listener)
        async with asyncio.timeout(5):
            await served.server.close()
            assert await listener.content.read() is not None


# ---- connections -----------------------------------------------------------------------------------


async def _closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(10):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


async def test_one_connection_too_many_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    web_server = served.server._runners[1].server
    assert web_server is not None
    factory = bounded(web_server, served.server._monitor.heard, most=1)
    extra = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    port = extra.sockets[0].getsockname()[1]
    first, first_writer = await asyncio.open_connection("127.0.0.1", port)
    first_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await first.readline()).startswith(b"HTTP/1.1 200")
    second, second_writer = await asyncio.open_connection("127.0.0.1", port)
    assert await _closed(second)
    for writer in (first_writer, second_writer):
        writer.close()
    extra.close()


async def test_who_asks_nothing_is_hung_up_on_and_who_asked_is_not(served: Served) -> None:
    web_server = served.server._runners[1].server
    assert web_server is not None
    factory = bounded(web_server, served.server._monitor.heard, silence_s=0.2)
    extra = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    port = extra.sockets[0].getsockname()[1]
    silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
    silent_writer.write(b"GET /healthz HTTP/1.1\r\nHos")
    asking, asking_writer = await asyncio.open_connection("127.0.0.1", port)
    asking_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asking.readline()).startswith(b"HTTP/1.1 200")
    # It may be told that its request is cut short, and then that is all.
    async with asyncio.timeout(10):
        try:
            while await silent.read(1000):
                continue
        except ConnectionError:
            pass
    asking_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        while not (line := await asking.readline()).startswith(b"HTTP/1.1"):
            assert line is not None
    for writer in (silent_writer, asking_writer):
        writer.close()
    extra.close()
