"""What cannot be sent as tf.Examples is refused, by the name of its column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastserve.client import messages
from fastserve.client.examples import ColumnError, Ragged, encode_input, serialize
from fastserve.client.wire import MAX_DEPTH, field_bytes, field_int, varint
from fastserve.errors import FastServeError


@pytest.mark.parametrize(
    "examples,why",
    [
        ({}, "no columns"),
        ("abc", "not str"),
        (7, "not int"),
        ([{"a": 1}, 3], "example 1 is 3"),
        ({"a": [1, 2], "b": [1]}, "b: has 1 rows where other columns have 2"),
        ({"a": "abc"}, "a: 'abc' is one value"),
        ({"a": 5}, "a: has 0 dimensions"),
        ({"a": np.zeros((2, 2, 2))}, "a: has 3 dimensions"),
        ({"a": ["x", 1]}, "a: row 1 is 1, not bytes or str"),
        ({"a": [1, "x"]}, "a: row 0 is 1, not bytes or str"),
        ({"a": np.array([{}, {}], object)}, "a: holds objects such as {}"),
        ({"a": np.array([1, 2], "datetime64[s]")}, r"a: datetime64\[s\] is no type of features"),
        ({"a": np.array([1j, 2])}, "a: complex128 is no type of features"),
        ({"a": np.array([1, 2**63], np.uint64)}, "a: holds numbers of 2.63 and more"),
        ({"a": ["x", "\ud800"]}, "a: row 1 holds a surrogate"),
        ({"a": np.array(["x", "\ud800"])}, "a: row 1 holds a surrogate"),
        ({"a": Ragged([1, 2, 3], [1, 1])}, "a: has 3 values, but its lengths add up to 2"),
        ({"a": Ragged([1, 2, 3], [4, -1])}, "a: lengths are integers"),
        ({"a": Ragged([[1], [2]], [1, 1])}, "a: the values of rows of different lengths"),
        ([{"a": np.zeros((2, 2))}], "a: example 0 has an array of shape"),
    ],
)
def test_refused(examples: Any, why: str) -> None:
    for make in (encode_input, serialize):
        with pytest.raises(ColumnError, match=why) as caught:
            make(examples)
        assert isinstance(caught.value, FastServeError)
        assert isinstance(caught.value, ValueError)


def test_more_than_2_gib_is_refused() -> None:
    text = "x" * (1 << 20)
    with pytest.raises(ColumnError, match="2 GiB"):
        encode_input({"a": [text] * 2100})


def test_a_version_and_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        messages.status_request("m", version=1, label="stable")
    with pytest.raises(ValueError, match="64 bits"):
        messages.status_request("m", version=1 << 63)


@pytest.mark.parametrize(
    "data,why",
    [
        (b"\x0a", "cut short"),
        (b"\x0a\x05ab", "cut short"),
        (b"\x00", "number 0"),
        (b"\x0f", "wire type 7"),
        (b"\x0e", "wire type 6"),
        (b"\x0c", "wire type 4"),
        (b"\x80" * 6, "more than 5 bytes"),
        (b"\x08" + b"\x80" * 10, "more than 10 bytes"),
        (b"\x0b\x14", "a group ends"),
        (b"\x0b\x00", "number 0"),
        (b"\x0b", "cut short"),
        (b"\x0b" * (MAX_DEPTH + 2), "groups within groups"),
        (b"\x08\x01", "a number where a message belongs"),
        (field_bytes(1, field_bytes(1, b"x")), "bytes where a number belongs"),
        (field_bytes(1, field_bytes(3, field_bytes(2, b"\xff"))), "not UTF-8"),
    ],
)
def test_malformed_bytes_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(messages.MessageError, match=why):
        messages.statuses(data)


def test_unknown_fields_are_skipped() -> None:
    unknown = (
        b"\x0b\x08\x01\x13\x14\x15abcd\x11abcdefgh\x0c"  # a group, and one in it
        + b"\x7d1234"
        + b"\x7912345678"
        + field_bytes(15, b"?")
        + field_int(15, 1 << 40)
    )
    status = field_bytes(1, unknown + field_int(1, 9) + unknown)
    assert [one.version for one in messages.statuses(unknown + status + unknown)] == [9]


def test_numbers_keep_their_low_bits() -> None:
    status = field_bytes(1, field_int(1, -5) + field_int(2, (7 << 32) + 30))
    (one,) = messages.statuses(status)
    assert (one.version, one.state) == (-5, messages.VersionState.AVAILABLE)
    assert varint(-1) == b"\xff" * 9 + b"\x01"
