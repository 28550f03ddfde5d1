"""Traces of a real core on the null runtime: what `fastserve trace` records, and the spans that a collector
gets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from core_driver import Core, predict_request, servable
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from fastserve._native.trace import RECORDING, SPANS, TraceReader, TraceUnreadable
from fastserve.control.otlp_export import Exporter
from fastserve.control.shared_memory import make_memory
from fastserve.control.traces import MAX_EVENTS, Traces
from fastserve.errors import CoreError
from fastserve.log import Log
from fastserve.trace_chrome import Recording, write_chrome
from fastserve.trace_events import ACTIVITY, CALLS, TASKS, TURNS, Event, Kind, events_of

PREDICT = "/tensorflow.serving.PredictionService/Predict"
BYTES = 64 << 20


class Memories:
    """As SharedMemory, of one core after the other."""

    def __init__(self) -> None:
        self.generation = 0
        self.fd: int | None = None

    def renew(self, size: int = BYTES) -> int:
        self.close()
        self.fd = make_memory("trace", size)
        self.generation += 1
        return self.fd

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def current(self, name: str) -> int | None:
        assert name == "trace"
        return self.fd


@pytest.fixture
def memories() -> Iterator[Memories]:
    memories = Memories()
    yield memories
    memories.close()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))


@pytest.fixture(params=[0, 2], ids=["loop", "io threads"])
def core(request: pytest.FixtureRequest, memories: Memories) -> Iterator[Core]:
    settings: dict[str, Any] = {"server": {"io_threads": request.param}, "executor": {"threads": 2}}
    with Core(trace=memories.renew(), **settings) as core:
        core.io_threads = request.param
        core.serve(servable("m", version=3))
        yield core


class Client:
    """Predicts by grpcio, each with the headers that it is given."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.call = self.channel.unary_unary(PREDICT)

    async def predict(self, model: str = "m", rows: int = 1, **headers: str) -> int:
        """The status."""
        try:
            await self.call(
                predict_request(model, b"\0\0\0\0" * rows, [rows, 1]),
                metadata=list(headers.items()),
                timeout=30,
            )
        except grpc.aio.AioRpcError as error:
            code: int = error.code().value[0]
            return code
        return 0


@asynccontextmanager
async def client(core: Core, address: str = "") -> AsyncIterator[Client]:
    one = Client(address or core.address)
    yield one
    await one.channel.close()


def add(core: Core, one: dict[str, Any]) -> None:
    core.call("load", servable=one)
    core.call("publish", model=one["model"], version=one["version"])


async def until(look: Callable[[], bool]) -> None:
    """What another process is about to do has no event here: looks until it is done."""
    for _ in range(1000):
        if look():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("that takes too long")


