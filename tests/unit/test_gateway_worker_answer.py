"""What hooks return, as HTTP answers."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastserve.gateway.worker_answer import Answer, answer_of, refusal, to_json
from fastserve.web import Response


def decoded(value: Any) -> Any:
    return json.loads(to_json(value))


@pytest.mark.parametrize(
    ("returned", "body", "kind"),
    [
        ({"a": [1]}, b'{"a":[1]}', "application/json"),
        ([1, "x"], b'[1,"x"]', "application/json"),
        (np.float32([[1, 2]]), b"[[1.0,2.0]]", "application/json"),
        (np.float32(2), b"2.0", "application/json"),
        (True, b"true", "application/json"),
        ("Käse", "Käse".encode(), "text/plain; charset=utf-8"),
        (b"\x00", b"\x00", "application/octet-stream"),
        (memoryview(b"ab"), b"ab", "application/octet-stream"),
    ],
)
def test_a_body_has_its_content_type(returned: Any, body: bytes, kind: str) -> None:
    assert answer_of(returned) == Answer(200, [("content-type", kind)], body)


def test_nothing_is_an_empty_body() -> None:
    assert answer_of(None) == Answer(200, [], b"")
    assert answer_of(Response(status=204)) == Answer(204, [], b"")


def test_a_response_says_all_itself() -> None:
    answer = answer_of(Response(b"<p>", 201, {"X-A": "1", "Content-Length": "7"}, "text/html"))
    assert answer == Answer(201, [("x-a", "1"), ("content-type", "text/html")], b"<p>")
    own = answer_of(Response({"a": 1}, headers={"Content-Type": "application/problem+json"}))
    assert own.headers == [("content-type", "application/problem+json")]


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (np.arange(6, dtype=np.int64).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
        (np.arange(3, dtype=">i4"), [0, 1, 2]),
        (np.array(7, dtype=">i4"), 7),
        (np.array(5.5), 5.5),
        (np.float16([0.5]), [0.5]),
        (np.array([1.5], ml_dtypes.bfloat16), [1.5]),
        (np.array([b"a", b"\xff"], object), ["a", {"b64": "/w=="}]),
        (np.array([["x", "y"]]), [["x", "y"]]),
        (np.array([b"ab"]), ["ab"]),
        (np.array([True, False]), [True, False]),
        (np.array([1 + 2j]), [[1, 2]]),
        (np.array([np.nan, np.inf]), [None, None]),
        (np.zeros((0, 3), np.float32), []),
    ],
)
def test_arrays_of_every_kind_become_json(array: Any, value: Any) -> None:
    assert decoded({"a": array}) == {"a": value}


def test_scalars_keys_and_sets_become_json() -> None:
    assert decoded({1: np.int8(3), "b": b"x", "c": {"z", "y"}}) == {"1": 3, "b": "x", "c": ["y", "z"]}


def test_what_has_no_form_says_what_would_be_right() -> None:
    with pytest.raises(TypeError, match=r"returned object: expected a dict or a list"):
        answer_of(object())
    with pytest.raises(TypeError):
        answer_of({"a": object()})


def test_a_refusal_is_text_that_json_can_hold() -> None:
    assert refusal("NOT_FOUND", "no\udcff") == Answer("NOT_FOUND", [], b"", "no?")
    assert len(refusal(400, "x" * 1_000_000).error or "") == 10_000
