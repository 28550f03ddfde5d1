"""Rows of the user's own, read from files as a signature takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.input_file import InputError
from fastserve.offline.rows import RowsError, read_rows
from fastserve.savedmodel import Port, Signature

FLOAT, INT64 = 1, 9
SIGNATURE = Signature(
    "rank",
    "",
    (Port("dense", "d:0", FLOAT, (-1, 2)), Port("ids", "i:0", INT64, (-1,), default=b"\x08\x09")),
    (),
)
# Without rows: one request has two of them, and a number.
WHOLE = Signature("two", "", (Port("k", "k:0", INT64, ()), Port("x", "x:0", FLOAT, (2,))), ())
# Every request has four rows.
FOUR = Signature("four", "", (Port("x", "x:0", FLOAT, (4, 1)), Port("y", "y:0", FLOAT, (4,))), ())
# Beside rows, a vector that belongs to the request.
BESIDE = Signature("beside", "", (Port("by", "b:0", FLOAT, (1,)), Port("x", "x:0", FLOAT, (-1, 2))), ())


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "rows.npz", **arrays)
    return path / "rows.npz"


def test_rows_are_cut_into_requests_of_sizes_in_turn(tmp_path: Path) -> None:
    file = npz(tmp_path, dense=np.arange(14.0).reshape(7, 2), ids=np.arange(7))
    rows = read_rows(file, lambda _: SIGNATURE, defaults=False)
    assert rows.count == 7 and rows.tensors["ids"].dtype == INT64
    cut = [request["ids"].array.tolist() for request in rows.in_requests([1, 3])]
    assert cut == [[0], [1, 2, 3], [4], [5, 6]]


def test_what_has_a_default_may_be_left_out_where_the_caller_says_so(tmp_path: Path) -> None:
    file = npz(tmp_path, dense=np.zeros((3, 2)))
    assert list(read_rows(file, lambda _: SIGNATURE, defaults=True).tensors) == ["dense"]
    with pytest.raises(RowsError, match="lacks ids: a value is wanted for every input"):
        read_rows(file, lambda _: SIGNATURE, defaults=False)
    with pytest.raises(RowsError, match="takes dense, ids; the file lacks dense"):
        read_rows(npz(tmp_path, ids=np.arange(3)), lambda _: SIGNATURE, defaults=True)


def test_a_file_may_say_for_which_signature_it_is(tmp_path: Path) -> None:
    named: list[str | None] = []

    def choose(name: str | None) -> Signature:
        named.append(name)
        return SIGNATURE

    file = tmp_path / "rows.json"
    rows = [{"dense": [1, 2], "ids": 3}]
    for content in ({"instances": rows}, {"instances": rows, "signature_name": "rank"}):
        file.write_text(json.dumps(content))
        assert read_rows(file, choose, defaults=True).count == 1
    assert named == [None, "rank"]
    file.write_text(json.dumps({"examples": [{"a": 1}]}))
    with pytest.raises(InputError, match="has examples"):
        read_rows(file, choose, defaults=True)


def test_a_signature_without_rows_takes_the_file_as_a_whole(tmp_path: Path) -> None:
    file = npz(tmp_path, k=np.int64(5), x=np.zeros(2))
    rows = read_rows(file, lambda _: WHOLE, defaults=False)
    assert rows.count == 1 and rows.tensors["k"].array == 5
    (request,) = rows.in_requests([1, 32])
    assert request["x"].array.tolist() == [0.0, 0.0]
    with pytest.raises(RowsError, match=r"input x has the shape \[3\]; the signature takes \[2\]"):
        read_rows(npz(tmp_path, k=np.int64(5), x=np.zeros(3)), lambda _: WHOLE, defaults=False)


def test_where_a_request_has_so_many_rows_all_are_cut_to_that_size(tmp_path: Path) -> None:
    file = npz(tmp_path, x=np.arange(6.0).reshape(6, 1), y=np.arange(6.0))
    rows = read_rows(file, lambda _: FOUR, defaults=False)
    assert rows.count == 6
    assert [r["y"].array.tolist() for r in rows.in_requests([1, 3])] == [[0, 1, 2, 3], [4, 5, 0, 1]]
    with pytest.raises(RowsError, match="as many rows as the others: x 4, y 2"):
        read_rows(npz(tmp_path, x=np.zeros((4, 1)), y=np.zeros(2)), lambda _: FOUR, defaults=False)


def test_an_input_without_rows_goes_along_with_those_that_have_some(tmp_path: Path) -> None:
    file = npz(tmp_path, by=np.array([0.5]), x=np.zeros((5, 2)))
    rows = read_rows(file, lambda _: BESIDE, defaults=False)
    sizes = [(len(r["x"].array), r["by"].array.tolist()) for r in rows.in_requests([3])]
    assert sizes == [(3, [0.5]), (2, [0.5])]
    with pytest.raises(RowsError, match=r"input by has the shape \[5\]; the signature takes \[1\]"):
        read_rows(npz(tmp_path, by=np.zeros(5), x=np.zeros((5, 2))), lambda _: BESIDE, defaults=False)