def lanes(reader: TraceReader, events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {name: [] for name in reader.tracks()}
    names = reader.tracks()
    for event in events:
        found[names[event.track]].append(event)
    return found


async def test_a_reader_sees_every_thread(core: Core, memories: Memories) -> None:
    assert memories.fd is not None
    reader = TraceReader.open(memories.fd)
    assert reader is not None
    io = [f"fs-io-{n}" for n in range(core.io_threads)]
    assert set(reader.tracks()) == {"fs-exec-0", "fs-exec-1", "fs-load-0", "fs-switch", "loop", *io}
    async with client(core) as one:
        await one.predict()
        assert reader.read(ACTIVITY | CALLS) == b""  # nobody wants anything
        reader.want(RECORDING, 0.0)
        began_us = time.monotonic_ns() // 1000
        for _ in range(20):
            await one.predict(rows=3)
        await asyncio.sleep(0.05)
        found = lanes(reader, list(events_of(reader.read(ACTIVITY | CALLS))))
        batches = [e for name in ("fs-exec-0", "fs-exec-1") for e in found[name]]
        assert len(batches) == 20
        for batch in batches:
            assert (batch.kind, batch.servable, batch.signature) == (Kind.BATCH, "m:3", "serving_default")
            assert (batch.rows, batch.run_rows, batch.amount) == (3, 3, 1)
            assert began_us <= batch.begin_us <= batch.at_us[0] <= batch.at_us[1] <= batch.end_us
        turns = [e for name in [*io, "loop"] for e in found[name]]
        wanted = {"turn"} if io else {"read", "deliver"}
        assert {TURNS[turn.detail] for turn in turns} >= wanted
        reader.want(0, 0.0)
        await one.predict()
        await asyncio.sleep(0.05)
        assert reader.read(ACTIVITY | CALLS) == b""
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.want(SPANS, 0.0)
    assert reader.tracks() == [] and reader.read(ACTIVITY) == b""


async def test_tasks_are_told_before_anybody_asks(core: Core, memories: Memories) -> None:
    assert memories.fd is not None
    reader = TraceReader.open(memories.fd)
    assert reader is not None
    assert reader.read(ACTIVITY) == b""
    reader.rewind()
    found = lanes(reader, list(events_of(reader.read(ACTIVITY))))
    assert [(e.kind, TASKS[e.detail], e.servable) for e in found["fs-load-0"]] == [
        (Kind.TASK_BEGUN, "load", "m:3"),
        (Kind.TASK, "load", "m:3"),
    ]
    assert [TASKS[e.detail] for e in found["fs-switch"] if e.kind == Kind.TASK] == ["publish"]
    assert reader.lost == 0


def test_memory_that_is_no_trace(memories: Memories) -> None:
    assert TraceReader.open(memories.renew()) is None  # no core has made one there yet
    with pytest.raises(TraceUnreadable):
        TraceReader.open(memories.renew(4096 - 1))
    fd = memories.renew()
    os.pwrite(fd, b"\xff" * 64, 0)
    with pytest.raises(TraceUnreadable):
        TraceReader.open(fd)


# ---- recordings -------------------------------------------------------------------------------


@asynccontextmanager
async def running(traces: Traces) -> AsyncIterator[Traces]:
    task = asyncio.create_task(traces.run())
    yield traces
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await traces.close()


def chrome(done: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """The slices of a recording, with the name of their lane."""
    import json

    recording = Recording(
        done["tracks"], done["pid"], done["begin_us"], done["end_us"], done["lost"], "1", done["note"]
    )
    with open(tmp_path / "t.json", "w") as file:
        write_chrome(file, recording, events_of(Path(done["file"]).read_bytes()))
    rows = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    return [{**row, "lane": names[row["tid"]]} for row in rows if row["ph"] == "X"]


def check_nesting(rows: list[dict[str, Any]]) -> None:
    """In every lane two slices are apart, or one lies within the other."""
    by_lane: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        by_lane.setdefault(row["lane"], []).append((row["ts"], row["ts"] + row["dur"]))
    for slices in by_lane.values():
        open_until: list[int] = []
        for begin, end in sorted(slices, key=lambda one: (one[0], -one[1])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], (begin, end, open_until)
            open_until.append(end)


async def test_a_recording_shows_what_happened(
    core: Core, memories: Memories, log: Log, tmp_path: Path
) -> None:
    traces = Traces(memories, lambda: 123, str(tmp_path), log)
    async with running(traces), client(core) as one:
        beginning = await asyncio.gather(traces.begin(1.0), traces.begin(1.0), return_exceptions=True)
        assert "file" in beginning[0]  # type: ignore[operator]
        assert isinstance(beginning[1], CoreError) and "already" in str(beginning[1])
        loading = asyncio.create_task(
            asyncio.to_thread(add, core, servable("other", version=9, options="open_us=100000"))
        )
        for _ in range(50):
            await one.predict(rows=2)
        await loading
        await until(lambda: bool(traces.progress()["finished"]))
        progress = traces.progress()
        done = await traces.end()
        assert progress["events"] == done["events"] > 50
        assert 1.0 <= progress["seconds"] < 5.0
        assert (done["pid"], done["lost"], done["note"]) == (123, 0, "")
        with pytest.raises(CoreError, match="no trace"):
            await traces.end()
        rows = chrome(done, tmp_path)
        check_nesting(rows)
        assert sum(row["name"] == "m:3 serving_default" for row in rows) == 50
        assert sum(row["name"] == "run" for row in rows) == 50
        (load,) = [row for row in rows if row["name"] == "load other:9"]
        assert load["lane"] == "fs-load-0"
        within = [row["name"] for row in rows if row["lane"] == "fs-load-0"]
        assert "warm-up run serving_default" in within and "open" in within
        assert [row["lane"] for row in rows if row["name"] == "publish other:9"] == ["fs-switch"]
        assert not [row for row in rows if row["name"].endswith("m:3") and row["lane"] == "fs-load-0"]
        assert {row["lane"] for row in rows} >= {"loop"}
        await one.predict()
        assert memories.fd is not None
        reader = TraceReader.open(memories.fd)
        assert reader is not None
        await one.predict()
        assert reader.read(ACTIVITY) == b""  # it has stopped


async def test_a_load_that_is_under_way_is_in_the_picture(
    memories: Memories, log: Log, tmp_path: Path
) -> None:
    with Core(trace=memories.renew()) as core:
        traces = Traces(memories, lambda: 1, str(tmp_path), log)
        loading = asyncio.create_task(
            asyncio.to_thread(core.call, "load", servable=servable("slow", options="open_us=1500000"))
        )
        async with running(traces):
            await asyncio.sleep(0.5)
            await traces.begin(0.2)
            await asyncio.sleep(0.3)
            rows = chrome(await traces.end(), tmp_path)
        assert [(row["lane"], row["name"], row["args"]) for row in rows if row["lane"] == "fs-load-0"] == [
            ("fs-load-0", "load slow:1", {"unfinished": True})
        ]
        await loading


async def test_recordings_that_cannot_be_or_end_early(
    memories: Memories, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces(memories, lambda: 1, str(tmp_path), log)
    with pytest.raises(CoreError, match="it just starts"):
        await traces.begin(1.0)
    for seconds in (0, -1, 1e9):
        with pytest.raises(CoreError, match="expected more than 0"):
            await traces.begin(seconds)
    with pytest.raises(CoreError, match="no trace"):
        traces.progress()
    (tmp_path / "file").touch()
    with pytest.raises(CoreError, match="no place for it"):
        await Traces(memories, lambda: 1, str(tmp_path / "file"), log).begin(1.0)
    with Core(trace=memories.renew()) as core:
        core.serve(servable("m"))
        async with running(traces), client(core) as one:
            await traces.begin(600.0)
            done = await traces.end()  # as Ctrl-C does
            assert done["end_us"] - done["begin_us"] < 60e6
            await traces.begin(600.0)
            memories.renew()
            await until(lambda: bool(traces.progress()["finished"]))
            assert "replaced" in (await traces.end())["note"]
    with Core(trace=memories.renew()) as core:
        core.serve(servable("m"))
        async with running(traces), client(core) as one:
            monkeypatch.setattr("fastserve.control.traces.MAX_EVENTS", 20)
            await traces.begin(600.0)
            for _ in range(40):
                await one.predict()
            await until(lambda: bool(traces.progress()["finished"]))
            done = await traces.end()
            assert (done["events"], done["note"]) == (20, "ended early: 20 events are the most")
    assert MAX_EVENTS > 20


# ---- spans ------------------------------------------------------------------------------------


class Collector:
    """An HTTP server that keeps the spans it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.endpoint = ""

    async def __aenter__(self) -> Collector:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1/traces"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        got = ExportTraceServiceRequest.FromString(await request.read())
        for resource in got.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()

    async def servers(self, n: int) -> list[Any]:
        """The spans of calls, when there are `n`."""
        await until(lambda: len(self._servers()) >= n)
        return self._servers()

    def _servers(self) -> list[Any]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def children(self, server: Any) -> dict[str, Any]:
        return {span.name: span for span in self.spans if span.parent_span_id == server.span_id}


def attribute(span: Any, key: str) -> Any:
    for pair in span.attributes:
        if pair.key == key:
            return getattr(pair.value, pair.value.WhichOneof("value"))
    return None


async def test_a_collector_gets_the_spans_that_callers_asked_for(
    core: Core, memories: Memories, log: Log, tmp_path: Path
) -> None:
    trace_id, parent_id = os.urandom(16), os.urandom(8)
    parent = f"00-{trace_id.hex()}-{parent_id.hex()}"
    async with Collector() as collector:
        exporter = Exporter(collector.endpoint, "test", log)
        traces = Traces(memories, lambda: 1, str(tmp_path), log, exporter=exporter)
        async with running(traces), client(core) as one:
            await asyncio.sleep(0.2)
            before_ns = time.time_ns()
            assert await one.predict(rows=4, traceparent=f"{parent}-01") == 0
            after_ns = time.time_ns()
            for ignored in (f"{parent}-00", f"{parent}-1", f"{parent}-01".upper(), f"ff{parent[2:]}-01", ""):
                assert await one.predict(traceparent=ignored) == 0
            assert await one.predict() == 0
            assert await one.predict("nobody", traceparent=f"{parent}-01") == 5
            (served, refused) = await collector.servers(2)
            await asyncio.sleep(1.0)
            assert len(await collector.servers(2)) == 2
        for span in (served, refused):
            assert (span.trace_id, span.parent_span_id) == (trace_id, parent_id)
            assert span.name == "tensorflow.serving.PredictionService/Predict"
        assert before_ns - 1e6 <= served.start_time_unix_nano < served.end_time_unix_nano <= after_ns + 1e6
        assert attribute(served, "fastserve.model") == "m"
        assert attribute(served, "fastserve.version") == 3
        assert attribute(served, "fastserve.rows") == attribute(served, "fastserve.batch.rows") == 4
        assert attribute(served, "rpc.grpc.status_code") == 0
        children = collector.children(served)
        assert list(children) == ["queue", "batch", "compute", "encode"]
        at_ns = served.start_time_unix_nano
        for child in children.values():
            assert child.trace_id == trace_id
            assert child.start_time_unix_nano == at_ns
            at_ns = child.end_time_unix_nano
        assert at_ns <= served.end_time_unix_nano
        assert attribute(refused, "rpc.grpc.status_code") == 5
        assert attribute(refused, "fastserve.model") == "nobody"
        assert not collector.children(refused)
        assert traces.stats() == {"exported": 2, "dropped": 0, "waiting": 0, "error": ""}


async def test_a_share_of_the_others_is_sampled(
    core: Core, memories: Memories, log: Log, tmp_path: Path
) -> None:
    async with Collector() as collector:
        exporter = Exporter(collector.endpoint, "test", log)
        traces = Traces(memories, lambda: 1, str(tmp_path), log, exporter=exporter, share=1.0)
        async with running(traces), client(core) as one:
            await asyncio.sleep(0.2)
            for _ in range(10):
                await one.predict()
            await one.predict(traceparent=f"00-{'1' * 32}-{'2' * 16}-00")  # its caller has decided
            await one.predict(traceparent="nonsense")
            async with client(core, core.rest_address) as gateway:
                await gateway.predict()
            servers = await collector.servers(12)
        assert sorted(attribute(span, "fastserve.transport") for span in servers) == ["grpc"] * 11 + ["rest"]
        assert len(servers) == 12
        assert len({span.trace_id for span in servers}) == 12
        assert not [span for span in servers if span.parent_span_id]


async def test_a_collector_that_is_away_costs_nobody_anything(
    core: Core, memories: Memories, log: Log, tmp_path: Path
) -> None:
    exporter = Exporter("http://127.0.0.1:9/v1/traces", "test", log)
    traces = Traces(memories, lambda: 1, str(tmp_path), log, exporter=exporter, share=1.0)
    async with running(traces), client(core) as one:
        await asyncio.sleep(0.2)
        for _ in range(10):
            assert await one.predict() == 0
        await until(lambda: bool(exporter.error))
        assert exporter.stats()["waiting"] == 10
    assert exporter.dropped == 10
    log.flush()
    assert "the collector of spans does not take them" in (tmp_path / "log").read_text()


async def test_spans_of_every_core(memories: Memories, log: Log, tmp_path: Path) -> None:
    async with Collector() as collector:
        exporter = Exporter(collector.endpoint, "test", log)
        traces = Traces(memories, lambda: 1, str(tmp_path), log, exporter=exporter, share=1.0)
        async with running(traces):
            for _ in range(2):
                with Core(trace=memories.renew()) as core:
                    core.serve(servable("m"))
                    async with client(core) as one:
                        await asyncio.sleep(0.3)
                        await one.predict()
            assert len(await collector.servers(2)) == 2
