"""POST :classify and :regress: examples as JSON objects."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

from base64 import b64encode
from typing import Any

import grpc
import numpy as np
import pytest
from conformance.case import ask, spec
from conformance.rest.rest_case import RestCase, cases, check, fetch
from conformance.test_classify_regress import examples, features

CLASSIFY = "/v1/models/classes:classify"
REGRESS = "/v1/models/half_plus_two:regress"
ADA = {"x": 3.0, "name": "ada"}


def ask_of(name: str, path: str, signature: str, examples: Any, results: Any, **more: Any) -> RestCase:
    body = {"signature_name": signature, "examples": examples, **more}
    return RestCase(name, path, body, {"results": results})


def wrong(name: str, body: Any, answer: str, path: str = REGRESS, status: int = 400) -> RestCase:
    if isinstance(body, dict):
        body = {"signature_name": "regress_x_to_y", **body}
    return RestCase(name, path, body, answer, status)


ANSWERED = [
    ask_of("regress", REGRESS, "regress_x_to_y", [{"x": 2.0}, {"x": [-7.0]}], [3.0, -1.5]),
    ask_of("another signature", REGRESS, "regress_x_to_y2", [{"x": 2.0}], [4.0]),
    ask_of("a version", "/v1/models/half_plus_two/versions/123:regress", "regress_x_to_y", [{"x": 2.0}], [3.0]),
    ask_of("a context", REGRESS, "regress_x_to_y", [{}, {}], [3.0, 3.0], context={"x": 2.0}),
    ask_of("an example before its context", REGRESS, "regress_x_to_y", [{"x": 4.0}], [4.0], context={"y": 2.0}),
    ask_of(
        "scores and labels", CLASSIFY, "both", [ADA],
        [[["ada", 3.0], ["ada?", 6.0], ["z", -3.0]]],
    ),
    ask_of("scores alone", CLASSIFY, "only_scores", [{"x": 0.1}], [[["", 0.1], ["", 0.2], ["", -0.1]]]),
    ask_of("labels alone", CLASSIFY, "only_classes", [{"name": {"b64": b64encode(b"bob").decode()}}],
           [[["bob", 0.0], ["bob?", 0.0], ["z", 0.0]]]),
    ask_of("defaults", CLASSIFY, "both", [{}, ADA],
           [[["nobody", 1.0], ["nobody?", 2.0], ["z", -1.0]], [["ada", 3.0], ["ada?", 6.0], ["z", -3.0]]]),
]  # fmt: skip

REFUSED = [
    wrong("no JSON", "{", "JSON Parse error: ..."),
    wrong("no examples", {}, "JSON Value: {\n    \"signature_name\": \"regress_x_to_y\"\n} When method is classify, key 'examples' is expected and was not found"),
    wrong("examples are no list", {"examples": {}}, "JSON Value: {..."),
    wrong("an empty list", {"examples": []}, "JSON Value: {\n    \"signature_name\": \"regress_x_to_y\",\n    \"examples\": []\n} 'examples' value is an empty array"),
    wrong("an example that is none", {"examples": [1]}, "Example must be JSON object but got JSON Number"),
    wrong("a context that is none", {"examples": [{}], "context": [1]}, "Example must be JSON object but got JSON Array"),
    wrong("null", {"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
    wrong("lists in lists", {"examples": [{"x": [[1.0]]}]}, "Feature: x has element with unexpected JSON type: Array"),
    wrong("an object", {"examples": [{"x": {"a": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
    wrong("floats and whole numbers", {"examples": [{"x": [1.0, 2]}]}, "Unexpected element type in feature: x expecting type: float"),
    wrong("whole numbers and text", {"examples": [{"x": [1, "a"]}]}, "Unexpected element type in feature: x expecting type: int64"),
    wrong("text and floats", {"examples": [{"x": ["a", 1.5]}]}, "Unexpected element type in feature: x expecting type: bytes"),
    wrong("more than an int64", {"examples": [{"x": [2**63]}]}, "Feature: x has uint64 element. Only int64 is supported."),
    wrong("more than a float", {"examples": [{"x": [1e39]}]}, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
    wrong("base64 that is none", {"examples": [{"x": {"b64": "*"}}]}, "Unable to base64 decode"),
    wrong("an unknown model", {"examples": [{}]}, "Servable not found for request: Latest(nope)", "/v1/models/nope:regress", 404),
    wrong("a signature of another kind", {"examples": [{"x": 1.0}], "signature_name": "classify_x_to_y"}, "..."),
    RestCase("an unknown signature", REGRESS, {"signature_name": "z", "examples": [{"x": 1.0}]}, "No signature was found with the name: z", 400),
    RestCase("an unknown signature to classify", CLASSIFY, {"signature_name": "z", "examples": [{"x": 1.0}]}, "No signature was found with the name: z", 400),
    wrong("a feature of another kind", {"examples": [{"x": 1}]}, "..."),
]  # fmt: skip


@pytest.mark.parametrize(**cases(ANSWERED))
def test_answered(rest: tuple[str, int], case: RestCase) -> None:
    check(rest, case)


@pytest.mark.parametrize(**cases(REFUSED))
def test_refused(rest: tuple[str, int], case: RestCase) -> None:
    check(rest, case)


def test_scores_are_those_of_grpc(channel: grpc.Channel, rest: tuple[str, int]) -> None:
    values = np.random.default_rng(3).standard_normal(50).astype(np.float32)
    request = spec("classes", "both") + examples(*(features(x=float(value)) for value in values))
    reply: Any = ask(channel, "Classify", request).reply
    expected = [[[one.label, one.score] for one in each.classes] for each in reply.result.classifications]
    body = {"signature_name": "both", "examples": [{"x": float(value)} for value in values]}
    results = fetch(rest, "POST", CLASSIFY, body).value["results"]
    assert [[[label, np.float32(score)] for label, score in row] for row in results] == expected


def test_values_that_are_not_finite_have_tokens(rest: tuple[str, int]) -> None:
    text = '{"signature_name": "regress_x_to_y", "examples": [{"x": Infinity}, {"x": NaN}, {"x": 1.0}]}'
    assert fetch(rest, "POST", REGRESS, text).body == b'{"results":[Infinity,NaN,2.5]}'
    text = '{"signature_name": "only_scores", "examples": [{"x": Infinity}]}'
    answered = fetch(rest, "POST", CLASSIFY, text)
    assert answered.body == b'{"results":[[["",Infinity],["",Infinity],["",-Infinity]]]}'
