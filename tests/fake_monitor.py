"""What a daemon tells of itself, made up: status documents, and the HTTP that brings them.

`Scene` is a daemon whose versions come and go as a test says; `FakeMonitor` serves what it says, as the real
one does: the page, history.json, status.json and events. Run as a program it shows a lively one, to look at:

    python tests/fake_monitor.py --port 8899 --models 60
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from fastserve.monitor import page

Answer = dict[str, Any]

_TOTAL = ("requests_per_s", "rows_per_s", "errors_per_s", "p50_us", "p99_us", "p999_us", "waiting_rows")

# What a model has nothing of, and what cannot be said of it, while nobody asks.
_ZERO = (
    "requests_per_s",
    "errors_per_s",
    "rows_per_s",
    "expired_per_s",
    "shed_per_s",
    "cancelled_per_s",
    "waiting_rows",
)
_NONE = (
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "queue_p99_us",
    "compute_p50_us",
    "mean_batch_rows",
    "padding_share",
)


class Scene:
    """A daemon of which a test says what happens. Its clock stands until `tick`."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self.now = now
        self.began = now
        self.ready = True
        self.core: Answer = {
            "pid": 4243, "restarts": 0, "rss_bytes": 1_300 << 20, "memory_limit_bytes": 8 << 30, "up": True,
        }  # fmt: skip
        self.gateway: Answer | None = {"pids": [4250], "restarts": 0, "up": True}
        self.models: dict[str, Answer] = {}
        self.events: list[Answer] = []
        self.points: list[Answer] = []

    def model(self, name: str, *versions: int, labels: dict[str, int] | None = None) -> Answer:
        """Configures a model; these versions have been available for a while."""
        self.models[name] = {
            "name": name,
            "labels": labels or {},
            "rollout": None,
            "versions": [],
            "traffic": quiet(),
        }
        for version in versions:
            self._version(name, version, "AVAILABLE")["since_s"] = self.now - 3600
        return self.models[name]

    def load(self, name: str, version: int, stage: str = "open", progress: float | None = None) -> None:
        """A version begins to load, or gets on."""
        new = all(known["version"] != version for known in self.models[name]["versions"])
        row = self._version(name, version, "LOADING")
        row.update(stage=stage, progress=progress)
        if new:
            row["since_s"] = self.now
            self.tell("load", name, version, "its trial begins")

    def switch(self, name: str, version: int, seconds: float = 0.8) -> None:
        """A version takes the place of those that were available."""
        for row in self.models[name]["versions"]:
            if row["state"] == "AVAILABLE" and row["version"] != version:
                row.update(state="UNLOADING", since_s=self.now)
                self.tell("unload", name, row["version"], f"{version} took its place")
        self._version(name, version, "AVAILABLE").update(since_s=self.now, stage="", progress=None)
        self.tell("available", name, version, "published", seconds)

    def gone(self, name: str, version: int) -> None:
        """A version has been unloaded."""
        self.models[name]["versions"] = [v for v in self.models[name]["versions"] if v["version"] != version]
        self.tell("end", name, version, "unloaded", 0.2)

    def fail(self, name: str, version: int, error: str) -> None:
        self._version(name, version, "END").update(error=error, since_s=self.now, stage="", progress=None)
        self.tell("failed", name, version, error)

    def traffic(self, name: str, requests: float, p50_us: float = 210.0, **more: Any) -> None:
        """How many calls a second a model gets, and how long they take."""
        widest = max(1, round(math.log2(max(requests / 200, 1))))
        self.models[name]["traffic"] = {
            **quiet(),
            "requests_per_s": requests,
            "rows_per_s": requests * 12,
            "p50_us": p50_us,
            "p90_us": p50_us * 2,
            "p99_us": p50_us * 5,
            "p999_us": p50_us * 12,
            "queue_p99_us": p50_us * 2,
            "compute_p50_us": p50_us / 2,
            "mean_batch_rows": 12.0,
            "padding_share": 0.031,
            "batch_rows": [[1 << i, requests / 12 / (1 + abs(i - widest))] for i in range(7)],
            "by_transport": {"grpc": requests},
            **more,
        } if requests else quiet()  # fmt: skip

    def tell(
        self,
        kind: str,
        model: str = "",
        version: int | None = None,
        text: str = "",
        seconds: float | None = None,
    ) -> None:
        self.events.append(
            {
                "time_s": self.now,
                "kind": kind,
                "model": model,
                "version": version,
                "text": text,
                "seconds": seconds,
            }
        )

    def tick(self, seconds: float = 1.0) -> Answer:
        """Time goes on; what there is to say then."""
        self.now += seconds
        status = self.status()
        self.points.append({"time_s": self.now, **{key: status["total"].get(key) for key in _TOTAL}})
        return status

    def status(self) -> Answer:
        rows = [model["traffic"] for model in self.models.values()]
        busy = [row for row in rows if row["requests_per_s"]]
        total: Answer = {key: sum(row[key] for row in rows) for key in _ZERO}
        calls = total["requests_per_s"]
        for key in ("p50_us", "p90_us", "p99_us", "p999_us", "queue_p99_us"):
            total[key] = sum(row[key] * row["requests_per_s"] for row in busy) / calls if busy else None
        return {
            "time_s": self.now,
            "version": "0.1.0",
            "uptime_s": self.now - self.began + 7_432,
            "ready": self.ready,
            "core": self.core,
            "gateway": self.gateway,
            "models": json.loads(json.dumps(list(self.models.values()))),
            "total": total,
            "events": self.events[-100:][::-1],
        }

    def history(self) -> Answer:
        return {"step_s": 1, "points": self.points[-600:]}

    def _version(self, name: str, version: int, state: str) -> Answer:
        versions: list[Answer] = self.models[name]["versions"]
        row = next((row for row in versions if row["version"] == version), None)
        if row is None:
            row = {"version": version, "error": "", "stage": "", "progress": None, "since_s": self.now}
            row["memory_bytes"] = 182 << 20
            versions.append(row)
        row["state"] = state
        return row


