"""Writes tests/fuzz/corpus/predict_call/: small PredictResponses, honest ones and those of a hostile server.

    python tests/fuzz/make_corpus_predict_call.py

The files are checked in, so that replaying them needs no Python. The tensors are those of
make_corpus_predict.py.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from make_corpus_predict import TYPED, field, tensor

from fastserve.protos import message

FOLDER = Path(__file__).parent / "corpus" / "predict_call"
Response = message("tensorflow.serving.PredictResponse")


def reply(*outputs: tuple[str, bytes]) -> bytes:
    spec = {"name": "ranker", "version": {"value": 3}, "signature_name": "serving_default"}
    entries = b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in outputs)
    return entries + bytes(Response(model_spec=spec).SerializeToString())


def cases() -> Iterator[tuple[str, bytes]]:
    for dtype, (name, values) in TYPED.items():
        yield f"typed-{dtype[3:].lower()}", reply(("y", tensor(dtype, len(values), **{name: values})))
    scores = tensor("DT_FLOAT", 3, 1, float_val=[0.5, 0.25, 0.125])
    content = struct.pack("<3d", 1, 2, 3)
    yield "two-outputs", reply(("y", scores), ("z", tensor("DT_INT64", 3, int64_val=[1, 2, 300])))
    yield "content", reply(("y", tensor("DT_DOUBLE", 3, tensor_content=content)))
    yield "scalar-content", reply(("y", tensor("DT_DOUBLE", tensor_content=content[:8])))
    yield "content-first", reply(("y", field(4, content) + tensor("DT_DOUBLE", 3)))
    yield "content-bool", reply(("y", tensor("DT_BOOL", 3, tensor_content=b"\1\0\1")))
    yield "many-bytes", reply(("y", tensor("DT_UINT8", 40, 40, tensor_content=bytes(range(40)) * 40)))
    yield "strings", reply(("y", tensor("DT_STRING", 2, 2, string_val=[b"", b"x\0y", b"\xff"])))
    yield "strings-content", reply(("y", tensor("DT_STRING", 2, tensor_content=b"\1\2abc")))
    yield "float8", reply(("y", tensor("DT_FLOAT8_E4M3FN", 3, float8_val=b"\1\2\3")))
    yield "variant", reply(("y", tensor("DT_VARIANT", 0)))
    yield "empty", reply(("y", tensor("DT_FLOAT", 0, 13)))
    yield "claims-2-to-the-40", reply(("y", tensor("DT_FLOAT", 2**40, float_val=[1.0])))
    yield "claims-strings", reply(("y", tensor("DT_STRING", 2**40, string_val=[b"x" * 40])))
    yield "claims-nothing-there", reply(("y", tensor("DT_INT64", 2**30, 2**20)))
    yield "overflow", reply(("y", tensor("DT_INT64", 2**40, 2**40)))
    yield "negative", reply(("y", tensor("DT_FLOAT", -1)))
    yield "name-twice", reply(("y", scores), ("y", tensor("DT_INT32", 1, int_val=[1])))
    yield "value-in-pieces", field(1, field(1, b"y") + field(2, scores) + field(2, tensor("DT_FLOAT", 1)))
    yield "many-outputs", reply(*((f"y{i % 90}", b"\x08\x01") for i in range(120)))
    yield "label", field(2, field(1, b"m") + field(4, b"stable"))
    yield "spec-twice", field(2, field(1, b"a")) + reply(("y", scores))
    yield "html", b"<html><body>502 Bad Gateway</body></html>"
    yield "cut-short", reply(("y", scores))[:-5]
    yield "nothing", b""


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, data in cases():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
