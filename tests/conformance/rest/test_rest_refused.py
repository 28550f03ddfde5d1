"""Predict over REST: what is refused, with which status and in which words."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

from typing import Any

import pytest
from conformance.rest.rest_case import RestCase, cases, check

HALF = "/v1/models/half_plus_two:predict"
MANY = "/v1/models/many:predict"
IDENTITY = "/v1/models/identity:predict"
NOT_OBJECT = "Is not object"


def wrong(
    name: str, body: Any, answer: str, path: str = HALF, status: int = 400, method: str = "POST"
) -> RestCase:
    return RestCase(name, path, body, answer, status, method)


def typed(name: str, dtype: str, inputs: Any, answer: str, status: int = 400) -> RestCase:
    return wrong(name, {"signature_name": dtype, "inputs": inputs}, answer, IDENTITY, status)


def nested(depth: int) -> str:
    return '{"inputs": ' + "[" * depth + "]" * depth + "}"


REFUSED = [
    # ---- JSON ------------------------------------------------------------------------------------
    wrong("no body", None, "JSON Parse error: The document is empty"),
    wrong("white space", "  \n", "JSON Parse error: The document is empty. at offset: 3"),
    wrong("no JSON", "hello", "JSON Parse error: Invalid value. at offset: 0"),
    wrong("cut short", '{"instances": [[1.0', "JSON Parse error: Missing a comma or ] after an array element. at offset: 19"),
    wrong("a comma too many", '{"instances": [1,]}', "JSON Parse error: Invalid value. at offset: ..."),
    wrong("no comma", '{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 17"),
    wrong("no comma between members", '{"a": 1 "b": 2}', "JSON Parse error: Missing a comma or } after an object member. at offset: 8"),
    wrong("no colon", '{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
    wrong("no name", "{1: 2}", "JSON Parse error: Missing a name for object member. at offset: 1"),
    wrong("a string without an end", '{"a": "b}', "JSON Parse error: Missing a closing quotation mark in string. at offset: 6"),
    wrong("an escape that is none", '{"a": "\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
    wrong("half a surrogate pair", '{"instances": ["\\ud800"]}', "JSON Parse error: The surrogate pair in string is invalid. at offset: ..."),
    wrong("two values", '{"instances": [[1.0]]} {}', "JSON Parse error: The document root must not be followed by other values. at offset: 23"),
    wrong("bytes that are no UTF-8", b'{"instances": ["\xff"]}', "JSON Parse error: Invalid encoding in string. at offset: 16"),
    wrong("a number that no double holds", '{"instances": [[1e999]]}', "JSON Parse error: Number too big to be stored in double. at offset: ..."),
    wrong("a list", "[1, 2]", "JSON Value: [\n    1,\n    2\n] Is not object"),
    wrong("a number", "1.5", f"JSON Value: 1.5 {NOT_OBJECT}"),
    wrong("null", "null", f"JSON Value: null {NOT_OBJECT}"),
    wrong("deep lists", nested(900), "Encountered list at unexpected level: ..."),
    wrong("lists too deep to parse", nested(100_000), "JSON Parse error: Terminate parsing due to Handler error. at offset: 0"),
    # ---- keys ------------------------------------------------------------------------------------
    wrong("neither", {}, "Missing 'inputs' or 'instances' key"),
    wrong("neither, but others", {"examples": []}, "Missing 'inputs' or 'instances' key"),
    wrong("both", {"instances": [[1.0]], "inputs": [[1.0]]}, "JSON Value: {\n    ..."),
    wrong("instances are no list", {"instances": 1}, "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be an list/array"),
    wrong("no instances", {"instances": []}, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    wrong("a signature's name that is none", {"signature_name": 1, "instances": [[1.0]]}, "JSON Value: {\n    ..."),
    # ---- models and signatures -------------------------------------------------------------------
    wrong("an unknown model", {"instances": [1]}, "Servable not found for request: Latest(nope)", "/v1/models/nope:predict", 404),
    wrong("an unknown version", {"instances": [1]}, "Servable not found for request: Specific(many, 7)", "/v1/models/many/versions/7:predict", 404),
    wrong("an unknown label", {"instances": [1]}, "Unrecognized servable version label: x", "/v1/models/many/labels/x:predict"),
    wrong("an unknown signature", {"signature_name": "nope", "instances": [[1.0]]}, 'Serving signature name: "nope" not found in signature def'),
    wrong("no default signature", {"instances": [1]}, 'Serving signature name: "serving_default" not found in signature def', "/v1/models/classes:predict"),
    wrong("a version that is too large", {"instances": [1]}, "Failed to convert version: 99999999999999999999 to numeric.", "/v1/models/many/versions/99999999999999999999:predict"),
    wrong("JSON comes before the model", "{", "JSON Parse error: ...", "/v1/models/nope:predict"),
    # ---- paths and methods -----------------------------------------------------------------------
    wrong("a verb that is none", {}, "Malformed request: POST /v1/models/many:explain", "/v1/models/many:explain"),
    wrong("no verb", {}, "Malformed request: POST /v1/models/many", "/v1/models/many"),
    wrong("no name", {}, "Malformed request: POST /v1/models/:predict", "/v1/models/:predict"),
    wrong("a query", {}, "Malformed request: POST /v1/models/many:predict?x=1", "/v1/models/many:predict?x=1"),
    wrong("a version and a label", {}, "Malformed request: POST /v1/models/many/versions/1/labels/x:predict", "/v1/models/many/versions/1/labels/x:predict"),
    wrong("a version that is no number", {}, "Malformed request: POST /v1/models/many/versions/x:predict", "/v1/models/many/versions/x:predict"),
    wrong("another path", {}, "Malformed request: POST /v1/", "/v1/"),
    wrong("GET", None, "Malformed request: GET /v1/models/many:predict", MANY, method="GET"),
    wrong("PUT", {}, "Malformed request: PUT /v1/models/many:predict", MANY, method="PUT"),
    wrong("DELETE", None, "Malformed request: DELETE /v1/models/many", "/v1/models/many", method="DELETE"),
    wrong("OPTIONS", None, "Malformed request: OPTIONS /v1/models/many:predict", MANY, method="OPTIONS"),
    wrong("a path of nobody's", {}, "Not found: /v2/models/many", "/v2/models/many", 404),
    wrong("a name that is no UTF-8", {}, "Failed to decode model name:%ff", "/v1/models/%ff:predict"),
    # ---- rows ------------------------------------------------------------------------------------
    wrong("bare values for two inputs", {"instances": [1.0]}, "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map", MANY),
    wrong("an object, then a value", {"instances": [{"x": [1.0]}, [1.0]]}, "Expecting object but got list at item 1 of input list"),
    wrong("a value, then an object", {"instances": [[1.0], {"x": [1.0]}]}, "Expecting value/list but got object at item 1 of input list"),
    wrong("an input too few", {"instances": [{"a": [1, 2]}]}, 'Failed to process element: 0 of \'instances\' list. JSON object: {\n    "a": [\n        1,\n        2\n    ]\n} keys must be equal to: a,b', MANY),
    wrong("an input too many", {"instances": [{"x": [1.0], "z": 1}]}, "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: z"),
    wrong("rows of other lengths", {"instances": [[1.0], [1.0, 2.0]]}, "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
    wrong("rows of other shapes", {"instances": [[[1.0, 2.0]], [[1.0], [2.0]]]}, "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [1,2] but got: [2,1]"),
    wrong("a row that is not even", {"instances": [[[1.0, 2.0], [3.0]]]}, "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    wrong("a string for a float", {"instances": [["1.0"]]}, 'Failed to process element: 0 of \'instances\' list. Error: INVALID_ARGUMENT: JSON Value: "1.0" Type: String is not of expected type: float'),
    wrong("a bool for a float", {"instances": [[1.0], [True]]}, "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: true Type: True is not of expected type: float"),
    wrong("null for a float", {"instances": [{"x": [None]}]}, "Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: null Type: Null is not of expected type: float"),
    wrong("bytes for a float", {"instances": [{"b64": "AAAA"}]}, "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: {\n    \"b64\": \"AAAA\"\n} Type: Object is not of expected type: float"),
    # ---- columns ---------------------------------------------------------------------------------
    wrong("bare values for two inputs, in columns", {"inputs": [1.0]}, "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map", MANY),
    wrong("an input too few, in columns", {"inputs": {"a": [[1, 2]]}}, "Missing named input: b in 'inputs' object.", MANY),
    wrong("a level too deep", {"inputs": [[1.0], [[1.0]]]}, "Encountered list at unexpected level: 2 expected < 2"),
    wrong("a level too few", {"inputs": [[1.0], 1.0]}, "JSON Value: 1.0 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    wrong("columns that are not even", {"inputs": [[1.0], []]}, "Encountered list at unexpected size: 0 at level: 1 expected size: 1"),
    # ---- values ----------------------------------------------------------------------------------
    typed("a float for an int32", "int32", [1, 2.5], "JSON Value: 2.5 Type: Number is not of expected type: int32"),
    typed("a whole float for an int64", "int64", [1.0], "JSON Value: 1.0 Type: Number is not of expected type: int64"),
    typed("a bool for an int32", "int32", [True], "JSON Value: true Type: True is not of expected type: int32"),
    typed("2^31 for an int32", "int32", [2**31], "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
    typed("128 for an int8", "int8", [128], "JSON Value: 128 Type: Number is not of expected type: int8"),
    typed("2^63 for an int64", "int64", [2**63], "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
    typed("2^64 for a uint64", "uint64", [2**64], "JSON Value: ..."),
    typed("a negative uint32", "uint32", [-1], "JSON Value: -1 Type: Number is not of expected type: uint32"),
    typed("a negative uint64", "uint64", [-1], "JSON Value: -1 Type: Number is not of expected type: uint64"),
    typed("a number for a bool", "bool", [1], "JSON Value: 1 Type: Number is not of expected type: bool"),
    typed("a whole number that a float has not", "float32", [2**24], "Cannot convert JSON value: 16777216 to float without loss of precision."),
    typed("a number beyond floats", "float32", [1e39], "Cannot convert JSON value: 1e+39 to float without loss of precision."),
    typed("a whole number that a double has not", "float64", [2**53], "Cannot convert JSON value: 9007199254740992 to double without loss of precision."),
    typed("a number for a string", "string", ["a", 1], "JSON Value: 1 Type: Number is not of expected type: string"),
    typed("an object that is no base64", "string", [{"b64": 1}], 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    typed("an object with more than base64", "string", [{"b64": "YQ==", "x": 1}], "JSON Value: {\n    ..."),
    typed("base64 that is none", "string", [{"b64": "!!"}], "Unable to base64 decode"),
    typed("base64 cut short", "string", [{"b64": "YWJjZ"}], "Unable to base64 decode"),
    typed("a dtype that JSON has no form for", "complex64", [1.0], "Conversion of JSON Value: 1.0 to type: complex64", 501),
    typed("a value beyond half floats", "float16", [70000.0], "Cannot convert JSON value: 70000.0 to half without loss of precision."),
    # ---- what the model refuses ------------------------------------------------------------------
    wrong("an assertion in the model", {"signature_name": "positive", "instances": [-1.0]}, "...", MANY),
    wrong("rows of an output that has none", {"signature_name": "total", "instances": [1.0, 2.0]}, "Tensor name: y has no shape information ", MANY),
    wrong("outputs of other lengths", {"signature_name": "any_rank", "instances": [[1.0, 2.0]]}, "Tensor name: y has inconsistent batch size: 1 expecting: 2", MANY),
]  # fmt: skip


@pytest.mark.parametrize(**cases(REFUSED))
def test_refused(rest: tuple[str, int], case: RestCase) -> None:
    check(rest, case)


def test_a_long_value_is_cut(rest: tuple[str, int]) -> None:
    body = {"instances": [[1.0]] * 10_000, "inputs": []}
    answered = check(rest, wrong("both", body, "JSON Value: {..."))
    assert len(answered.body) < 2000 and "...TRUNCATED Not formatted correctly" in answered.value["error"]
