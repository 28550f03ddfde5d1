"""The gateway's JSON: what is parsed, what is written, and examples."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastserve.client.messages import SignatureInfo, TensorInfo
from fastserve.gateway import json_out
from fastserve.gateway.json_examples import example_of, input_of
from fastserve.gateway.json_strings import from_base64, is_base64
from fastserve.gateway.json_tensors import inputs_of, signature_name, tensors_of
from fastserve.gateway.json_text import parse, shown
from fastserve.gateway.refusal import InvalidArgument, Refusal, error_body
from fastserve.protos import message

X = {"x": TensorInfo("x:0", "float32", None)}


# ---- parsing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": "]}" 1}', "Missing a comma or }"),
        ('{"a": ["\\"{", {} 1]}', "Missing a comma or ]"),
        ('{"a": "%s" 1}' % ("x" * (1 << 20)), "Missing a comma or a closing bracket"),
    ],
    ids=["object", "array", "long"],
)
def test_a_comma_that_is_missing(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"JSON Parse error: {said}"):
        parse(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "%s" 1}' % ("x" * 900_000),
        '{"a": "%s" 1}' % ('\\"' * 450_000),
        '{"a": Inf, "b": "%s", "c": nan}' % ("x" * 900_000),
        '{"a": Inf, "b": "%s' % ('\\"' * 450_000),
    ],
    ids=["comma", "comma after quotes", "infinity", "infinity and no end"],
)
def test_what_is_wrong_is_said_in_little_memory_and_time(text: str) -> None:
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(InvalidArgument, match="JSON Parse error: "):
            parse(text.encode())
        assert time.process_time() - began < 10
        # orjson takes 12 bytes for each.
        assert tracemalloc.get_traced_memory()[1] < 20 * len(text)
    finally:
        tracemalloc.stop()


def test_tokens_for_what_is_not_finite() -> None:
    value = parse(b'{"a": [NaN, Infinity, -Infinity, Inf, -Inf, 1.5], "b": "Inf NaN"}')
    assert math.isnan(value["a"][0])
    assert value["a"][1:] == [math.inf, -math.inf, math.inf, -math.inf, 1.5]
    assert value["b"] == "Inf NaN"


def test_tokens_keep_whole_numbers_exact() -> None:
    value = parse(b'{"a": [NaN, 9223372036854775807, 18446744073709551615, 1e308]}')
    assert value["a"][1:] == [2**63 - 1, 2**64 - 1, 1e308]


@pytest.mark.parametrize(
    "text", ["1e999", "-1e999", "1" + "0" * 400, "[1e400, NaN]", "[NaN, 1" + "0" * 400 + "]"]
)
def test_numbers_that_no_double_holds(text: str) -> None:
    with pytest.raises(InvalidArgument, match="JSON Parse error: Number too big to be stored in double"):
        parse(b'{"a": %s}' % text.encode())


def test_whole_numbers_beyond_64_bits_are_doubles() -> None:
    assert parse(b'{"a": [36893488147419103232, NaN]}')["a"][0] == 2.0**65


@pytest.mark.parametrize("text", ["nan", "NAN", "infinity", "+1", "01", "1.", ".5", "'a'", "{a: 1}", "True"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(InvalidArgument, match="JSON Parse error: "):
        parse(b'{"a": %s}' % text.encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        assert isinstance(parse(data), dict)
    except InvalidArgument as refused:
        json.loads(error_body(refused.text))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]",:\\ u0d8NaInfinity-1.e\n\t', max_size=30))
def test_what_is_nearly_json_is_an_object_or_refused(text: str) -> None:
    try:
        parse(('{"a": ' + text).encode())
    except InvalidArgument as refused:
        json.loads(error_body(refused.text))


def test_values_in_errors() -> None:
    assert shown(math.nan) == "NaN" and shown(-math.inf) == "-Infinity" and shown(0.1) == "0.1"
    assert shown({"a": [1, "ü"]}) == '{\n    "a": [\n        1,\n        "ü"\n    ]\n}'
    long = shown(list(range(100_000)))
    assert len(long) < 1100 and long.endswith("...TRUNCATED")


@pytest.mark.parametrize(
    ("text", "data"),
    [("", b""), ("YQ==", b"a"), ("YQ", b"a"), ("Y W\nJj", b"abc"), ("/+8=", b"\xff\xef")],
)
def test_base64(text: str, data: bytes) -> None:
    assert from_base64({"b64": text}) == data


@pytest.mark.parametrize("text", ["Y", "YQ=", "Y===", "YQ==YQ==", "_-8=", "a*bc", "ü"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(ValueError):
        from_base64({"b64": text})


def test_who_stands_for_bytes() -> None:
    assert is_base64({"b64": "YQ=="})
    assert not any(map(is_base64, ({"b64": 1}, {"b64": "a", "c": 1}, {"c": "a"}, "a", None, [])))


# ---- tensors -----------------------------------------------------------------------------------


def test_a_signature_of_its_own_name() -> None:
    signatures = {"a": SignatureInfo({}, {}, ""), "serving_default": SignatureInfo(dict(X), {}, "")}
    assert inputs_of(signatures, "") == X and inputs_of(signatures, "serving_default") == X
    with pytest.raises(InvalidArgument, match="Failed to get input map for signature: a"):
        inputs_of(signatures, "a")
    with pytest.raises(InvalidArgument, match='Serving signature name: "b" not found in signature def'):
        inputs_of(signatures, "b")
    assert signature_name({"signature_name": "a"}) == "a"
    with pytest.raises(InvalidArgument, match="'signature_name' key must be a string value"):
        signature_name({"signature_name": None})


def test_an_input_that_is_called_b64() -> None:
    inputs = {"b64": TensorInfo("b:0", "string", None)}
    tensors, _ = tensors_of({"instances": [{"b64": "YQ=="}, {"b64": "Yg=="}]}, inputs, 100)
    assert tensors["b64"].tolist() == [b"a", b"b"]


def test_the_size_of_a_tensor_is_bounded_by_the_requests() -> None:
    value = [[0] * 100, *[[]] * 9]
    with pytest.raises(InvalidArgument, match="Encountered list at unexpected size: 0"):
        tensors_of({"inputs": value}, X, 300)


def test_sixteen_bits() -> None:
    half = {"x": TensorInfo("x:0", "float16", None)}
    tensors, in_rows = tensors_of({"instances": [[0.1], [65504]]}, half, 100)
    assert in_rows and tensors["x"].dtype == np.float16
    assert tensors["x"].tolist() == [[np.float16(0.1)], [65504.0]]
    with pytest.raises(InvalidArgument, match="to half without loss of precision"):
        tensors_of({"instances": [[65520.0]]}, half, 100)


# ---- answers -----------------------------------------------------------------------------------


def written(name: str, array: Any) -> Any:
    return json.loads(json_out.values(name, array))


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_what_is_written_reads_as_the_same_bits(array: Any) -> None:
    back = np.array(written("x", array), array.dtype).reshape(array.shape)
    np.testing.assert_array_equal(back, array)
    finite = np.isfinite(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)
    assert back[finite].tobytes() == array[finite].tobytes()


def test_views_that_are_not_in_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert written("x", array.T) == array.T.tolist()
    assert written("x", array[:, ::2]) == array[:, ::2].tolist()


def test_floats_are_short() -> None:
    assert json_out.values("x", np.float32([0.1, 1, 1e10, 1e-7])) == b"[0.1,1.0,10000000000.0,1e-7]"


def test_strings_and_bytes() -> None:
    array = np.array([b"a", "ü".encode(), b"\xff"], object)
    assert written("x", array) == ["a", "ü", {"b64": "/w=="}]
    assert written("x_bytes", array) == [{"b64": "YQ=="}, {"b64": "w7w="}, {"b64": "/w=="}]
    assert written("x_bytes", np.array([[b"a"], [b"b"]], object)) == [[{"b64": "YQ=="}], [{"b64": "Yg=="}]]
    alone = np.array(b"a", object)
    assert written("x", alone) == "a"


def test_rows_of_several_outputs() -> None:
    outputs = {
        "f": np.float32([[0.1, np.nan], [1, 2]]),
        "s": np.array([b"null", b"b"], object),
        "i": np.int64([2**62, -1]),
        "g": np.float64([0.1, -np.inf]),
    }
    text = json_out.predictions(outputs)
    first, second = json.loads(text)["predictions"]
    assert (first["s"], first["i"], first["g"]) == ("null", 2**62, 0.1)
    assert first["f"][0] == 0.1 and math.isnan(first["f"][1])
    assert second == {"f": [1.0, 2.0], "s": "b", "i": -1, "g": -math.inf}


def test_answers_that_cannot_be_written() -> None:
    with pytest.raises(InvalidArgument, match="Cannot convert empty tensor map to JSON"):
        json_out.predictions({})
    with pytest.raises(InvalidArgument, match="Cannot convert empty tensor map to JSON"):
        json_out.columns({})
    with pytest.raises(InvalidArgument, match="Failed to write JSON value for tensor type: complex64"):
        json_out.columns({"x": np.zeros(1, np.complex64)})
    with pytest.raises(InvalidArgument, match="has inconsistent batch size: 3 expecting: 2"):
        json_out.predictions({"a": np.zeros(2), "b": np.zeros(3)})


def test_error_bodies_are_json_whatever_is_in_them() -> None:
    for text in ('"quoted"\n', "ü\x00", "half \ud800"):
        assert set(json.loads(error_body(text))) == {"error"}


# ---- examples ----------------------------------------------------------------------------------


def test_an_example_of_every_kind() -> None:
    data = example_of(
        {"f": [0.5, -1.0], "i": [1, -1, True], "one": 7, "s": ["a", {"b64": "/w=="}], "none": [], "": "x"}
    )
    features = message("tensorflow.Example").FromString(data).features.feature
    assert list(features["f"].float_list.value) == [0.5, -1.0]
    assert list(features["i"].int64_list.value) == [1, -1, 1]
    assert list(features["one"].int64_list.value) == [7]
    assert list(features["s"].bytes_list.value) == [b"a", b"\xff"]
    assert features["none"].WhichOneof("kind") is None
    assert list(features[""].bytes_list.value) == [b"x"]


def test_an_input_with_a_context() -> None:
    made = message("tensorflow.serving.Input").FromString(
        input_of({"examples": [{"x": 1.5}, {}], "context": {"y": 2}})
    )
    with_context = made.example_list_with_context
    assert len(with_context.examples) == 2
    assert list(with_context.context.features.feature["y"].int64_list.value) == [2]
    plain = message("tensorflow.serving.Input").FromString(input_of({"examples": [{"x": 1.5}]}))
    assert plain.WhichOneof("kind") == "example_list"


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_is_an_example_or_refused(value: Any) -> None:
    try:
        data = example_of(value)
    except Refusal:
        return
    assert set(message("tensorflow.Example").FromString(data).features.feature) == set(value)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from(["f4", "f8", "i8", "?"]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3),
    )
)
def test_rows_of_any_shape(array: Any) -> None:
    outputs = {"a": array, "b": np.arange(len(array))}
    rows = json.loads(json_out.predictions(outputs))["predictions"]
    whole = json.loads(json_out.predictions({"a": array}))["predictions"]
    assert repr([row["a"] for row in rows]) == repr(whole)
    assert [row["b"] for row in rows] == list(range(len(array)))
