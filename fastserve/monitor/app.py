"""The monitor's paths, and what is answered there. GET only; no answer depends on a body.

  /healthz       200 while the daemon and its core live
  /readyz        200 when every configured model has a version that answers; 503 says which has none and why
  metrics_path   Prometheus
  /status.json   models, versions, traffic, events
  /history.json  ten minutes, second by second
  /events        the status once a second, as server-sent events
  /              the page

On the event loop of the control process. No probe and no status waits for the core, so that they have their
answer whatever it does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from weakref import WeakSet

from aiohttp import web

from fastserve.monitor import page as live_page
from fastserve.monitor.exposition import OPENMETRICS_TYPE, TEXT_TYPE, accepts, wants_openmetrics
from fastserve.monitor.live import Live
from fastserve.monitor.scrape import Scraper
from fastserve.monitor.values import Health, View

_BODY_MAX_BYTES = 1024
_SELECTED_MAX = 64

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Monitor:
    """What the paths answer. `page`: whether there is one."""

    def __init__(self, view: View, live: Live, scraper: Scraper, *, page: bool) -> None:
        # Connections on which something was asked.
        self.heard: WeakSet[asyncio.BaseTransport] = WeakSet()
        self._view = view
        self._live = live
        self._scraper = scraper
        self._page = page

    def app(self, metrics_path: str) -> web.Application:
        """An application of its own for each runner."""
        app = web.Application(client_max_size=_BODY_MAX_BYTES, middlewares=[self._listen])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get(metrics_path, self._metrics)
        app.router.add_get("/status.json", self._status)
        app.router.add_get("/history.json", self._history)
        app.router.add_get("/events", self._events, allow_head=False)
        if self._page:
            app.router.add_get("/", self._index)
        return app

    @web.middleware
    async def _listen(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around every answer. Says what there is, where there is nothing."""
        if request.transport is not None:
            self.heard.add(request.transport)
        try:
            return await handler(request)
        except web.HTTPNotFound:
            routes = request.app.router.routes()
            there = sorted({route.resource.canonical for route in routes if route.resource is not None})
            text = f"there is nothing at {request.path}; there is: {', '.join(there)}\n"
            return web.Response(status=404, text=text)

    async def _healthz(self, request: web.Request) -> web.Response:
        return _health(self._view.health())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _health(self._view.readiness())

    async def _metrics(self, request: web.Request) -> web.Response:
        openmetrics = wants_openmetrics(request.headers.get("Accept", ""))
        only = tuple(sorted(set(request.query.getall("name[]", []))))
        if len(only) > _SELECTED_MAX:
            raise web.HTTPBadRequest(text=f"name[] may be there {_SELECTED_MAX} times")
        zipped = accepts(request.headers.get("Accept-Encoding", ""), "gzip")
        text = await self._scraper.text(openmetrics=openmetrics, zipped=zipped, only=only)
        headers = {
            "Content-Type": OPENMETRICS_TYPE if openmetrics else TEXT_TYPE,
            "Vary": "Accept, Accept-Encoding",
            "Cache-Control": "no-store",
        }
        return web.Response(body=text, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    async def _status(self, request: web.Request) -> web.Response:
        return _json(self._view.status())

    async def _history(self, request: web.Request) -> web.Response:
        return _json(self._view.history())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await self._live.serve(request)

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(body=live_page.body(), headers=live_page.headers())


def _health(health: Health) -> web.Response:
    body: dict[str, object] = {"ok": health.ok}
    if health.why:
        body["why"] = health.why
    if health.models:
        body["models"] = dict(health.models)
    return _json(json.dumps(body).encode() + b"\n", status=200 if health.ok else 503)


def _json(body: bytes, *, status: int = 200) -> web.Response:
    return web.Response(
        body=body,
        status=status,
        headers={
            "Content-Type": "application/json",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )
