"""POST :predict, in rows and in columns: what is answered."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import pytest
from conformance.rest.rest_case import RestCase, cases, check, fetch

HALF = "/v1/models/half_plus_two:predict"
MANY = "/v1/models/many:predict"
VERSIONS = "/v1/models/versions"
IDENTITY = "/v1/models/identity:predict"
A, B = [[1, 2], [3, 4]], [[1, 2, 3], [0, 0, -1]]
P, Q = [9.0, 6.0], [[1.0, 2.0], [3.0, 4.0]]


def b64(data: bytes) -> dict[str, str]:
    return {"b64": b64encode(data).decode()}


def rows(path: str, instances: Any, predictions: Any, name: str, **more: Any) -> RestCase:
    return RestCase(f"{name}, in rows", path, {"instances": instances, **more}, {"predictions": predictions})


def columns(path: str, inputs: Any, outputs: Any, name: str, **more: Any) -> RestCase:
    return RestCase(f"{name}, in columns", path, {"inputs": inputs, **more}, {"outputs": outputs})


ANSWERED = [
    # ---- one input, one output -------------------------------------------------------------------
    rows(HALF, [[1.0], [5.0]], [[2.5], [4.5]], "values of the only input"),
    rows(HALF, [[1], [5]], [[2.5], [4.5]], "whole numbers for floats"),
    rows(HALF, [{"x": [1.0]}, {"x": [5.0]}], [[2.5], [4.5]], "the only input by name"),
    columns(HALF, [[1.0], [5.0]], [[2.5], [4.5]], "values of the only input"),
    columns(HALF, {"x": [[1.0], [5.0]]}, [[2.5], [4.5]], "the only input by name"),
    columns(HALF, {"x": [[1.0]], "y": "z"}, [[2.5]], "what no input takes is not looked at"),
    rows(HALF, [[1.0]], [[2.5]], "the signature's name", signature_name="serving_default"),
    rows(HALF, [[1.0]], [[2.5]], "no signature's name", signature_name=""),
    columns(MANY, 14.0, 42.0, "one value", signature_name="scalar"),
    columns(MANY, {"x": 14}, 42.0, "one value by name", signature_name="scalar"),
    rows(f"{VERSIONS}/versions/1:predict", [1.0, 2.0, 5.0], [2.5, 3.0, 4.5], "numbers"),
    # ---- several ---------------------------------------------------------------------------------
    rows(
        MANY,
        [{"a": a, "b": b} for a, b in zip(A, B, strict=True)],
        [{"p": p, "q": q} for p, q in zip(P, Q, strict=True)],
        "several inputs and outputs",
    ),
    rows(
        MANY,
        [{"b": b, "a": a} for a, b in zip(A, B, strict=True)],
        [{"p": p, "q": q} for p, q in zip(P, Q, strict=True)],
        "in any order",
    ),
    columns(MANY, {"a": A, "b": B}, {"p": P, "q": Q}, "several inputs and outputs"),
    rows(
        MANY,
        [{"word": "ab"}, {"word": "ü"}, {"word": ""}],
        [{"upper": "AB", "length": 2}, {"upper": "ü", "length": 2}, {"upper": "", "length": 0}],
        "strings",
        signature_name="strings",
    ),
    columns(
        MANY,
        {"word": ["ab", b64(b"x\x00y")]},
        {"upper": ["AB", "X\x00Y"], "length": [2, 3]},
        "strings and bytes",
        signature_name="strings",
    ),
    rows(
        MANY,
        ["ab", b64(b"cd"), {"b64": "Y2Q"}],
        [{"upper": "AB", "length": 2}, {"upper": "CD", "length": 2}, {"upper": "CD", "length": 2}],
        "bare strings and bytes, padding left out",
        signature_name="strings",
    ),
    columns(
        IDENTITY,
        b64(b"abc"),
        "abc",
        "bytes alone",
        signature_name="string",
    ),
    columns(IDENTITY, [["a", "b"], ["c", b64(b"\xff")]], [["a", "b"], ["c", b64(b"\xff")]],
            "strings of two dimensions; what is no text comes as bytes", signature_name="string"),
    # ---- shapes ----------------------------------------------------------------------------------
    columns(IDENTITY, [], [], "nothing", signature_name="float32"),
    columns(IDENTITY, [[], []], [[], []], "nothing in rows", signature_name="float32"),
    rows(IDENTITY, [[], []], [[], []], "rows of nothing", signature_name="int64"),
    rows(IDENTITY, [[[1, 2]], [[3, 4]]], [[[1, 2]], [[3, 4]]], "three dimensions", signature_name="int32"),
    # ---- dtypes ----------------------------------------------------------------------------------
    columns(IDENTITY, [True, False], [True, False], "bools", signature_name="bool"),
    columns(IDENTITY, [2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)], "int64", signature_name="int64"),
    columns(IDENTITY, [2**64 - 1, 0], [2**64 - 1, 0], "uint64", signature_name="uint64"),
    columns(IDENTITY, [2**32 - 1], [2**32 - 1], "uint32", signature_name="uint32"),
    columns(IDENTITY, [-128, 127], [-128, 127], "int8", signature_name="int8"),
    columns(IDENTITY, [255], [255], "uint8", signature_name="uint8"),
    columns(IDENTITY, [0.1, 2**24 - 1, 1e-45, 3.4028235e38], [0.1, 16777215.0, 1e-45, 3.4028235e38],
            "floats as short as they can be", signature_name="float32"),
    columns(IDENTITY, [0.1, 5e-324, 2**53 - 1], [0.1, 5e-324, 9007199254740991.0], "doubles",
            signature_name="float64"),
    columns(IDENTITY, [0.5, 65504], [0.5, 65504.0], "half floats", signature_name="float16"),
    columns(IDENTITY, [0.5, -2], [0.5, -2.0], "bfloat16", signature_name="bfloat16"),
    # ---- versions --------------------------------------------------------------------------------
    rows(f"{VERSIONS}:predict", [2.0], [0.0], "the newest version"),
    rows(f"{VERSIONS}/versions/1:predict", [2.0], [3.0], "a version"),
    rows(f"{VERSIONS}/versions/0001:predict", [2.0], [3.0], "a version with zeros before it"),
    rows(f"{VERSIONS}/labels/stable:predict", [2.0], [3.0], "a label"),
    rows(f"{VERSIONS}/labels/canary:predict", [2.0], [0.0], "another label"),
    rows("/V1/Models/versions/Labels/stable:Predict", [2.0], [3.0], "letters of any case"),
    rows("/v1/models/%76ersions/labels/s%74able:predict", [2.0], [3.0], "a quoted name and label"),
    # ---- form ------------------------------------------------------------------------------------
    RestCase("no content type", HALF, '{"instances": [[1.0]]}', {"predictions": [[2.5]]}),
    RestCase(
        "a form's content type, which curl -d sends",
        HALF,
        '{"instances": [[1.0]]}',
        {"predictions": [[2.5]]},
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    RestCase("a byte order mark", HALF, b'\xef\xbb\xbf{"instances": [[1.0]]}', {"predictions": [[2.5]]}),
    RestCase("white space", HALF, ' \r\n\t{ "instances" : [ [ 1.0 ] ] } \n', {"predictions": [[2.5]]}),
    RestCase("exponents", HALF, '{"instances": [[1e0], [5E+0]]}', {"predictions": [[2.5], [4.5]]}),
]  # fmt: skip


@pytest.mark.parametrize(**cases(ANSWERED))
def test_answered(rest: tuple[str, int], case: RestCase) -> None:
    check(rest, case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_what_is_not_finite_has_tokens_both_ways(rest: tuple[str, int], key: str, dtype: str) -> None:
    text = f'{{"signature_name": "{dtype}", "{key}": [[NaN, 1.5], [-Infinity, Infinity]]}}'
    answered = fetch(rest, "POST", IDENTITY, text)
    assert answered.status == 200, answered.body
    body = answered.body.decode()
    assert body.count("NaN") == 1 and body.count("-Infinity") == 1 and body.count("Infinity") == 2
    ((first, second),) = answered.value.values()
    assert math.isnan(first[0]) and first[1] == 1.5 and second == [-math.inf, math.inf]


def test_short_tokens_of_infinity(rest: tuple[str, int]) -> None:
    text = '{"signature_name": "float32", "inputs": [Inf, -Inf]}'
    assert fetch(rest, "POST", IDENTITY, text).value == {"outputs": [math.inf, -math.inf]}


def test_tokens_among_several_outputs(rest: tuple[str, int]) -> None:
    text = '{"instances": [{"a": [1, NaN], "b": [0, 0, 0]}, {"a": [1, 2], "b": [0, Infinity, 0]}]}'
    first, second = fetch(rest, "POST", MANY, text).value["predictions"]
    assert math.isnan(first["p"]) and first["q"][0] == 1.0 and math.isnan(first["q"][1])
    assert second == {"p": math.inf, "q": [1.0, 2.0]}
    text = '{"inputs": {"a": [[1, NaN]], "b": [[0, 0, 0]]}}'
    outputs = fetch(rest, "POST", MANY, text).value["outputs"]
    assert math.isnan(outputs["p"][0]) and math.isnan(outputs["q"][0][1])


def test_outputs_of_text_that_says_null(rest: tuple[str, int]) -> None:
    body = {"signature_name": "string", "inputs": ["null", "NaN", '"']}
    assert fetch(rest, "POST", IDENTITY, body).value == {"outputs": ["null", "NaN", '"']}
