"""Spans for OpenTelemetry: read by its own messages, and sent to collectors of every kind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from trace_records import call

from fastserve.call_names import METHODS
from fastserve.control import otlp_export
from fastserve.control.otlp import export_request, rejected_by
from fastserve.control.otlp_export import (
    BACKOFF_S,
    BATCH,
    QUEUE,
    Exporter,
    Reply,
    Unreachable,
    headers_of,
)
from fastserve.errors import ConfigError
from fastserve.log import Log
from fastserve.protos import message
from fastserve.trace_events import PARENT, Event
from fastserve.version import __version__

OFFSET_NS = 1_700_000_000_000_000_000


def request_of(*calls: Event) -> Any:
    ids = (n.to_bytes(16, "big") for n in itertools.count(1))
    return ExportTraceServiceRequest.FromString(
        export_request(calls, "ranking", OFFSET_NS, lambda size: next(ids)[-size:])
    )


def spans_of(*calls: Event) -> list[Any]:
    return list(request_of(*calls).resource_spans[0].scope_spans[0].spans)


def attributes(holder: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


def test_the_messages_are_opentelemetrys() -> None:
    """What our definitions write, theirs reads, and nothing of it is unknown to them."""
    ours = message("opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest")()
    resource = ours.resource_spans.add(schema_url="u")
    resource.resource.dropped_attributes_count = 1
    for key, value in {"string": "s", "bool": True, "int": -5, "double": 0.5, "bytes": b"b"}.items():
        setattr(resource.resource.attributes.add(key=key).value, f"{key}_value", value)
    resource.resource.attributes.add(key="array").value.array_value.values.add(int_value=1)
    kvlist = resource.resource.attributes.add(key="kvlist").value.kvlist_value
    kvlist.values.add(key="k").value.string_value = "v"
    scope = resource.scope_spans.add(schema_url="w")
    scope.scope.name, scope.scope.version, scope.scope.dropped_attributes_count = "n", "v", 2
    scope.scope.attributes.add(key="a")
    span = scope.spans.add(trace_id=b"t", span_id=b"s", trace_state="x=y", parent_span_id=b"p", name="n")
    span.kind, span.flags = 2, 1
    span.start_time_unix_nano, span.end_time_unix_nano = 1, 2
    span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count = 3, 4, 5
    span.attributes.add(key="a")
    span.status.code, span.status.message = 2, "m"
    theirs = ExportTraceServiceRequest.FromString(ours.SerializeToString())
    assert str(theirs) == str(ours)
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    answer.partial_success.error_message = "why"
    assert rejected_by(answer.SerializeToString()) == (3, "why")
    assert rejected_by(b"") == rejected_by(b"\xff\xff\xff") == (0, "")


def test_a_call_is_a_server_span_with_its_stages() -> None:
    trace_id, parent_id = os.urandom(16), os.urandom(8)
    request = request_of(call(flags=PARENT, trace_id=trace_id, parent_id=parent_id, transport=1))
    assert attributes(request.resource_spans[0].resource) == {
        "service.name": "ranking",
        "service.version": __version__,
    }
    server, *children = request.resource_spans[0].scope_spans[0].spans
    assert server.name == "tensorflow.serving.PredictionService/Predict"
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.parent_span_id == parent_id
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server) == {
        "rpc.system": "grpc",
        "rpc.service": "tensorflow.serving.PredictionService",
        "rpc.method": "Predict",
        "rpc.grpc.status_code": 0,
        "fastserve.transport": "rest",
        "fastserve.model": "ranker",
        "fastserve.version": 3,
        "fastserve.signature": "serving_default",
        "fastserve.rows": 2,
        "fastserve.batch.rows": 6,
        "fastserve.batch.padded_rows": 8,
    }

    def times(span: Any) -> tuple[int, int]:
        return span.start_time_unix_nano - OFFSET_NS, span.end_time_unix_nano - OFFSET_NS

    assert times(server) == (1_000_000, 1_010_000)
    assert [(span.name, times(span)) for span in children] == [
        ("queue", (1_000_000, 1_001_000)),
        ("batch", (1_001_000, 1_003_000)),
        ("compute", (1_003_000, 1_007_000)),
        ("encode", (1_007_000, 1_009_000)),
    ]
    for span in children:
        assert span.kind == Span.SPAN_KIND_INTERNAL
        assert span.parent_span_id == server.span_id
    assert {span.trace_id for span in (server, *children)} == {trace_id}
    assert len({span.span_id for span in (server, *children)}) == 5
    assert {len(span.span_id) for span in (server, *children)} == {8}


def test_a_root_has_a_trace_of_its_own() -> None:
    first, second = (span for span in spans_of(call(), call()) if span.kind == Span.SPAN_KIND_SERVER)
    assert first.trace_id != second.trace_id and len(first.trace_id) == 16
    assert not first.parent_span_id


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, Status.STATUS_CODE_UNSET), (3, Status.STATUS_CODE_UNSET), (5, Status.STATUS_CODE_UNSET)]
    + [(code, Status.STATUS_CODE_ERROR) for code in (2, 4, 12, 13, 14, 15)],
)
def test_a_call_that_did_not_run_has_no_stages(code: int, status: int) -> None:
    (span,) = spans_of(call(at_us=(), code=code, version=0, signature="", count=0, run_rows=0))
    assert span.status.code == status
    assert attributes(span)["rpc.grpc.status_code"] == code
    assert "fastserve.version" not in attributes(span)
    assert "fastserve.batch.rows" not in attributes(span)


def test_session_run_is_another_service() -> None:
    server, queue = spans_of(call(method=METHODS.index("SessionRun"), at_us=(1004,)))
    assert server.name == "tensorflow.serving.SessionService/SessionRun"
    assert queue.name == "queue"


# ---- sending ----------------------------------------------------------------------------------


class Collector:
    """What a Post comes to, one reply after the other; the last one stays."""

    def __init__(self, *replies: Reply | Unreachable) -> None:
        self.replies = list(replies) or [Reply(200)]
        self.requests: list[Any] = []

    async def __call__(self, endpoint: str, body: bytes) -> Reply:
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Unreachable):
            raise reply
        return reply

    def rows(self) -> list[int]:
        """Of the calls of all requests, in their order."""
        return [
            attributes(span)["fastserve.rows"]
            for request in self.requests
            for span in request.resource_spans[0].scope_spans[0].spans
            if span.kind == Span.SPAN_KIND_SERVER
        ]


class Rig:
    """An exporter whose pauses are counted, not made."""

    def __init__(self, path: Path, post: otlp_export.Post) -> None:
        self.path = path
        self.pauses: list[float] = []
        self.log = Log(os.open(path, os.O_WRONLY | os.O_CREAT))
        self.exporter = Exporter(
            "http://collector/v1/traces",
            "ranking",
            self.log,
            post=post,
            sleep=self.pause,
            wall_ns=lambda: OFFSET_NS + 5,
            monotonic_ns=lambda: 5,
        )

    async def pause(self, seconds: float) -> None:
        if seconds:
            self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def run_until(self, done: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.exporter.run())
        for _ in range(20_000):
            if done():
                break
            await asyncio.sleep(0.001)
        assert done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def lines(self) -> str:
        self.log.flush()
        return self.path.read_text()


async def test_calls_are_sent_in_order_and_together(tmp_path: Path) -> None:
    collector = Collector()
    rig = Rig(tmp_path / "log", collector)
    rig.exporter.offer(call(rows=n) for n in range(1, BATCH + 11))
    await rig.run_until(lambda: rig.exporter.exported == BATCH + 10)
    assert collector.rows() == list(range(1, BATCH + 11))
    assert len(collector.requests) == 2
    assert rig.exporter.stats() == {"exported": BATCH + 10, "dropped": 0, "waiting": 0, "error": ""}
    first = collector.requests[0].resource_spans[0].scope_spans[0].spans[0]
    assert first.start_time_unix_nano == OFFSET_NS + 1_000_000


async def test_a_collector_that_is_away_is_asked_again_ever_later(tmp_path: Path) -> None:
    away = [Unreachable("connection refused")] * 3
    collector = Collector(*away, Reply(503), Reply(429, retry_after_s=20.0), Reply(200))
    rig = Rig(tmp_path / "log", collector)
    rig.exporter.offer([call(rows=1)])
    await rig.run_until(lambda: rig.exporter.exported == 1)
    assert [pause for pause in rig.pauses if pause != otlp_export.GATHER_S] == [*BACKOFF_S[:4], 20.0]
    assert collector.rows() == [1] * 6
    assert rig.exporter.dropped == 0 and rig.exporter.error == ""
    assert rig.lines().count("does not take them") == 1
    assert "connection refused" in rig.lines()
    assert "is back" in rig.lines()


async def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "log", Collector(Unreachable("away")))
    rig.exporter.offer(call() for _ in range(QUEUE))
    assert rig.exporter.dropped == 0
    for _ in range(10):
        rig.exporter.offer([call()])
    rig.exporter.count_lost(0)
    rig.exporter.count_lost(30)
    assert rig.exporter.stats()["dropped"] == 40
    assert rig.exporter.stats()["waiting"] == QUEUE
    told = [line for line in rig.lines().splitlines() if "not exported" in line]
    assert len(told) == 5  # 1, 2, 4, 8, 40


async def test_what_the_collector_refuses_is_not_sent_again(tmp_path: Path) -> None:
    collector = Collector(Reply(400), Reply(200))
    rig = Rig(tmp_path / "log", collector)
    rig.exporter.offer([call(rows=1)])
    await rig.run_until(lambda: rig.exporter.dropped == 1)
    assert rig.exporter.error == "HTTP 400"
    assert "refused them: HTTP 400" in rig.lines()
    rig.exporter.offer([call(rows=2)])
    await rig.run_until(lambda: rig.exporter.exported == 1)
    assert collector.rows() == [1, 2]
    assert rig.exporter.error == ""


async def test_spans_that_are_rejected_are_told(tmp_path: Path) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 5
    answer.partial_success.error_message = "too old"
    rig = Rig(tmp_path / "log", Collector(Reply(200, answer.SerializeToString())))
    rig.exporter.offer([call()])
    await rig.run_until(lambda: rig.exporter.exported == 1)
    assert "too old" in rig.lines()


async def test_the_end_sends_what_is_left(tmp_path: Path) -> None:
    collector = Collector()
    rig = Rig(tmp_path / "log", collector)
    rig.exporter.offer(call(rows=n + 1) for n in range(BATCH + 1))
    await rig.exporter.close()
    assert len(collector.rows()) == BATCH + 1
    away = Rig(tmp_path / "away", Collector(Unreachable("away")))
    away.exporter.offer([call()])
    await away.exporter.close()
    assert away.exporter.stats() == {"exported": 0, "dropped": 1, "waiting": 0, "error": "away"}


async def test_the_end_does_not_wait_for_a_collector_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_export, "_LAST_WORDS_S", 0.05)

    async def hang(endpoint: str, body: bytes) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    rig = Rig(tmp_path / "log", hang)
    rig.exporter.offer([call()])
    await rig.exporter.close()
    assert rig.exporter.dropped == 1


# ---- over HTTP --------------------------------------------------------------------------------


async def serve(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> tuple[str, web.AppRunner]:
    app = web.Application()
    app.router.add_post("/v1/traces", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces", runner


async def test_a_real_collector_gets_protobuf(tmp_path: Path) -> None:
    got: list[tuple[Mapping[str, str], Any]] = []

    async def take(request: web.Request) -> web.Response:
        got.append((request.headers, ExportTraceServiceRequest.FromString(await request.read())))
        return web.Response(body=ExportTraceServiceResponse().SerializeToString())

    endpoint, runner = await serve(take)
    log = Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
    secret = headers_of({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc%2C,x-team = ads"})
    exporter = Exporter(endpoint, "ranking", log, headers=secret)
    exporter.offer([call(), call()])
    await exporter.close()
    await runner.cleanup()
    ((headers, request),) = got
    assert headers["Content-Type"] == "application/x-protobuf"
    assert headers["User-Agent"] == f"fastserve/{__version__}"
    assert (headers["authorization"], headers["x-team"]) == ("Bearer abc,", "ads")
    assert len(request.resource_spans[0].scope_spans[0].spans) == 10
    assert exporter.exported == 2


def test_headers_come_from_the_environment() -> None:
    general, of_traces = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
    assert headers_of({}) == {} and headers_of({general: " "}) == {}
    assert headers_of({general: "a=1,,b=2=3,"}) == {"a": "1", "b": "2=3"}
    assert headers_of({general: "a=1", of_traces: "b=2"}) == {"b": "2"}
    for wrong in ("secret", "a=1,=2", "two words=1", "a=secret%0d%0ax: y", "a=s%C3%A9cret"):
        with pytest.raises(ConfigError, match=f"^{general} in the environment: expected") as caught:
            headers_of({general: wrong})
        assert "secret" not in str(caught.value)


async def test_real_answers_of_other_kinds() -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "7"}, text="x" * 100_000)

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    post = otlp_export.HttpPost({})
    endpoint, runner = await serve(refuse)
    reply = await post(endpoint, b"")
    assert (reply.status, reply.retry_after_s) == (503, 7.0)
    assert len(reply.body) <= 64 * 1024
    await runner.cleanup()
    with pytest.raises(Unreachable):
        await post(endpoint, b"")  # it is gone
    endpoint, runner = await serve(elsewhere)
    assert (await post(endpoint, b"")).status == 302  # spans do not follow anybody
    await runner.cleanup()
    await post.close()


def test_json_of_stats(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "log", Collector())
    assert json.loads(json.dumps(rig.exporter.stats()))["waiting"] == 0