def quiet() -> Answer:
    """The traffic of a model that nobody asks."""
    return {
        **dict.fromkeys(_ZERO, 0),
        **dict.fromkeys(_NONE),
        "batch_rows": [],
        "by_version": {},
        "by_transport": {},
    }


class FakeMonitor:
    """Serves a scene as the monitor does: the page, history.json, status.json and events."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.asked: list[str] = []  # paths, in order
        self.away = False  # answers nothing but 503, as a gateway does whose daemon has gone
        self._listeners: set[asyncio.Queue[Answer | None]] = set()
        self._app = web.Application()
        self._app.router.add_get("/{path:.*}", self._answer)

    @contextlib.asynccontextmanager
    async def serving(self, *, port: int = 0, unix: Path | None = None) -> AsyncIterator[str]:
        """Yields the address: http://127.0.0.1:PORT/, or the socket's path."""
        runner = web.AppRunner(self._app, shutdown_timeout=0.1)
        await runner.setup()
        site: web.UnixSite | web.TCPSite
        if unix is not None:
            site = web.UnixSite(runner, str(unix))
            await site.start()
            address = str(unix)
        else:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            yield address
        finally:
            self.drop()
            await runner.cleanup()

    @contextlib.contextmanager
    def in_thread(self, unix: Path | None = None) -> Iterator[str]:
        """The same for callers without an event loop."""
        loop = asyncio.new_event_loop()
        ending = asyncio.Event()
        started: list[str] = []
        ready = threading.Event()

        async def run() -> None:
            async with self.serving(unix=unix) as address:
                started.append(address)
                ready.set()
                await ending.wait()

        thread = threading.Thread(
            target=lambda: loop.run_until_complete(run()), name="fake-monitor", daemon=True
        )
        thread.start()
        assert ready.wait(10)
        try:
            yield started[0]
        finally:
            loop.call_soon_threadsafe(ending.set)
            thread.join(10)
            loop.close()

    def push(self, seconds: float = 1.0) -> Answer:
        """A second goes by, and everybody who listens hears of it."""
        status = self.scene.tick(seconds)
        for listener in self._listeners:
            listener.put_nowait(status)
        return status

    def drop(self) -> None:
        """Ends the connections of all who listen."""
        for listener in self._listeners:
            listener.put_nowait(None)

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.away:
            return web.Response(status=503, text="no daemon")
        if request.path == "/":
            return web.Response(body=page.body(), headers=page.headers())
        if request.path == "/status.json":
            return web.json_response(self.scene.status())
        if request.path == "/history.json":
            return web.json_response(self.scene.history())
        if request.path == "/events":
            return await self._events(request)
        return web.Response(status=404, text="no such page")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        heard: asyncio.Queue[Answer | None] = asyncio.Queue()
        heard.put_nowait(self.scene.status())
        self._listeners.add(heard)
        try:
            while (status := await heard.get()) is not None:
                await response.write(f"data: {json.dumps(status)}\n\n".encode())
        except ConnectionResetError:
            pass  # it does not listen any more
        finally:
            self._listeners.discard(heard)
        return response


