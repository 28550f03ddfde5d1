"""Writes tests/fuzz/corpus/predict/: small PredictRequests, one for each thing that the wire can say.

    python tests/fuzz/make_corpus_predict.py

The files are checked in, so that replaying them needs no Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from fastserve.protos import message

FOLDER = Path(__file__).parent / "corpus" / "predict"
Request = message("tensorflow.serving.PredictRequest")
Tensor = message("tensorflow.TensorProto")

# Field of typed values and some of them, by dtype.
TYPED: dict[str, tuple[str, list[float]]] = {
    "DT_FLOAT": ("float_val", [1.5, -2.0, float("nan")]),
    "DT_DOUBLE": ("double_val", [1.5, -2e300]),
    "DT_INT32": ("int_val", [1, -1, 2**31 - 1]),
    "DT_UINT8": ("int_val", [0, 255]),
    "DT_INT16": ("int_val", [-(2**15), 2**15 - 1]),
    "DT_INT8": ("int_val", [-128, 127]),
    "DT_COMPLEX64": ("scomplex_val", [1.0, 2.0, 3.0]),
    "DT_INT64": ("int64_val", [-(2**63), 300, 2**63 - 1]),
    "DT_BOOL": ("bool_val", [1, 0]),
    "DT_QINT8": ("int_val", [-3, 3]),
    "DT_BFLOAT16": ("half_val", [0x3F80, 0xC000]),
    "DT_UINT16": ("int_val", [0, 65535]),
    "DT_COMPLEX128": ("dcomplex_val", [1.0, -2.0]),
    "DT_HALF": ("half_val", [0x3C00, 0xC000]),
    "DT_UINT32": ("uint32_val", [0, 2**32 - 1]),
    "DT_UINT64": ("uint64_val", [0, 2**64 - 1]),
    "DT_INT4": ("int_val", [-8, 7, 9]),
}


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
    proto.tensor_shape.SetInParent()
    return bytes(proto.SerializeToString())


def request(*inputs: tuple[str, bytes], filters: tuple[str, ...] = ()) -> bytes:
    head = Request(model_spec={"name": "ranker"}, output_filter=filters).SerializeToString()
    return bytes(head) + b"".join(field(2, field(1, k.encode()) + field(2, v)) for k, v in inputs)


def cases() -> Iterator[tuple[str, bytes]]:
    for dtype, (name, values) in TYPED.items():
        proto = tensor(dtype, 2, 2, **{name: values})
        yield f"typed-{dtype[3:].lower()}", request(("x", proto))
    one = tensor("DT_FLOAT", 1, float_val=[1.0])
    content = struct.pack("<3f", 1, 2, 3)
    yield "content-float", request(("x", tensor("DT_FLOAT", 3, tensor_content=content)))
    yield "content-short", request(("x", tensor("DT_FLOAT", 4, tensor_content=content)))
    yield "content-bool", request(("x", tensor("DT_BOOL", 3, tensor_content=b"\0\1\0")))
    yield "content-string", request(("x", tensor("DT_STRING", 2, tensor_content=b"\1\2abc")))
    yield "content-string-long", request(("x", tensor("DT_STRING", 1, tensor_content=b"\x81\0a")))
    yield "strings", request(("x", tensor("DT_STRING", 3, string_val=[b"", b"x\0y"])))
    yield "float8", request(("x", tensor("DT_FLOAT8_E5M2", 3, float8_val=b"\1\2")))
    yield "variant", request(("x", tensor("DT_VARIANT", 0, variant_val=[{"tensors": [Tensor()]}])))
    yield "resource", request(("x", tensor("DT_RESOURCE", 1, resource_handle_val=[{"name": "n"}])))
    yield "scalar", request(("x", tensor("DT_FLOAT", float_val=[4.0])))
    yield "empty-batch", request(("x", tensor("DT_FLOAT", 0, 13)))
    yield "huge-shape", request(("x", tensor("DT_INT64", 2**40, 2**10, int64_val=[7])))
    yield "overflowing-shape", request(("x", tensor("DT_INT64", 2**40, 2**40)))
    yield "negative-dim", request(("x", tensor("DT_FLOAT", -1)))
    yield "no-dtype", request(("x", field(5, content)))
    yield "many-dims", request(("x", tensor("DT_FLOAT", *[1] * 254, float_val=[1.0])))
    yield "unpacked", request(("x", tensor("DT_INT64", 4) + b"\x50\1\x50\xac\2" + field(10, b"\3\4")))
    yield (
        "interleaved",
        request(("x", tensor("DT_FLOAT", 3) + field(5, content[:4]) + b"\x38\1" + field(5, content))),
    )
    yield "shape-twice", request(("x", tensor("DT_FLOAT", 2) + tensor("DT_FLOAT", 3)))
    yield "value-in-pieces", b"\n\0" + field(2, field(1, b"x") + field(2, one) + field(2, one))
    yield "key-twice", request(("x", one), ("y", one), ("x", tensor("DT_INT32", 1)))
    user = tensor("DT_INT64", 1, 3, int64_val=[7, -1, 300])
    many = tensor("DT_FLOAT", 5, 2, float_val=[1.0])
    words = tensor("DT_STRING", 1, 2, tensor_content=b"\1\2abc")
    yield "one-row-for-all", request(("c", many), ("u", user), ("w", words))
    yield "one-row-for-none", request(("c", tensor("DT_FLOAT", 0, 2)), ("u", user), ("w", words))
    yield "one-row-for-whom", request(("c", many), ("d", tensor("DT_FLOAT", 4)), ("u", user))
    yield "one-row-beside-a-scalar", request(("c", many), ("s", tensor("DT_INT32")), ("u", user))
    yield "one-row-overflowing", request(("c", tensor("DT_FLOAT", 2**60, 0)), ("u", tensor("DT_BOOL", 1, 9)))
    yield "filter", request(("x", one), filters=("y", "z"))
    yield "many-keys", request(*((f"f{i % 80}", b"") for i in range(100)))
    yield "version", bytes(Request(model_spec={"name": "m", "version": {"value": 3}}).SerializeToString())
    yield "label", bytes(Request(model_spec={"name": "m", "version_label": "new"}).SerializeToString())
    yield "spec-twice", field(1, field(1, b"a") + b"\x12\2\x08\5") + field(1, field(4, b"l") + b"\x12\0")
    yield (
        "unknown-fields",
        request(("x", one)) + b"\x40\1\x45abcd\x41abcdefgh\x4b\x53\x54\x4c" + field(99, b"?"),
    )
    yield "other-options", field(5, field(2, field(1, b"x"))) + field(6, b"\xff") + field(7, field(4, b"\1"))
    yield "deep-groups", b"\x43" * 100 + b"\x44" * 100
    yield "bad-utf8", field(3, b"\xff")
    yield "cut-short", request(("x", one))[:-3]


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, data in cases():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
