"""The client's codec: arrays to requests that protobuf reads, replies that protobuf writes to arrays.

TensorFlow's own opinion is asked in tests/integration/test_client_codec_tensorflow.py.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve._native.client_codec import ReplyError, decode_reply, encode_request, join_replies
from fastserve.protos import message

NUMERIC = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128",
]  # fmt: skip
ML = [
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz",
    "int4", "uint4",
]  # fmt: skip
QUANTIZED = ["qint8", "quint8", "qint16", "quint16", "qint32"]
Array = np.ndarray[Any, Any]
Request = message("tensorflow.serving.PredictRequest")
Response = message("tensorflow.serving.PredictResponse")
Tensor = message("tensorflow.TensorProto")

# tensorflow.DataType's numbers.
DTYPES = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "string": 7, "complex64": 8,
    "int64": 9, "bool": 10, "qint8": 11, "quint8": 12, "qint32": 13, "bfloat16": 14, "qint16": 15,
    "quint16": 16, "uint16": 17, "complex128": 18, "float16": 19, "resource": 20, "variant": 21, "uint32": 22,
    "uint64": 23, "float8_e5m2": 24, "float8_e4m3fn": 25, "float8_e4m3fnuz": 26, "float8_e4m3b11fnuz": 27,
    "float8_e5m2fnuz": 28, "int4": 29, "uint4": 30,
}  # fmt: skip
FIELDS = {
    "bool": "bool_val", "int8": "int_val", "int16": "int_val", "int32": "int_val", "uint8": "int_val",
    "uint16": "int_val", "int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val",
    "float16": "half_val", "bfloat16": "half_val", "float32": "float_val", "float64": "double_val",
    "complex64": "scomplex_val", "complex128": "dcomplex_val",
}  # fmt: skip


def parse(request: bytes) -> Any:
    return Request.FromString(request)


def sent(value: Any, **options: Any) -> Any:
    return parse(encode_request("m", {"x": value}, **options)).inputs["x"]


def tensor(dtype: str, shape: Any, **values: Any) -> Any:
    proto = Tensor(dtype=DTYPES[dtype], **values)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def content(value: Array) -> Any:
    """The tensor with its values in tensor_content; strings in string_val."""
    if value.dtype.kind in "OSU":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in value.reshape(-1)]
        return tensor("string", value.shape, string_val=texts)
    return tensor(value.dtype.name, value.shape, tensor_content=value.tobytes())


def typed(value: Array) -> Any:
    """The tensor with its values in the typed field."""
    field = FIELDS[value.dtype.name]
    flat: Any = value.reshape(-1)
    if value.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    elif field == "half_val":
        flat = flat.view(np.uint16)
    return tensor(value.dtype.name, value.shape, **{field: flat.tolist()})


def array_of(proto: Any, dtype: Any) -> Array:
    """What tensor_content says."""
    return np.frombuffer(proto.tensor_content, dtype).reshape([dim.size for dim in proto.tensor_shape.dim])


def reply(**outputs: Any) -> Any:
    made = Response()
    made.model_spec.name = "ranker"
    made.model_spec.version.value = 7
    made.model_spec.signature_name = "serving_default"
    for name, value in outputs.items():
        proto = value if isinstance(value, Tensor) else content(np.asarray(value))
        made.outputs[name].CopyFrom(proto)
    return made


def received(**outputs: Any) -> dict[str, Array]:
    return decode_reply(reply(**outputs).SerializeToString())[0]


def example(name: str, *shape: int) -> Array:
    dtype = np.dtype(getattr(ml_dtypes, name)) if name in ML else np.dtype(name)
    count = int(np.prod(shape))
    values = np.arange(count) % (7 if name.endswith("int4") else 100)
    if dtype.kind == "c":
        return (values + 1j * values[::-1]).astype(dtype).reshape(shape)
    if dtype.kind == "i":
        values = -values
    return values.astype(dtype).reshape(shape)


# ---- requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (40, 30), (0, 13), (2, 0), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", NUMERIC + ML)
def test_an_array_is_sent_as_it_lies(name: str, shape: tuple[int, ...]) -> None:
    array = example(name, *shape)
    proto = sent(array)
    assert proto.tensor_content == array.tobytes()
    assert proto.dtype == DTYPES[name]
    assert [dim.size for dim in proto.tensor_shape.dim] == list(shape)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_array_is_sent(name: str) -> None:
    stored = np.dtype(name[1:])
    array = np.array([(1,), (2,), (100,)], dtype=[(name, stored)])  # as TensorFlow has them in numpy
    proto = sent(array)
    assert proto.dtype == DTYPES[name]
    assert proto.tensor_content == array.tobytes()


STRINGS: list[tuple[Any, list[bytes]]] = [
    ([b"a", b"", b"x\0y\0"], [b"a", b"", b"x\0y\0"]),
    (["a", "é", "\U0001f600"], [b"a", "é".encode(), "\U0001f600".encode()]),
    (["a", b"\xff"], [b"a", b"\xff"]),
    (np.array([b"abc", b"a", b"\xff\xfe"]), [b"abc", b"a", b"\xff\xfe"]),
    (np.array(["abc", "", "\u20ac\u0101\U0001f600"]), [b"abc", b"", "\u20ac\u0101\U0001f600".encode()]),
    (np.array(["abc", b"\0d"], dtype=object), [b"abc", b"\0d"]),
    (np.array(["abc", "é"], dtype=np.dtypes.StringDType()), [b"abc", "é".encode()]),
    (np.array(["ab", "é"], dtype=">U2"), [b"ab", "é".encode()]),
    (np.array([b"a", b"b", b"c", b"d"])[::2], [b"a", b"c"]),
    (("a", "b"), [b"a", b"b"]),
    ("one", [b"one"]),
    (b"on\0e\0", [b"on\0e\0"]),
    (np.bytes_(b"one"), [b"one"]),
    (np.str_("é"), ["é".encode()]),
    ([], []),
]


@pytest.mark.parametrize(("value", "expected"), STRINGS)
def test_strings_are_sent_as_bytes(value: Any, expected: list[bytes]) -> None:
    proto = sent(value)
    if expected:
        assert proto.dtype == DTYPES["string"]
    assert list(proto.string_val) == expected
    dims = [dim.size for dim in proto.tensor_shape.dim]
    assert dims == ([] if isinstance(value, (str, bytes)) else [len(expected)])


def test_nested_lists_of_strings_have_their_shape() -> None:
    proto = sent([[["a", "b"], ["c", "d"]], [["e", "f"], ["g", "h"]]])
    assert [dim.size for dim in proto.tensor_shape.dim] == [2, 2, 2]
    assert list(proto.string_val) == [bytes([code]) for code in b"abcdefgh"]


@pytest.mark.parametrize(
    "value",
    [
        [1, 2], [[1.5], [2.5]], 3, 2.5, True, 1j, np.float32(3), np.int8(-1),
        np.arange(6).reshape(2, 3).T, np.arange(10)[::3], np.arange(10)[::-1], np.arange(4, dtype=">i4"),
        np.arange(4, dtype=">f8"), np.asfortranarray(np.ones((3, 4), np.float32)),
        np.broadcast_to(1.5, (3, 2)), memoryview(np.arange(5)), range(4),
        np.ma.masked_array([1, 2], [0, 0]),
        np.arange(8, dtype=ml_dtypes.bfloat16)[::2],
    ],
)  # fmt: skip
def test_what_is_no_plain_array_becomes_one(value: Any) -> None:
    expected = np.asarray(value)
    expected = expected.astype(expected.dtype.newbyteorder("="))
    proto = sent(value)
    got = array_of(proto, expected.dtype)
    assert proto.dtype == DTYPES[expected.dtype.name]
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def test_a_read_only_array_is_sent() -> None:
    array = np.arange(300)
    array.flags.writeable = False
    assert sent(array).tensor_content == array.tobytes()


def test_a_request_names_model_signature_and_outputs() -> None:
    request = parse(encode_request("ranker", {"x": [1]}, signature="sig", outputs=["y", "z"]))
    assert request.model_spec.name == "ranker"
    assert request.model_spec.signature_name == "sig"
    assert request.model_spec.WhichOneof("version_choice") is None
    assert list(request.output_filter) == ["y", "z"]
    for version in (0, 7, 2**63 - 1):
        spec = parse(encode_request("m", {}, version=version)).model_spec
        assert spec.WhichOneof("version_choice") == "version"
        assert spec.version.value == version
    spec = parse(encode_request("m", {}, label="stable")).model_spec
    assert spec.version_label == "stable"


def test_many_inputs_keep_their_names() -> None:
    inputs = {f"feature_{i}_é": np.full((3, i + 1), i, np.float32) for i in range(300)}
    request = parse(encode_request("m", inputs))
    assert set(request.inputs) == set(inputs)
    for name, array in inputs.items():
        assert np.array_equal(array_of(request.inputs[name], array.dtype), array)


def test_rows_are_sent_without_the_others() -> None:
    dense, words = np.arange(1000.0).reshape(500, 2), np.array([f"w{i}" for i in range(500)])
    request = parse(
        encode_request("m", {"dense": dense, "words": words, "objects": list(words)}, first_row=100, rows=50)
    )
    assert np.array_equal(array_of(request.inputs["dense"], dense.dtype), dense[100:150])
    for name in ("words", "objects"):
        assert list(request.inputs[name].string_val) == [f"w{i}".encode() for i in range(100, 150)]
    for first, rows in ((0, 501), (-1, 2), (500, 1), (0, -2)):
        with pytest.raises(ValueError, match="rows"):
            encode_request("m", {"x": dense}, first_row=first, rows=rows)
    with pytest.raises(ValueError, match="rows"):
        encode_request("m", {"x": dense, "y": 3.0}, first_row=0, rows=1)


class Broken:
    def __array__(self, *args: Any, **kwargs: Any) -> Array:
        raise ValueError("no array today")


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        ([1, 2], TypeError, "inputs maps names to arrays.*list"),
        ({3: [1]}, TypeError, "3 is no name"),
        ({"x": None}, TypeError, "'x' is None"),
        ({"x": [[1], [2, 3]]}, ValueError, "'x' cannot be an array"),
        ({"x": ["a", 3]}, TypeError, "'x', element 1 is int"),
        ({"x": [3, "a"]}, TypeError, "'x', element 0 is int"),
        ({"x": object()}, TypeError, "'x', element 0 is object"),
        ({"x": {"a": 1}}, TypeError, "'x', element 0 is dict"),
        ({"x": np.array(["2020-01-01"], dtype="M8[D]")}, TypeError, "'x' is an array of datetime64"),
        ({"x": np.longdouble(1)}, TypeError, "'x' is an array of"),
        ({"x": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])}, TypeError, "'x' is an array of"),
        ({"x": "\ud800"}, ValueError, "'x', element 0"),
        ({"x": np.array(["a", "\udfff"])}, ValueError, "'x', element 1 holds half a surrogate pair"),
        ({"x": np.array(["a", None], dtype=object)}, TypeError, "'x', element 1 is NoneType"),
        ({"\ud800": [1]}, ValueError, "surrogates"),
        ({"x": Broken()}, ValueError, "no array today"),
    ],
)
def test_bad_inputs_are_named(inputs: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        encode_request("m", inputs)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": ""}, ValueError, "model is empty"),
        ({"model": 3}, TypeError, "model is the name"),
        ({"version": "3"}, TypeError, "version is a number, not str"),
        ({"version": -1}, ValueError, "version -1"),
        ({"version": 2**63}, ValueError, "from 0 to"),
        ({"version": True}, TypeError, "version is a number"),
        ({"version": 1, "label": "a"}, ValueError, "not both"),
        ({"label": 3}, TypeError, "label is text"),
        ({"signature": b"s"}, TypeError, "signature is the name"),
        ({"outputs": "y"}, TypeError, r"\['y'\]"),
        ({"outputs": [1]}, TypeError, "int is none"),
        ({"outputs": ["y", "y"]}, ValueError, "twice"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        encode_request(**{"model": "m", "inputs": {"x": [1]}, **options})


def test_more_than_two_gigabytes_are_refused() -> None:
    huge = np.memmap("/dev/zero", dtype=np.uint8, mode="r", shape=(1 << 31,))  # takes no memory
    with pytest.raises(ValueError, match="2 GiB"):
        encode_request("m", {"x": huge, "y": [1]})


def test_a_request_is_left_with_no_references() -> None:
    words = [f"word {i}" * 3 for i in range(100)]
    array = np.arange(1000.0)
    before = sys.getrefcount(array), [sys.getrefcount(word) for word in words]
    for _ in range(3):
        encode_request("m", {"x": array, "w": words, "o": np.array(words, dtype=object)})
        with pytest.raises(TypeError):
            encode_request("m", {"x": array, "w": words, "bad": None})
    assert (sys.getrefcount(array), [sys.getrefcount(word) for word in words]) == before
    array.resize((2000,))  # refused while a buffer of it is out


# ---- replies -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (5,), (500, 1), (0, 3), (2, 3, 4)])
@pytest.mark.parametrize("name", NUMERIC + ML)
def test_an_output_is_read_where_it_lies(name: str, shape: tuple[int, ...]) -> None:
    array = example(name, *shape)
    protos = [content(array)]
    if name in FIELDS:
        protos.append(typed(array))
    for proto in protos:
        for pad in range(9):  # so that payloads lie at every alignment
            got = received(**{"p" * pad: np.arange(3), "y": proto})
            assert got["y"].dtype == array.dtype
            assert got["y"].shape == shape
            assert got["y"].tobytes() == array.tobytes()
            assert got["y"].flags.aligned
            assert got["y"].flags.writeable
            assert got["p" * pad].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_output_is_its_integers(name: str) -> None:
    got = received(y=tensor(name, [3], int_val=[1, 2, 100]))["y"]
    assert got.dtype == name[1:]
    assert got.tolist() == [1, 2, 100]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2)])
def test_strings_are_bytes_objects(shape: tuple[int, ...]) -> None:
    values = [b"", b"x\0y\0", b"\xff", "é".encode()][: int(np.prod(shape))]
    array = np.array(values, dtype=object).reshape(shape)
    got = received(y=tensor("string", shape, string_val=values))["y"]
    assert got.dtype == object
    assert got.shape == shape
    assert got.tolist() == array.tolist()


def test_strings_are_counted_right() -> None:
    # The last stands for all that follow.
    proto = tensor("string", [1000], string_val=[b"some words", b"others"])
    got = received(y=proto)["y"]
    assert len(got) == 1000
    assert got[999] is got[1]
    assert sys.getrefcount(got[1]) >= 999
    other = got[1]
    del got
    assert sys.getrefcount(other) == 2


@pytest.mark.parametrize("values", [[], [5], [5, 6], [5, 6, 7, 8, 9]])
@pytest.mark.parametrize("name", ["int64", "float32", "uint8", "bool"])
def test_short_and_long_lists_are_as_in_tensorflow(name: str, values: list[int]) -> None:
    proto = tensor(name, [3], **{FIELDS[name]: values})
    expected = ([*values, *([values[-1]] * 3)] if values else [0] * 3)[:3]
    assert received(y=proto)["y"].tolist() == [bool(v) if name == "bool" else v for v in expected]


def test_a_reply_names_who_answered() -> None:
    assert decode_reply(reply().SerializeToString()) == ({}, ("ranker", 7, "serving_default"))
    assert decode_reply(b"") == ({}, ("", None, ""))
    into: dict[str, Any] = {"kept": 1}
    assert decode_reply(reply(y=[1]).SerializeToString(), into)[0] is into
    assert set(into) == {"kept", "y"}


def test_arrays_lie_over_the_reply_and_outlive_it() -> None:
    got = received(a=np.arange(1000.0), b=np.arange(1000, 3000, dtype=np.float32))
    owners = [array.base for array in got.values()]
    assert owners[0] is owners[1]
    assert len(owners[0]) > 16000
    del owners
    b = got.pop("b")
    del got
    gc.collect()
    for _ in range(50):
        decode_reply(reply(z=np.full(3000, 7.0)).SerializeToString())
    assert b.tolist() == list(range(1000, 3000))


def test_arrays_do_not_overlap() -> None:
    outputs = {f"y{i}": np.full(i % 7 + 1, i % 100, NUMERIC[i % len(NUMERIC)]) for i in range(200)}
    got = received(**outputs)
    for array in got.values():
        array[...] = 0
    for name, array in received(**outputs).items():
        assert array.tolist() == outputs[name].tolist()
    spans = sorted(
        (array.__array_interface__["data"][0], array.nbytes) for array in got.values() if array.nbytes
    )
    for (start, size), (following, _) in itertools.pairwise(spans):
        assert start + size <= following


def claims(dtype: str, *dims: int, **values: Any) -> bytes:
    data: bytes = reply(y=tensor(dtype, dims, **values)).SerializeToString()
    return data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (claims("float32", 2**40, float_val=[1.0]), r"'y'.*\[1099511627776\] of float.*1073741824 bytes"),
        (claims("float32", 2**40), "1073741824"),
        (claims("int64", 2**20, 2**10, int64_val=[1]), "1073741824"),
        (claims("string", 2**40, string_val=[b"x"]), "1073741824"),
        (claims("string", 2**20, string_val=[b"x" * 2000]), "1073741824"),
        (claims("int64", 2**40, 2**40), "'y' of the reply is no tensor"),
        (claims("float32", -1), "'y' of the reply is no tensor"),
        (claims("float32", 4, tensor_content=b"abc"), "'y' of the reply is no tensor"),
        (claims("variant", 1), "'y' is of type variant"),
        (claims("resource", 1), "'y' is of type resource"),
        (b"<html>502 Bad Gateway</html>", "not a PredictResponse"),
        (reply(y=[1.0, 2.0]).SerializeToString()[:-3], "not a PredictResponse"),
        (b"\x0a\x06\x0a\x01y\x12\x01\x08", "'y' of the reply is no tensor"),
    ],
)
def test_hostile_replies_are_refused(data: bytes, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ReplyError, match=says):
            decode_reply(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_counts_what_is_decoded_only() -> None:
    data = reply(y=np.zeros(1000), z=np.zeros(1000)).SerializeToString()
    assert decode_reply(data, limit_bytes=0)[0]["y"].nbytes == 8000
    varints = claims("int64", 1000, int64_val=range(1000))
    assert decode_reply(varints, limit_bytes=8000)[0]["y"][999] == 999
    with pytest.raises(ReplyError, match="7999 bytes"):
        decode_reply(varints, limit_bytes=7999)


def test_a_dtype_without_ml_dtypes_names_the_remedy() -> None:
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "from fastserve._native.client_codec import decode_reply, ReplyError\n"
        f"message = {reply(y=np.zeros(2, ml_dtypes.bfloat16)).SerializeToString()!r}\n"
        "try: decode_reply(message)\n"
        "except ReplyError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "output 'y' is bfloat16" in said
    assert "install" in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_any_bytes_are_read_or_refused_as_by_protobuf(junk: bytes, at: int, value: int) -> None:
    good = bytearray(reply(y=np.arange(6.0), s=["a", "bc"], i=np.arange(3)).SerializeToString())
    good[at % len(good)] = value
    for data in (junk, bytes(good), bytes(good[: at % len(good)]) + junk):
        try:
            Response.FromString(data)
            theirs = True
        except DecodeError:
            theirs = False
        try:
            decode_reply(data, limit_bytes=1 << 20)
            ours = True
        except ReplyError:
            ours = False
        assert theirs or not ours


# ---- joined replies ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [content, typed])
def test_chunks_are_joined_by_rows(make: Callable[[Array], Any]) -> None:
    whole = np.arange(3000).reshape(1000, 3)
    names = np.array([f"n{i}".encode() for i in range(1000)], dtype=object)
    parts, rows = [], []
    for first, last in ((0, 1), (1, 400), (400, 400), (400, 1000)):
        parts.append(reply(y=make(whole[first:last]), n=names[first:last]))
        rows.append(last - first)
    joined, model = join_replies([part.SerializeToString() for part in parts], rows)
    assert model == ("ranker", 7, "serving_default")
    assert np.array_equal(joined["y"], whole)
    assert joined["n"].tolist() == names.tolist()


def test_one_chunk_is_itself() -> None:
    joined, _ = join_replies([reply(y=np.arange(4)).SerializeToString()], [4])
    assert joined["y"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({"y": np.arange(3.0)}, r"shape \[3\] for 2 rows"),
        ({"y": np.float64(3)}, r"shape \[\] for 2 rows"),
        ({"y": np.zeros((2, 3))}, r"differs between chunks.*\[2\] of double and \[2, 3\]"),
        ({"y": np.zeros(2, np.float32)}, "of double and .* of float"),
        ({"z": np.zeros(2)}, "'y' came for some"),
        ({"y": np.zeros(2), "z": np.zeros(2)}, "more outputs than others"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(outputs: dict[str, Any], says: str) -> None:
    first = reply(y=np.zeros(2)).SerializeToString()
    with pytest.raises(ReplyError, match=says):
        join_replies([first, reply(**outputs).SerializeToString()], [2, 2])


def test_chunks_of_different_versions_are_refused() -> None:
    first, second = reply(y=np.zeros(2)), reply(y=np.zeros(2))
    second.model_spec.version.value = 8
    with pytest.raises(ReplyError, match="different versions, 7 and 8"):
        join_replies([first.SerializeToString(), second.SerializeToString()], [2, 2])


def test_joined_claims_are_limited_together() -> None:
    half = claims("float32", 1000, float_val=[1.0])
    assert len(join_replies([half, half], [1000, 1000], limit_bytes=8000)[0]["y"]) == 2000
    with pytest.raises(ReplyError, match="7999 bytes"):
        join_replies([half, half], [1000, 1000], limit_bytes=7999)


# ---- the module ----------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, fastserve._native.client_codec\nprint(*{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "ml_dtypes", "tensorflow", "google", "grpc", "asyncio"} & set(ran.stdout.split())


def test_memory_comes_back() -> None:
    array = np.random.default_rng(1).random((500, 13), dtype=np.float32)
    varints = typed(np.arange(500))
    data = reply(y=array, s=[b"x"] * 50, i=varints).SerializeToString()

    def work(rounds: int) -> None:
        for _ in range(rounds):
            encode_request("m", {"x": array, "w": ["a", "b"], "f": array.T})
            decode_reply(data)
            with pytest.raises(ReplyError):
                decode_reply(data[:-1])

    work(300)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work(300)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 40_000
    finally:
        tracemalloc.stop()