class Demo:
    """A lively scene: traffic that swings, switches, a canary, a version that cannot be served."""

    NAMES = ("ranker", "ctr-candidates", "embeddings", "toxicity", "eta", "fraud")
    RATES = (11_400.0, 5_200.0, 2_300.0, 420.0, 96.0, 0.0)
    P50 = (212.0, 340.0, 1_150.0, 4_800.0, 640.0, 300.0)

    def __init__(self, models: int = len(NAMES), now: float | None = None, before_s: int = 400) -> None:
        """`models`: how many; `before_s`: how much of it has gone by."""
        self._random = random.Random(7)
        self.scene = Scene((now or time.time()) - before_s)
        self._names = [*self.NAMES, *(f"segment-{i:02d}" for i in range(len(self.NAMES), models))][:models]
        for i, name in enumerate(self._names):
            self.scene.model(name, 41 if i == 0 else 7 + i % 5, labels={"stable": 41} if i == 0 else None)
        self._noise = dict.fromkeys(self._names, 1.0)
        self.second = 0
        self._newest = 41
        if models > 1:
            self.scene.model("ctr-candidates", 12, 13, labels={"stable": 12, "canary": 13})["rollout"] = {
                "kind": "canary", "new": 13, "stable": 12, "share": 0.1, "text": "812 of 1000 requests",
            }  # fmt: skip
        self.before = [self.step() for _ in range(before_s)]

    def step(self) -> Answer:
        """A second of it."""
        second, scene = self.second, self.scene
        self.second += 1
        self._switch(second % 150)
        if second == 260 and "fraud" in scene.models:
            scene.load("fraud", 9, "open")
        elif second == 266 and "fraud" in scene.models:
            scene.fail("fraud", 9, "variables/variables.data-00000-of-00001 is shorter than its index says")
        elif second == 180:
            scene.tell("reload", text="config.toml: ranker batching changed")
        for i, name in enumerate(self._names):
            self._noise[name] = 0.85 * self._noise[name] + 0.15 * self._random.uniform(0.7, 1.3)
            rate = self.RATES[i] if i < len(self.RATES) else 40.0 * (i % 7)
            p50 = self.P50[i] if i < len(self.P50) else 500.0
            swing = 1 + 0.22 * math.sin(second / 60 + i)
            warming = 1.15 if i == 0 and 20 <= second % 150 < 27 else 1.0
            shed = 14.0 * self._random.random() if i == 0 and 96 < second % 210 < 104 else 0.0
            jitter = self._random.uniform(0.95, 1.05)
            scene.traffic(
                name,
                round(rate * swing * self._noise[name], 1),
                p50 * jitter * warming,
                p99_us=p50 * warming * self._random.uniform(3.2, 4.6),
                p999_us=p50 * warming * self._random.uniform(6.5, 13),
                waiting_rows=round(self._random.expovariate(1 / (rate / 300))) if rate else 0,
                shed_per_s=shed,
                errors_per_s=shed,
            )
        if "ctr-candidates" in scene.models:
            traffic = scene.models["ctr-candidates"]["traffic"]
            rate = traffic["requests_per_s"]
            traffic["by_version"] = {
                "12": {"requests_per_s": rate * 0.9, "p99_us": traffic["p99_us"]},
                "13": {"requests_per_s": rate * 0.1, "p99_us": traffic["p99_us"] * 0.94},
            }
            traffic["by_transport"] = {"grpc": rate * 0.96, "rest": rate * 0.04}
        return scene.tick()

    def _switch(self, second: int) -> None:
        """The first model's versions, every 150 seconds."""
        name, old, new = self._names[0], self._newest, self._newest + 1
        stages = {10: ("open", None), 13: ("compile", 0.1), 17: ("compile", 0.5), 21: ("warm", 0.8)}
        if second in stages:
            stage, progress = stages[second]
            self.scene.load(name, new, stage, progress)
        elif second == 26:
            self.scene.switch(name, new, 16.2)
            self.scene.models[name]["labels"] = {"stable": new}
            self.scene.tell("label", name, new, f"stable: {old} to {new}")
        elif second == 30:
            self.scene.gone(name, old)
            self._newest = new


async def _show(port: int, models: int) -> None:
    demo = Demo(models)
    monitor = FakeMonitor(demo.scene)
    async with monitor.serving(port=port) as address:
        print(address, flush=True)
        while True:
            await asyncio.sleep(1)
            demo.step()
            monitor.push(0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8899)
    parser.add_argument("--models", type=int, default=6)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_show(arguments.port, arguments.models))
