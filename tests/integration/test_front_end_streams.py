"""Streaming methods that Python serves, in a loop of the test's own: what Watch alone does not show."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import uvloop
from core_driver import EXECUTOR, LIMITS, PATIENCE_S, SERVER
from fastserve._native.engine import Engine
from fastserve._native.front_end import FrontEnd

from fastserve.core.listener import Listener
from fastserve.core.service import Call, Method, Services

KIB = 1 << 10


async def echo(call: Call) -> None:
    async for message in call:
        call.send(message)


async def shout(request: bytes, call: Call) -> bytes:
    return request.upper()


class World:
    """A front end with three methods of its own, on a loop in a thread."""

    def __init__(self, io_threads: int) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.draining = False
        self.logged: list[Any] = []
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=[io_threads])
        self.thread.start()
        assert self.ready.wait(PATIENCE_S)

    def _run(self, io_threads: int) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(io_threads))

    async def _serve(self, io_threads: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.end = asyncio.Event()
        self.let_go = asyncio.Event()
        limits = {**LIMITS, "max_connection_bytes": 256 * KIB, "max_message_bytes": 128 * KIB}
        engine = Engine(self.loop, SERVER, limits, EXECUTOR)
        methods = [
            Method("/t.T/Echo", echo, streaming=True, max_bytes=128 * KIB),
            Method("/t.T/Shout", shout),
            Method("/t.T/Hold", self._hold, max_bytes=128 * KIB),
        ]
        services = Services(self.loop, methods, lambda *args, **fields: self.logged.append((args, fields)))
        self.front_end = FrontEnd(self.loop, engine, limits, services.paths(), services.start, io_threads)
        listener = Listener(self.loop, self.front_end, [{"fd": self.sock.detach()}], 100, print)
        listener.start()
        self.ready.set()
        await self.end.wait()
        listener.close()
        self.front_end.shutdown()
        services.end_streams()
        async with asyncio.timeout(PATIENCE_S):
            await self.front_end.all_closed()
        self.front_end.stop()
        engine.stop()

    async def _hold(self, request: bytes, call: Call) -> bytes:
        await self.let_go.wait()
        return request

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.loop.call_soon_threadsafe(self.end.set)

    def close(self) -> None:
        self.drain()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        assert self.logged == []


@pytest.fixture(params=[0, 1], ids=lambda n: f"io_threads={n}")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(request.param)
    yield world
    world.close()


def test_a_long_stream_passes_more_than_a_connection_may_have_in_flight(world: World) -> None:
    received = 0
    turns = threading.Semaphore(4)  # messages on their way at once

    def messages() -> Iterator[bytes]:
        for number in range(100):
            assert turns.acquire(timeout=PATIENCE_S)
            yield bytes([number]) * (32 * KIB)

    with grpc.insecure_channel(world.address) as channel:
        for reply in channel.stream_stream("/t.T/Echo")(messages(), timeout=PATIENCE_S):
            assert reply == bytes([received]) * (32 * KIB)
            received += 1
            turns.release()
    assert received == 100


def test_what_nobody_consumes_counts_as_in_flight(world: World) -> None:
    """Four times 127 KiB at once are more than the 256 KiB that this connection may have."""
    with grpc.insecure_channel(world.address) as channel:
        ended: queue.Queue[grpc.Future] = queue.Queue()
        for _ in range(4):
            call = channel.unary_unary("/t.T/Hold").future(bytes(127 * KIB), timeout=PATIENCE_S)
            call.add_done_callback(ended.put)
        assert ended.get(timeout=PATIENCE_S).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        world.loop.call_soon_threadsafe(world.let_go.set)
        codes = {ended.get(timeout=PATIENCE_S).code() for _ in range(3)}
    assert grpc.StatusCode.OK in codes


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_python_methods_get_compressed_messages_inflated(world: World, compression: grpc.Compression) -> None:
    with grpc.insecure_channel(world.address, compression=compression) as channel:
        assert channel.unary_unary("/t.T/Shout")(b"abc" * 100, timeout=PATIENCE_S) == b"ABC" * 100
        sent = [bytes([65 + n]) * 1000 for n in range(10)]
        assert list(channel.stream_stream("/t.T/Echo")(iter(sent), timeout=PATIENCE_S)) == sent


def test_a_message_that_is_large_for_its_method_is_refused_before_python_sees_it(world: World) -> None:
    with grpc.insecure_channel(world.address) as channel:
        assert channel.unary_unary("/t.T/Shout")(b"a" * (16 * KIB), timeout=PATIENCE_S) == b"A" * (16 * KIB)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.T/Shout")(b"a" * (16 * KIB + 1), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "a message has at most 16384 bytes here, this one has 16385"


def test_a_bomb_for_a_python_method_is_refused(world: World) -> None:
    options = [("grpc.default_compression_algorithm", 2)]
    with grpc.insecure_channel(world.address, options=options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.T/Shout")(bytes(8 << 20), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream("/t.T/Echo")(iter([bytes(8 << 20)]), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert channel.unary_unary("/t.T/Shout")(b"a", timeout=PATIENCE_S) == b"A"


def test_a_drain_ends_streams_that_have_no_end(world: World) -> None:
    with grpc.insecure_channel(world.address) as channel:
        hold = threading.Event()

        def endless() -> Iterator[bytes]:
            yield b"first"
            hold.wait(PATIENCE_S)

        replies = channel.stream_stream("/t.T/Echo")(endless(), timeout=PATIENCE_S)
        assert next(replies) == b"first"
        world.drain()
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        hold.set()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
