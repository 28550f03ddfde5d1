"""Writes tests/fuzz/corpus/warm_requests/: files of recorded requests, whole and damaged.

    python tests/fuzz/make_corpus_warm_requests.py

The files are checked in, so that replaying them needs no Python.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from fastserve.protos import message

FOLDER = Path(__file__).parent / "corpus" / "warm_requests"
FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9


def tensor(to: Any, dtype: int, dims: list[int], **values: Any) -> None:
    to.dtype = dtype
    for dim in dims:
        to.tensor_shape.dim.add(size=dim)
    for field, value in values.items():
        if isinstance(value, list):
            getattr(to, field).extend(value)
        else:
            setattr(to, field, value)


def floats(rows: int, signature: str = "") -> bytes:
    request: Any = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature
    tensor(
        request.inputs["x"], FLOAT, [rows, 2], tensor_content=struct.pack(f"<{2 * rows}f", *range(2 * rows))
    )
    return bytes(request.SerializeToString())


def pair(rows: int = 2) -> bytes:
    """`rows`: of the second input."""
    request: Any = message("tensorflow.serving.PredictRequest")()
    request.model_spec.signature_name = "pair"
    tensor(request.inputs["a"], STRING, [2], string_val=[b"recorded", b""])
    tensor(request.inputs["b"], INT32, [rows], int_val=[1, -1][:rows])
    return bytes(request.SerializeToString())


def scalar() -> bytes:
    request: Any = message("tensorflow.serving.PredictRequest")()
    request.model_spec.signature_name = "one"
    tensor(request.inputs["s"], INT64, [], int64_val=[7])
    return bytes(request.SerializeToString())


def records(*requests: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(request)) + request for request in requests)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = {
        "empty": b"",
        "all": records(floats(1), floats(3), floats(16), floats(17), pair(), scalar()),
        "no-rows": records(floats(0)),
        "one-row-for-all": records(pair(1)),
        "repeated-value": records(floats(1).replace(b"\x08\x01", b"\x08\x40", 1)),
        "unknown-signature": records(floats(1, "two")),
        "no-request": records(b"", b"\xff\xff"),
        "cut-in-a-length": records(pair()) + b"\x01\x00",
        "cut-in-a-request": records(pair(), floats(4))[:-3],
        "longer-than-the-file": struct.pack("<I", 0xFFFFFFFF) + pair(),
    }
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
