"""Sending spans to a collector by OTLP over HTTP, in the background.

What waits is bounded: beyond that calls are dropped and counted. A collector that is away, or has too much to
do, is asked again with growing delays; what it refuses is dropped. Nobody ever waits for it, save the end of
the daemon, for a moment. Used by the daemon, on the event loop.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fastserve.control.otlp import export_request, rejected_by
from fastserve.errors import ConfigError
from fastserve.log import Log
from fastserve.trace_events import Event
from fastserve.version import __version__

# Calls of one request, and calls that wait.
BATCH = 256
QUEUE = 4096
# How long calls wait for others to travel with.
GATHER_S = 0.5
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_POST_TIMEOUT_S = 10.0
_LAST_WORDS_S = 2.0
# Of a collector's answer, no more is read.
_ANSWER_MAX_BYTES = 64 * 1024
# OpenTelemetry's own names for what a collector wants to see, a token say: key=value,key=value, each
# percent-encoded where it has to be. In the environment, for it is no business of a configuration's readers.
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
# As OTLP says: what may be sent again. The other failures stay what they are.
_TRY_AGAIN = frozenset({429, 502, 503, 504})


# A header's name.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Unreachable(Exception):
    """There is no answer: the collector is away."""


@dataclass(frozen=True)
class Reply:
    """A collector's."""

    status: int
    body: bytes = b""
    retry_after_s: float = 0.0


# Sends a body to the endpoint. Unreachable.
Post = Callable[[str, bytes], Awaitable[Reply]]


def headers_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The headers that HEADERS name, of the first that is set. ConfigError, which names the variable and not
    what may be a secret: it is not as it should be."""
    name = next((name for name in HEADERS if environment.get(name, "").strip()), "")
    headers = {}
    for part in filter(str.strip, environment.get(name, "").split(",")):
        key, there, value = (unquote(text.strip()) for text in part.partition("="))
        if not there or not _TOKEN.fullmatch(key) or not value.isprintable() or not value.isascii():
            raise ConfigError([f"{name} in the environment: expected key=value,key=value, each a header's"])
        headers[key] = value
    return headers


class Exporter:
    """Calls come by `offer`; `run` sends them until it is cancelled, `close` what is left."""

    def __init__(
        self,
        endpoint: str,
        service_name: str,
        log: Log,
        *,
        headers: Mapping[str, str] | None = None,
        post: Post | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._endpoint = endpoint
        self._service_name = service_name
        self._log = log
        self._http: HttpPost | None = None
        if post is None:
            self._http = HttpPost(headers or {})
            post = self._http
        self._post = post
        self._sleep = sleep
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._waiting: deque[Event] = deque()
        self._some = asyncio.Event()
        self._failures = 0  # in a row
        self._told = 0
        self.exported = 0  # calls that the collector has taken
        self.dropped = 0  # and those that it never will
        self.error = ""  # the last one, until a request is taken

    def offer(self, calls: Iterable[Event]) -> None:
        """Takes calls to be sent; those beyond the bound are dropped."""
        for call in calls:
            if len(self._waiting) >= QUEUE:
                self._drop(1, self.error or "more calls are sampled than can be sent")
            else:
                self._waiting.append(call)
        if self._waiting:
            self._some.set()

    def count_lost(self, n: int) -> None:
        """Events that were overwritten before they could be read, calls among them."""
        if n:
            self._drop(n, "events were written faster than they are read")

    async def run(self) -> None:
        """Sends what comes."""
        while True:
            await self._some.wait()
            if len(self._waiting) < BATCH:
                await self._sleep(GATHER_S)
            await self._sleep(await self._send())

    async def close(self) -> None:
        """Sends what is left, if that does not take long, and ends. `run` is over."""
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while self._waiting and await self._send() == 0.0:
                    pass
        except TimeoutError:
            pass
        if self._waiting:
            self._drop(len(self._waiting), self.error or "the end came first")
            self._waiting.clear()
        if self._http is not None:
            await self._http.close()

    def stats(self) -> dict[str, Any]:
        """Calls exported, dropped and waiting, and what was wrong last."""
        return {
            "exported": self.exported,
            "dropped": self.dropped,
            "waiting": len(self._waiting),
            "error": self.error,
        }

    async def _send(self) -> float:
        """One request; for how long to wait before the next."""
        calls = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        offset_ns = self._wall_ns() - self._monotonic_ns()
        body = await asyncio.to_thread(export_request, calls, self._service_name, offset_ns)
        try:
            reply = await self._post(self._endpoint, body)
        except Unreachable as error:
            return self._failed(str(error), 0.0)
        if reply.status in _TRY_AGAIN:
            return self._failed(f"HTTP {reply.status}", reply.retry_after_s)
        for _ in calls:
            self._waiting.popleft()
        if not self._waiting:
            self._some.clear()
        if not 200 <= reply.status < 300:
            self.error = f"HTTP {reply.status}"
            self._drop(len(calls), f"the collector refused them: HTTP {reply.status}")
            return 0.0
        rejected, why = rejected_by(reply.body)
        if rejected:
            self._log.warning("spans were rejected by the collector", spans=rejected, why=why)
        if self._failures:
            self._log.info("the collector of spans is back", endpoint=self._endpoint)
        self._failures = 0
        self.error = ""
        self.exported += len(calls)
        return 0.0

    def _failed(self, why: str, retry_after_s: float) -> float:
        """The collector could not be asked; for how long to leave it alone."""
        self.error = why
        self._failures += 1
        delay_s = max(BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1], min(retry_after_s, BACKOFF_S[-1]))
        if self._failures == 1:
            self._log.warning(
                "the collector of spans does not take them", endpoint=self._endpoint, why=why, retry_s=delay_s
            )
        return delay_s

    def _drop(self, n: int, why: str) -> None:
        """Counts, and tells the log, once for each doubling."""
        self.dropped += n
        if self.dropped >= 2 * self._told:
            self._told = self.dropped
            self._log.warning("sampled calls are not exported", dropped=self.dropped, why=why)


class HttpPost:
    """A Post by aiohttp, over connections that stay open."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._session: Any = None

    async def __call__(self, endpoint: str, body: bytes) -> Reply:
        import aiohttp  # which a daemon without a collector does not need

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_POST_TIMEOUT_S),
                headers={
                    "User-Agent": f"fastserve/{__version__}",
                    **self._headers,
                    "Content-Type": "application/x-protobuf",
                },
                trust_env=True,
            )
        try:
            async with self._session.post(endpoint, data=body, allow_redirects=False) as response:
                after = response.headers.get("Retry-After", "")
                return Reply(
                    response.status,
                    await response.content.read(_ANSWER_MAX_BYTES),
                    float(after) if after.isascii() and after.isdigit() else 0.0,
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
