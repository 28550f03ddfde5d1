"""The web service's side in the gateway: HTTP requests of [[routes]] to their workers, and the answers back.

One handler for each route, in the dispatcher's table, and one pool of workers behind it. Runs on the loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from fastserve.gateway.body import Body, Budget
from fastserve.gateway.dispatch import Handler
from fastserve.gateway.frames import Head
from fastserve.gateway.refusal import HTTP_STATUS, Refusal
from fastserve.gateway.rest import metadata_of, passed_on, preflight
from fastserve.gateway.routes_pool import Pool, Refused, Start
from fastserve.gateway.routes_worker import Log, Reply, RouteWorker
from fastserve.gateway.settings import RouteSettings, Settings

# Once the gateway drains, every answer is out: what workers are at then has nobody waiting.
_CLOSE_TIMEOUT_S = 1.0


class Routes:
    """All routes."""

    def __init__(self, settings: Settings, handlers: dict[str, Handler], budget: Budget, log: Log) -> None:
        """`handlers`: by path; those of the routes are put there, and taken away."""
        self._passed_on = passed_on(settings.forward)
        self._settings = settings
        self._wanted = settings.routes
        self._is_open = False
        self._budget = budget
        self._handlers = handlers
        self._log = log
        self._open: dict[str, tuple[RouteSettings, Pool]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begins to start workers; requests that come before there are any wait."""
        self._is_open = True
        self._apply(self._wanted)

    async def settled(self, timeout_s: float) -> None:
        """Waits until every route has its workers, or cannot have them; no longer than `timeout_s`."""
        waiting = [
            asyncio.create_task(pool.settled.wait(), name=f"route {path} settles")
            for path, (_, pool) in self._open.items()
        ]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()

    def forward(self, headers: tuple[str, ...]) -> None:
        """The request headers that are passed on, beside those that always are."""
        self._passed_on = passed_on(headers)

    def take(self, message: dict[str, Any]) -> None:
        """The routes from here on: a line of the control process, which may come before `open`."""
        self._wanted = msgspec.convert(message["routes"], tuple[RouteSettings, ...])
        if self._is_open:
            self._apply(self._wanted)

    async def close(self) -> None:
        """Ends the workers."""
        self._is_open = False
        self._apply(())
        if self._closing:
            await asyncio.wait(self._closing)

    def _apply(self, routes: tuple[RouteSettings, ...]) -> None:
        """Opens what is new and closes what is gone; what has changed is both, and loses no request: those of
        the old pool are answered, others wait for the new one's workers."""
        wanted = {route.path: route for route in routes}
        for path, (route, pool) in list(self._open.items()):
            if wanted.get(path) != route:
                del self._open[path], self._handlers[path]
                leave_s = route.timeout_s if wanted else _CLOSE_TIMEOUT_S
                task = asyncio.create_task(pool.close(leave_s), name=f"route {path} closes")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for path, route in wanted.items():
            if path not in self._open:
                pool = make_pool(route, f"unix:{self._settings.web_socket}", self._log)
                pool.open()
                self._open[path] = route, pool
                self._handlers[path] = partial(self._handle, route)

    async def _handle(self, route: RouteSettings, request: web.BaseRequest) -> web.StreamResponse:
        if self._settings.cors and request.method == "OPTIONS":
            response = preflight(request)
            response.headers["Access-Control-Allow-Methods"] = ", ".join(route.methods)
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, traceparent"
            return response
        if request.method not in route.methods:
            raise Refusal(
                405, f"Method not allowed: {request.method}", headers={"Allow": ", ".join(route.methods)}
            )
        limit = f"max_body_bytes of {route.path}"
        with Body(route.max_body_bytes, self._settings.timeout_s, self._budget, limit) as body:
            await body.read(request)
            try:
                reply = await self._pool(route.path).ask(self._head(route, request), body.data)
            except Refused as refused:
                headers = {"Retry-After": "1"} if refused.status == 503 else None
                raise Refusal(refused.status, str(refused), headers=headers) from None
        return response_of(reply)

    def _pool(self, path: str) -> Pool:
        """Of now: while a body comes, routes may change. Refused."""
        if (there := self._open.get(path)) is None:
            raise Refused(503, f"{path} is being closed")
        return there[1]

    def _head(self, route: RouteSettings, request: web.BaseRequest) -> Head:
        query = request.raw_path.partition("?")[2]
        headers = request.headers
        return {
            "method": request.method,
            "path": route.path,
            "query": _text(query),
            "headers": [(name, _text(value)) for name, value in headers.items()],
            "remote": request.remote if isinstance(request.remote, str) else "",
            "metadata": metadata_of(request, self._passed_on),
        }


def make_pool(route: RouteSettings, address: str, log: Log, **options: Any) -> Pool:
    """A route's pool, not yet open. `address`: where its workers find the core."""
    settings = {
        "path": route.path,
        "file": route.file,
        "model": route.model,
        "version": route.version,
        "label": route.label,
        "signature": route.signature,
        "timeout_s": route.timeout_s,
        "address": address,
    }

    async def launch(on_free: Any) -> RouteWorker:
        return await RouteWorker.start(settings, log, on_free, concurrency=route.concurrency)

    start: Start = launch
    return Pool(
        route.path,
        route.file,
        start,
        log,
        workers=route.workers,
        timeout_s=route.timeout_s,
        max_waiting=route.max_waiting,
        reload=route.reload,
        **options,
    )


def response_of(reply: Reply) -> web.Response:
    """Refusal for a worker's refusal."""
    status = HTTP_STATUS.get(reply.status, 500) if isinstance(reply.status, str) else reply.status
    if reply.error is not None:
        raise Refusal(status, reply.error)
    return web.Response(status=status, headers=CIMultiDict(reply.headers), body=reply.body)


def _text(value: str) -> str:
    """A header or a query as text: bytes that are not UTF-8, which aiohttp keeps as half surrogates, are
    replaced."""
    return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
