"""Requests read straight to tensors: what is read so is what the way by a JSON parser gives, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastserve.client.messages import SignatureInfo, TensorInfo
from fastserve.gateway.json_readers import Readers
from fastserve.gateway.json_tensors import Tensors, inputs_of, signature_name, tensors_of
from fastserve.gateway.json_text import parse
from fastserve.gateway.refusal import InvalidArgument

DTYPES = (
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
)


def signature(**dtypes: str) -> SignatureInfo:
    return SignatureInfo(
        {name: TensorInfo(f"{name}:0", dtype, None) for name, dtype in dtypes.items()}, {}, ""
    )


def slow(signatures: dict[str, SignatureInfo], text: bytes) -> tuple[str, Tensors, bool]:
    doc = parse(text)
    name = signature_name(doc)
    return name, *tensors_of(doc, inputs_of(signatures, name), len(text))


def both_agree(signatures: dict[str, SignatureInfo], text: bytes) -> bool:
    """Whether it was read at all."""
    found = Readers(signatures).read(text)
    if found is None:
        return False
    name, tensors, in_rows = found
    slow_name, slow_tensors, slow_in_rows = slow(signatures, text)
    assert (name, in_rows) == (slow_name, slow_in_rows)
    assert tensors.keys() == slow_tensors.keys()
    for key, array in tensors.items():
        other = slow_tensors[key]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()
    return True


def spaced(value: Any, spaces: str) -> bytes:
    return json.dumps(value, separators=(f"{spaces},{spaces}", f"{spaces}:{spaces}")).encode()


@given(data=st.data(), dtype=st.sampled_from(DTYPES), spaces=st.sampled_from(["", " ", "\n\t", "\r\n  "]))
@settings(max_examples=300, deadline=None)
def test_arrays_come_back_in_rows_and_in_columns(data: st.DataObject, dtype: str, spaces: str) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=4))
    # What any type has, and floats' whole range that is read here.
    elements: Any = {"allow_nan": False, "allow_infinity": False}
    if dtype.startswith("float"):
        elements.update(min_value=-(2.0**60), max_value=2.0**60, width=int(dtype[5:]))
        strategy: Any = st.floats(**elements)
    else:
        strategy = arrays.from_dtype(np.dtype(dtype))
    array = data.draw(arrays.arrays(dtype, shape, elements=strategy))
    ids = np.arange(shape[0], dtype=np.int64)
    signatures = {"serving_default": signature(x=dtype, ids="int64")}
    rows = [{"x": x, "ids": i} for x, i in zip(array.tolist(), ids.tolist(), strict=True)]
    for text in (
        spaced({"inputs": {"x": array.tolist(), "ids": ids.tolist()}}, spaces),
        spaced({"signature_name": "serving_default", "instances": rows}, spaces),
    ):
        tried = Readers(signatures).read(text)
        if tried is None:  # tiny numbers and large ones are left to others
            assert dtype.startswith("float") or dtype == "uint64"
            continue
        assert both_agree(signatures, text)
        assert tried[1]["x"].tobytes() == array.tobytes()


def test_what_programs_write_is_read() -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(100, 13)).astype(np.float32)
    sparse = rng.integers(0, 1 << 32, (100, 26))
    signatures = {"serving_default": signature(dense="float32", sparse="int64")}
    rows = [{"dense": d, "sparse": s} for d, s in zip(dense.tolist(), sparse.tolist(), strict=True)]
    assert both_agree(
        signatures, json.dumps({"inputs": {"dense": dense.tolist(), "sparse": sparse.tolist()}}).encode()
    )
    assert both_agree(signatures, json.dumps({"instances": rows}).encode())
    assert both_agree({"serving_default": signature(x="float32")}, b'{"instances": [1.0, 2.0, 5.0]}')


NUMBERS = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-(10**6), 10**6, places=18).map(lambda value: f"{value:f}"),
    st.tuples(st.integers(0, 10**19), st.integers(-40, 40)).map(lambda pair: f"{pair[0]}E{pair[1]}"),
    st.sampled_from(
        ["-0", "-0.0", "0e0", "01", "1.", ".5", "+1", "NaN", "Infinity", "true", "null", '"1"', "{}"]
    ),
)


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from(DTYPES))
@settings(max_examples=500, deadline=None)
def test_every_number_is_read_as_the_parser_reads_it_or_left_to_it(numbers: list[str], dtype: str) -> None:
    both_agree({"serving_default": signature(x=dtype)}, f'{{"instances":[{",".join(numbers)}]}}'.encode())


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_a_damaged_request_is_never_read_as_another(data: st.DataObject) -> None:
    good = b'{"signature_name":"s","instances":[{"x":[1,-2.5e1],"ids":3},{"x":[true,0],"ids":-4}]}'
    text = bytearray(data.draw(st.sampled_from([good, good.replace(b"true", b"1")])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(
            st.sampled_from([b"", b",", b"]", b"}", b"[", b"{", b'"', b"\\", b"0", b" ", b"\xff", b":"])
        )
        text[at : at + data.draw(st.integers(0, 2))] = piece
        if not text:
            break
    signatures = {"s": signature(x="float32", ids="int32")}
    try:
        both_agree(signatures, bytes(text))
    except InvalidArgument as error:
        pytest.fail(f"{bytes(text)!r} was read, and should not be: {error}")


def test_signatures_are_told_apart() -> None:
    signatures = {
        "serving_default": signature(x="float32"),
        "ids": signature(x="int64"),
        "names": signature(x="string"),
        "none": signature(),
    }
    readers = Readers(signatures)
    found = readers.read(b'{"signature_name": "ids", "instances": [1]}')
    assert found is not None
    assert (found[0], found[1]["x"].dtype) == ("ids", np.int64)
    found = readers.read(b'{"instances": [1]}')
    assert found is not None
    assert (found[0], found[1]["x"].dtype) == ("", np.float32)
    found = readers.read(b'{"instances": [1], "signature_name": "ids"}')
    assert found is not None
    assert (found[0], found[1]["x"].dtype) == ("ids", np.int64)
    for text in (
        b'{"signature_name": "names", "instances": [1]}',
        b'{"signature_name": "none", "instances": [1]}',
        b'{"signature_name": "other", "instances": [1]}',
    ):
        assert readers.read(text) is None
    assert Readers({"ids": signature(x="int64")}).read(b'{"instances": [1]}') is None
