"""Writes tests/fuzz/corpus/named_request/: small SessionRunRequests, one for each thing that the wire can say.

    python tests/fuzz/make_corpus_named_request.py

The files are checked in, so that replaying them needs no Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastserve.protos import message

FOLDER = Path(__file__).parent / "corpus" / "named_request"
Request = message("tensorflow.serving.SessionRunRequest")
Tensor = message("tensorflow.TensorProto")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(dtype: str, *dims: int, **values: object) -> bytes:
    proto = Tensor(dtype=dtype, **values)
    for size in dims:
        proto.tensor_shape.dim.add(size=size)
    return bytes(proto.SerializeToString())


def feed(name: str, *parts: bytes) -> bytes:
    return field(2, field(1, name.encode()) + b"".join(field(2, part) for part in parts))


def request(*feeds: bytes, **fields: object) -> bytes:
    return bytes(Request(model_spec={"name": "m"}, **fields).SerializeToString()) + b"".join(feeds)


def cases() -> Iterator[tuple[str, bytes]]:
    one = tensor("DT_FLOAT", 1, float_val=[1.0])
    yield "empty", b""
    yield "floats", request(feed("x:0", one), fetch=["y:0"])
    yield "strings", request(feed("s:0", tensor("DT_STRING", 2, string_val=[b"a", b"bc"])), fetch=["s:0", "t"])
    yield "content", request(feed("x", tensor("DT_INT32", 1, tensor_content=b"\1\0\0\0")), fetch=["x", "x"])
    yield "scalar", request(feed("x", tensor("DT_BOOL", bool_val=[True])), fetch=["y"])
    yield "huge-shape", request(feed("x", tensor("DT_INT64", 1 << 40, int64_val=[7])), fetch=["y"])
    yield "targets", request(target=["init", "save/restore_all"])
    yield "aliases", request(feed("x", one), fetch=["y"], tensor_name_is_alias=True)
    yield "options", request(feed("x", one), fetch=["y"], options={"timeout_in_ms": 5})
    yield "version", bytes(Request(model_spec={"name": "m", "version": {"value": 3}}, fetch=["y"]).SerializeToString())
    yield "label", bytes(Request(model_spec={"name": "m", "version_label": "new"}, fetch=["y"]).SerializeToString())
    yield "two-feeds-of-a-name", request(feed("x", one), feed("x", one), fetch=["y"])
    yield "tensor-in-parts", request(feed("x", one, b"\x18\5", one), fetch=["y"])
    yield "tensor-in-parts-one-bad", request(feed("x", one, b"\x08"), fetch=["y"])
    yield "no-tensor", request(feed("x"), fetch=["y"])
    yield "bad-tensor", request(feed("x", b"\x0a"), fetch=["y"])
    yield "no-name", request(field(2, field(2, one)), fetch=[""])
    yield "bad-utf8", field(3, b"\xff")
    yield "unknown-fields", request(feed("x", one), fetch=["y"]) + b"\x40\1\x45abcd\x41abcdefgh\x4b\x53\x54\x4c"
    yield "many-fetches", request(fetch=["y"] * 100)
    yield "cut-short", request(feed("x:0", one), fetch=["y:0"])[:-3]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, data in cases():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
