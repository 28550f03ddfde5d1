"""Frames between the gateway and a route's worker: cut anywhere, whole again; and what is none."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from typing import Any

import pytest

from fastserve.gateway.frames import MAX_BODY_BYTES, FrameError, FrameReader, Peer, frame

FRAMES: list[tuple[dict[str, Any], bytes]] = [
    ({"op": "a"}, b""),
    ({"op": "b", "id": 1, "text": "ä"}, b"x" * 10),
    ({"op": "c"}, bytes(range(256)) * 4000),
    ({"op": "d", "n": [1, 2]}, b""),
    ({"op": "e" * 300_000}, b"y"),
    ({"op": "f"}, b"z" * (256 << 10)),
]


def feed(reader: FrameReader, data: bytes, sizes: Any) -> list[tuple[dict[str, Any], bytes]]:
    found = []
    at = 0
    while at < len(data):
        room = reader.room()
        assert len(room) > 0
        count = min(len(room), next(sizes), len(data) - at)
        room[:count] = data[at : at + count]
        at += count
        found += reader.filled(count)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_frames_come_out_as_they_went_in_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    sent = [rng.choice(FRAMES) for _ in range(12)]
    data = b"".join(piece for head, body in sent for piece in frame(head, body))
    most = rng.choice([3, 100, 5000, 70_000, 1 << 30])
    if most < 100:  # of the large ones a few bytes at a time would take for ever
        sent = [one for one in sent if len(one[1]) < 100 and len(one[0]["op"]) < 100]
        data = b"".join(piece for head, body in sent for piece in frame(head, body))
    assert feed(FrameReader(), data, iter(lambda: rng.randint(1, most), 0)) == sent


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 5 << 20, 0),
        struct.pack("<II", 2, MAX_BODY_BYTES + 1) + b"{}",
        struct.pack("<II", 2, 0) + b"{}",
        struct.pack("<II", 3, 0) + b"[1]",
        struct.pack("<II", 4, 0) + b'{"op',
        struct.pack("<II", 8, 0) + b'{"op":1}',
        struct.pack("<II", 0, 0),
    ],
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        feed(FrameReader(), data, iter(lambda: 1 << 20, 0))


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(FrameError):
        frame({"op": "x" * (5 << 20)})


async def pair() -> tuple[Peer, Peer, list[Any], list[Any]]:
    loop = asyncio.get_running_loop()
    logs: list[list[Any]] = [[], []]
    peers = []
    for sock, log in zip(socket.socketpair(), logs, strict=True):
        sock.setblocking(False)
        peer = Peer(
            lambda head, body, log=log: log.append((head, body)), lambda why, log=log: log.append(why)
        )
        await loop.create_connection(lambda peer=peer: peer, sock=sock)
        peers.append(peer)
    return peers[0], peers[1], logs[0], logs[1]


async def until(look: Any) -> None:
    async with asyncio.timeout(10):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_peers_exchange_frames_and_hear_of_the_end() -> None:
    one, other, heard_one, heard_other = await pair()
    large = os.urandom(3 << 20)
    one.send({"op": "a"}, large)
    one.send({"op": "b"})
    other.send({"op": "c"}, b"1")
    await until(lambda: len(heard_other) == 2 and heard_one)
    assert heard_other == [({"op": "a"}, large), ({"op": "b"}, b"")]
    assert heard_one == [({"op": "c"}, b"1")]
    one.close()
    await until(lambda: len(heard_other) == 3 and len(heard_one) == 2)
    assert heard_one[1] == heard_other[2] == ""
    one.send({"op": "late"})  # nobody is there: nothing happens


async def test_what_is_sent_before_a_close_arrives() -> None:
    one, _, _, heard = await pair()
    one.send({"op": "a"}, b"x" * (4 << 20))
    one.close()
    await until(lambda: len(heard) == 2)
    assert heard[0] == ({"op": "a"}, b"x" * (4 << 20))


async def test_a_peer_that_sends_no_frames_is_cut_off() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    lost: list[str] = []
    peer = Peer(lambda head, body: None, lost.append)
    ours.setblocking(False)
    await loop.create_connection(lambda: peer, sock=ours)
    with theirs:
        theirs.sendall(b"\xff" * 100)
        await until(lambda: lost)
    assert "frame of" in lost[0]
