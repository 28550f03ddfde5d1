"""Writes tests/fuzz/corpus/infer_request/: small requests of Classify, Regress and MultiInference, one for
each thing that the wire can say.

    python tests/fuzz/make_corpus_infer_request.py

The files are checked in, so that replaying them needs no Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_corpus_predict import field

from fastserve.protos import message

FOLDER = Path(__file__).parent / "corpus" / "infer_request"
Request = message("tensorflow.serving.ClassificationRequest")
Multi = message("tensorflow.serving.MultiInferenceRequest")

MODEL = {"name": "ranker", "signature_name": "classify", "version": {"value": 3}}
ONE = field(1, field(1, field(1, b"x") + field(2, field(2, field(1, b"\0\0\x80\x3f")))))
IDS = field(1, field(1, field(1, b"id") + field(2, field(3, field(1, b"\x01\xac\x02")))))
WORDS = field(1, field(1, field(1, b"w") + field(2, field(1, field(1, b"a") + field(1, b"")))))


def listed(*examples: bytes, context: bytes | None = None) -> bytes:
    """An Input."""
    data = b"".join(field(1, example) for example in examples)
    return field(1, data) if context is None else field(2, data + field(2, context))


def request(*inputs: bytes, **model: Any) -> bytes:
    head = Request(model_spec=model or MODEL).SerializeToString()
    return bytes(head) + b"".join(field(2, data) for data in inputs)


def multi(*tasks: tuple[str, str], data: bytes) -> bytes:
    made = [
        {"model_spec": {"name": "m", "signature_name": name}, "method_name": method} for name, method in tasks
    ]
    return bytes(Multi(tasks=made).SerializeToString()) + field(2, data)


def cases() -> Iterator[tuple[str, bytes]]:
    yield "list", request(listed(ONE, IDS, WORDS, b""))
    yield "context", request(listed(ONE, b"", context=IDS))
    yield "context-first", request(field(2, field(2, IDS) + field(1, ONE)))
    yield "context-alone", request(listed(context=ONE))
    yield "context-twice", request(field(2, field(2, IDS) + field(1, ONE) + field(2, WORDS)))
    yield "same-feature-in-both", request(listed(ONE, context=ONE))
    yield "no-input", request()
    yield "empty-input", request(b"")
    yield "empty-list", request(listed())
    yield "label", request(listed(ONE), name="m", version_label="new")
    yield "input-twice", request(listed(ONE), listed(IDS))
    yield "list-twice-in-one-input", request(listed(ONE) + listed(IDS))
    yield "context-after-list", request(listed(ONE), listed(IDS, context=WORDS))
    yield "list-after-context", request(listed(IDS, context=WORDS), listed(ONE))
    yield "unpacked-numbers", request(listed(field(1, field(1, field(2, field(3, b"\x08\1\x08\xac\2"))))))
    yield "unknown-fields", request(listed(ONE + b"\x48\1") + b"\x1d\0\0\0\0") + b"\x50\1"
    yield "groups", request(field(1, b"\x13\x1b\x1c\x14" + field(1, ONE)))
    yield "many", request(listed(*[b""] * 300, ONE))
    yield "bad-example", request(listed(ONE, b"\x0a\x05"))
    yield "bad-context", request(listed(ONE, context=b"\x0a\x05"))
    yield "bad-name", request(listed(field(1, field(1, field(1, b"\xff")))))
    yield "bad-float", request(listed(field(1, field(1, field(2, field(2, field(1, b"\0\0\0")))))))
    yield "bad-varint", request(listed(field(1, field(1, field(2, field(3, field(1, b"\x80")))))))
    yield "bad-list-that-does-not-count", request(field(1, b"\x0a\x05"), listed(ONE, context=b""))
    yield "cut-short", request(listed(ONE))[:-3]
    classify, regress = "tensorflow/serving/classify", "tensorflow/serving/regress"
    yield "multi", multi(("a", classify), ("b", regress), data=listed(ONE, context=IDS))
    yield "multi-twice", multi(("a", classify), ("a", classify), data=listed(ONE))
    yield "multi-no-tasks", multi(data=listed(ONE))
    yield "multi-bad-method", field(1, field(2, b"\xff"))
    yield "multi-many-tasks", multi(*((f"s{i}", regress) for i in range(40)), data=listed(ONE))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, data in cases():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
