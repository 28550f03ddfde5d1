"""Writes tests/fuzz/corpus/h2_client/: what servers say, for the fuzz target of the same name.

    python tests/fuzz/make_corpus_h2_client.py

As in make_corpus_h2.py, what HTTP/2 looks like on the wire is left to the hpack and hyperframe packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hpack
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from make_corpus_h2 import message, raw

CORPUS = Path(__file__).parent / "corpus" / "h2_client"

HEAD = ((":status", "200"), ("content-type", "application/grpc"))
OK = (("grpc-status", "0"),)


class Server:
    """Bytes of one connection, as a server would write them."""

    def __init__(self) -> None:
        self.hpack = hpack.Encoder()
        self.out = bytearray()

    def add(self, *frames: Frame) -> Server:
        for frame in frames:
            self.out += frame.serialize()
        return self

    def raw(self, content: bytes) -> Server:
        self.out += content
        return self

    def headers(self, stream: int, *headers: tuple[str, str], end: bool = False) -> Server:
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return self.add(HeadersFrame(stream, data=self.hpack.encode(headers), flags=flags))

    def data(self, stream: int, data: bytes, end: bool = False) -> Server:
        return self.add(DataFrame(stream, data=data, flags=["END_STREAM"] if end else []))

    def answer(self, stream: int, body: bytes = b"hello", *more: tuple[str, str]) -> Server:
        return self.headers(stream, *HEAD, *more).data(stream, message(body)).headers(stream, *OK, end=True)


def bodies() -> Iterator[tuple[str, Server]]:
    """What may stand between good headers and good trailers."""
    for name, body in {
        "none": b"",
        "empty": message(b""),
        "two": message(b"a") + message(b"b"),
        "two-empty": message(b"") * 2,
        "cut": message(b"hello")[:-1],
        "prefix-cut": b"\0\0\0",
        "compressed": message(b"hello", True),
        "flag": b"\x02\0\0\0\0",
        "large": message(bytes(12000)),
        "too-large": b"\0\0\x10\0\1xx",
        "promised": b"\0\0\x0f\xff\xffxx",
    }.items():
        yield f"body-{name}", Server().headers(1, *HEAD).data(1, body).headers(1, *OK, end=True)
    for encoding in ("gzip", "deflate", "identity", "br"):
        server = Server().headers(1, *HEAD, ("grpc-encoding", encoding))
        yield f"body-{encoding}", server.data(1, message(b"x", True)).headers(1, *OK, end=True)


def statuses() -> Iterator[tuple[str, Server]]:
    for code in ("5", "16", "17", "-1", "", "0000"):
        server = Server().headers(1, *HEAD, ("grpc-status", code), ("grpc-message", "no%20such%"), end=True)
        yield f"status-{code or 'empty'}", server
    yield "status-none", Server().headers(1, *HEAD).data(1, message(b"x"), end=True)
    yield (
        "status-late",
        Server().headers(1, *HEAD).data(1, message(b"x")).headers(1, ("grpc-status", "13"), end=True),
    )
    yield (
        "status-long",
        Server().headers(1, *HEAD, ("grpc-status", "2"), ("grpc-message", "%41" * 1200), end=True),
    )
    for status in ("100", "103", "204", "400", "404", "503", "abc", "99"):
        yield f"http-{status}", Server().headers(1, (":status", status)).answer(1)
    yield "http-end", Server().headers(1, (":status", "502"), end=True).answer(3)
    yield (
        "http-type",
        Server().headers(1, (":status", "200"), ("content-type", "text/html")).data(1, b"<html>", end=True),
    )
    yield "http-length", Server().headers(1, *HEAD, ("content-length", "99")).data(1, message(b"x"), end=True)


def sessions() -> Iterator[tuple[str, Server]]:
    yield "answer", Server().answer(1)
    yield "answers", Server().answer(1).answer(3).answer(5).answer(7)
    yield "answers-out-of-order", Server().answer(7).answer(1).answer(5)
    interleaved = Server().headers(1, *HEAD).headers(3, *HEAD).data(1, b"\0\0\0").data(3, message(b"a" * 900))
    yield "answers-interleaved", interleaved.data(1, b"\0\2h").data(1, b"i").headers(3, *OK, end=True)
    yield "answer-twice", Server().answer(1).answer(1)
    yield (
        "answer-padded",
        (
            Server()
            .headers(1, *HEAD)
            .add(DataFrame(1, data=message(b"hello"), pad_length=9, flags=["PADDED"]))
            .headers(1, *OK, end=True)
        ),
    )
    yield "answer-early", Server().headers(1, *HEAD, ("grpc-status", "8"), end=True).add(RstStreamFrame(1, 0))
    for code in (0, 1, 7, 8, 11, 12, 13, 99):
        yield f"reset-{code}", Server().add(RstStreamFrame(1, code)).answer(3)
    yield "reset-late", Server().headers(1, *HEAD).data(1, b"\0\0").add(RstStreamFrame(1, 7)).answer(3)
    yield "reset-idle", Server().add(RstStreamFrame(99, 0))
    yield "reset-short", Server().raw(raw(3, 0, 1, b"\0\0"))
    yield "goaway", Server().add(GoAwayFrame(0, 3, 11, b"too_many_pings")).answer(1).answer(3)
    yield "goaway-notice", Server().add(GoAwayFrame(0, 2**31 - 1)).answer(1).add(GoAwayFrame(0, 5)).answer(3)
    yield "goaway-none", Server().add(GoAwayFrame(0, 0, 2)).answer(1)
    yield "goaway-grows", Server().add(GoAwayFrame(0, 1)).add(GoAwayFrame(0, 7)).answer(1)
    yield "goaway-short", Server().raw(raw(7, 0, 0, b"\0\0\0"))
    yield "ping", Server().add(*[PingFrame(0, b"12345678")] * 20).answer(1)
    yield "ping-ack", Server().add(PingFrame(0, bytes(8), flags=["ACK"])).answer(1)
    yield "settings", Server().add(SettingsFrame(0, {3: 2, 4: 70000, 5: 20000, 1: 0})).answer(1).answer(3)
    yield "settings-one", Server().add(SettingsFrame(0, {3: 1})).answer(1).answer(3).answer(5)
    yield "settings-none", Server().add(SettingsFrame(0, {3: 0})).answer(1).answer(3)
    yield "settings-window", Server().add(SettingsFrame(0, {4: 0}), SettingsFrame(0, {4: 1000000})).answer(1)
    yield "settings-bad", Server().raw(raw(4, 0, 0, b"\0\4\xff\xff\xff\xff"))
    yield "settings-ack", Server().add(SettingsFrame(0, flags=["ACK"])).answer(1)
    yield "settings-flood", Server().add(*[SettingsFrame(0, {3: 5})] * 60).answer(1)
    yield "window", Server().add(WindowUpdateFrame(0, 1 << 20), WindowUpdateFrame(1, 1 << 20)).answer(1)
    yield "window-each", Server().add(*[WindowUpdateFrame(i, 65535) for i in (0, 1, 3, 5, 7) * 8]).answer(1)
    yield "window-overflow", Server().add(WindowUpdateFrame(1, 2**31 - 1)).answer(1)
    yield "window-overflow-all", Server().add(WindowUpdateFrame(0, 2**31 - 1)).answer(1)
    yield "window-zero", Server().raw(raw(8, 0, 1, bytes(4))).answer(1)
    yield "data-first", Server().data(1, message(b"x")).answer(1)
    yield "data-idle", Server().data(99, b"x")
    yield "data-even", Server().data(2, b"x")
    yield "data-empty", Server().headers(1, *HEAD).add(*[DataFrame(1)] * 60).answer(1)
    yield (
        "data-beyond-window",
        Server().headers(1, *HEAD).data(1, b"\0\0\x0f\xff\xff").add(*[DataFrame(1, data=bytes(16384))] * 5),
    )
    promise = Server().hpack.encode(
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "h")]
    )
    push = PushPromiseFrame(1, promised_stream_id=2, data=promise, flags=["END_HEADERS"])
    yield "push", Server().add(push).headers(2, (":status", "200")).data(2, b"pushed", end=True).answer(1)
    yield "push-after-ack", Server().add(SettingsFrame(0, flags=["ACK"]), push).answer(1)
    yield "headers-even", Server().headers(2, *HEAD)
    yield "headers-idle", Server().headers(99, *HEAD)
    yield "headers-upper", Server().raw(raw(1, 4, 1, b"\x88\x00\x01X\x01y"))
    yield "headers-no-status", Server().headers(1, ("content-type", "application/grpc"))
    yield "headers-large", Server().headers(1, *HEAD, ("x", "h" * 5000)).answer(3)
    yield "headers-many", Server().headers(1, *HEAD, *[(f"x-{i}", "y") for i in range(100)]).answer(3)
    yield "trailers-large", Server().headers(1, *HEAD).headers(1, *OK, ("x", "h" * 5000), end=True)
    yield "trailers-not-last", Server().headers(1, *HEAD).headers(1, *OK).answer(3)
    block = hpack.Encoder().encode([*HEAD, ("x", "y" * 300)])
    yield (
        "continuation",
        Server()
        .add(HeadersFrame(1, data=block[:5]))
        .add(*[ContinuationFrame(1, data=block[i : i + 40]) for i in range(5, len(block), 40)])
        .add(ContinuationFrame(1, flags=["END_HEADERS"])),
    )
    yield (
        "continuation-endless",
        Server().add(HeadersFrame(1, data=b"\x88"), *[ContinuationFrame(1, data=b"\x00\x01x\x00")] * 40),
    )
    yield "continuation-interleaved", Server().add(HeadersFrame(1, data=b"\x88"), PingFrame(0, bytes(8)))
    yield (
        "headers-bomb",
        Server().raw(raw(1, 4, 1, b"\x88\x40\x01x\x7f\x81\x06" + bytes([118]) * 896 + b"\xbe" * 8000)),
    )
    yield "hpack-bad-index", Server().raw(raw(1, 5, 1, b"\xff\xff\xff\xff\x0f"))
    yield "hpack-bad-huffman", Server().raw(raw(1, 5, 1, b"\x00\x81\xff\x81\xff"))
    yield "hpack-table", Server().raw(raw(1, 5, 1, b"\x3f\xe1\xff\x03\x88"))
    yield "priority", Server().add(*[PriorityFrame(5, depends_on=3)] * 30).answer(1)
    yield "altsvc", Server().add(AltSvcFrame(0, origin=b"h", field=b'h2=":1"')).answer(1)
    yield "unknown", Server().raw(raw(0x42, 0xFF, 1, b"what")).answer(1)
    yield "too-long", Server().raw(raw(0, 0, 1, b"x", length=0xFFFFFF))
    yield "cut", Server().raw(bytes(Server().answer(1).out)[:-3])


def main() -> None:
    files: dict[str, bytes] = {}
    everything = [*sessions(), *bodies(), *statuses()]
    for i, (name, server) in enumerate(everything):
        content = bytes(server.out)
        # How it comes, how many calls there are, which are given up, what they do: see fuzz_h2_client.c.
        files[name] = bytes([16, 7, 0, 0]) + content
        mode = 2 * (i % 4) | i * 8 & 0xFE
        files[f"{name}-other"] = bytes([mode, i * 37 % 256, i * 11 % 256, i * 71 % 256]) + content
    settings = bytes(Server().add(SettingsFrame(0, {3: 100})).answer(1).out)
    files["raw-settings"] = b"\x01\7\0\0" + settings
    files["raw-settings-slow"] = b"\x03\7\0\0" + settings
    files["raw-http1"] = b"\x01\7\0\0HTTP/1.1 400 Bad Request\r\n\r\n"
    files["raw-http1-slow"] = b"\x03\7\0\0HTTP/1.1 400 Bad Request\r\n\r\n"
    files["raw-tls"] = b"\x01\7\0\0\x15\x03\x01\x00\x02\x02\x46"
    files["raw-ping"] = b"\x01\7\0\0" + bytes(Server().add(PingFrame(0, bytes(8))).out)
    files["raw-zeros"] = b"\x01\7\0\0" + bytes(100)

    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (CORPUS / name).write_bytes(content)
    print(f"{len(files)} files in {CORPUS}")


if __name__ == "__main__":
    main()
