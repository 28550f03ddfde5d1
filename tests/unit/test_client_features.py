"""What cannot be packed is refused by name; where results go; threads and forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastserve.client.examples import encode_input
from fastserve.client.features import (
    Bucketize,
    ColumnError,
    Cross,
    Dense,
    Hash,
    Lookup,
    Packer,
    Vocabulary,
    bucketize,
    cross,
    fingerprint64,
    hash_buckets,
    pack,
)
from fastserve.errors import FastServeError

FLOATS = np.array([1.5, 2.5])
VOCABULARY = Vocabulary(["a", "b"])
NUMBERS = Vocabulary([1, 2])


@pytest.mark.parametrize(
    "do,why",
    [
        (lambda: hash_buckets(FLOATS, 9), "column: floats are not hashed"),
        (lambda: fingerprint64(FLOATS), "column: floats are not hashed"),
        (lambda: cross([FLOATS, FLOATS], 9), "column 0: floats are not hashed"),
        (lambda: cross([["a"], [1, 2]], 9), "column 1: has 2 rows where other columns have 1"),
        (lambda: cross([[[1, 2]], [1]], 9), r"column 0: a column that is crossed is \[n\] or \[n, 1\]"),
        (lambda: cross([np.array([2**63], np.uint64), [1]], 9), "column 0: holds numbers of 2.63"),
        (lambda: bucketize(["a"], [1]), "column: holds strings where numbers"),
        (lambda: pack([["a"]]), "column 0: holds strings where numbers"),
        (lambda: pack([[1, 2], [1]]), "column 1: has 1 rows where other columns have 2"),
        (lambda: pack([FLOATS], dtype="int64"), "column 0: holds floats, which are not packed into int64"),
        (lambda: pack([[1]], dtype="int32"), "column 0: holds numbers that may not fit int32"),
        (lambda: VOCABULARY.lookup([1]), "column: holds integers, but the vocabulary strings"),
        (lambda: NUMBERS.lookup(["a"]), "column: holds strings, but the vocabulary integers"),
        (lambda: NUMBERS.lookup(FLOATS), "column: floats are not hashed"),
        (lambda: NUMBERS.lookup(np.array([2**63], np.uint64)), "column: holds numbers of 2.63"),
        (lambda: Vocabulary(["a", "b", "a"]), "terms: the term at 2 stands there before as well"),
        (lambda: Vocabulary([5, 5]), "terms: the term at 1 stands there before as well"),
        (lambda: Vocabulary([]), "terms: there are none"),
        (lambda: Vocabulary([["a"], ["b"]]).lookup(["a", None]), "column: row 1 is None"),
        (lambda: Vocabulary(FLOATS), "terms: floats are not hashed"),
        (lambda: Vocabulary(["a"], mask_token=3), "terms: 3 is none of its values"),
        (lambda: hash_buckets(["a"], 9, mask_value=3), "column: 3 is none of its values"),
        (lambda: Vocabulary(["a"], oov_buckets=0).lookup(["a", "x"]), "row 1 holds a term that the vocab"),
        (lambda: Packer({"x": Hash("no", 5)})({"a": [1]}), "no: there is no such column"),
        (lambda: Packer({"x": [Hash("a", 5), Hash("b", 5)]})({"a": [1], "b": [1, 2]}), "b: has 2 rows"),
    ],
)
def test_columns_that_cannot_be_packed(do: Any, why: str) -> None:
    with pytest.raises(ColumnError, match=why) as caught:
        do()
    assert isinstance(caught.value, FastServeError)


@pytest.mark.parametrize(
    "do,why",
    [
        (lambda: hash_buckets(["a"], 0), "at least one is needed"),
        (lambda: hash_buckets(["a"], 5, kind="slow"), 'kind=.slow.: "fast" or "strong"'),
        (lambda: hash_buckets(["a"], 5, kind="strong"), "a key is for"),
        (lambda: hash_buckets(["a"], 5, key=3), "a key is for"),
        (lambda: hash_buckets(["a"], 5, kind="strong", key=(1, 2, 3)), "two integers"),
        (lambda: hash_buckets(["a"], 5, threads=0), "threads=0"),
        (lambda: cross([["a"]], 5), "two columns at least"),
        (lambda: cross([["a"], ["b"]], 0), "at least one is needed"),
        (lambda: bucketize([1], [2, 1]), "boundaries do not ascend"),
        (lambda: bucketize([1], [float("nan")]), "boundaries do not ascend"),
        (lambda: Vocabulary(["a"], oov_buckets=-1), "0 at least"),
        (lambda: Vocabulary(["a"], default=1), "a default is for oov_buckets=0"),
        (lambda: Vocabulary(["a"], oov="mod"), "for integers"),
        (lambda: Vocabulary(["a"], oov="mix"), '"hash" or "mod"'),
        (lambda: Vocabulary([1], oov="mod", key=3), "a key is for"),
        (lambda: pack([]), "no columns"),
        (lambda: pack([[1]], dtype="float16"), "float32, float64, int32 or int64"),
        (lambda: pack([[1], [2]], mean=[1, 2, 3]), "mean: 3 values for 2 columns of 2 items"),
        (lambda: pack([[1]], dtype="int64", mean=2), "integers are packed as they are"),
        (lambda: hash_buckets(["a"], 5, out=np.empty(2, np.int64)), r"out: int64\[2\]; a writeable int64 or"),
        (lambda: hash_buckets(["a"], 5, out=np.empty(1, np.float32)), "out: float32"),
        (lambda: hash_buckets(["a"], 2**40, out=np.empty(1, np.int32)), "do not fit int32"),
        (lambda: Packer({"x": []}), "a feature or a list of features"),
        (lambda: Packer({"x": ["a"]}), "a feature or a list of features"),  # type: ignore[list-item]
        (lambda: Packer({"x": [Hash("a", 5), Dense("b")]}), "have one dtype"),
    ],
)
def test_arguments_that_are_wrong(do: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        do()


def test_columns_of_a_matrix_are_written_in_place() -> None:
    columns = [[f"{i}-{row}" for row in range(50)] for i in range(26)]
    matrix = np.full((50, 28), -1)
    for i, column in enumerate(columns):
        hash_buckets(column, 1000, out=matrix[:, i + 1])
    for i, column in enumerate(columns):
        np.testing.assert_array_equal(matrix[:, i + 1], hash_buckets(column, 1000))
    assert (matrix[:, [0, 27]] == -1).all()
    upside_down = np.zeros((50, 3), np.int32)
    hash_buckets(columns[0], 1000, out=upside_down[::-1, 1])
    np.testing.assert_array_equal(upside_down[::-1, 1], matrix[:, 1])
    assert (upside_down[:, [0, 2]] == 0).all()


def test_an_array_that_cannot_be_written_is_refused() -> None:
    out = np.empty(1, np.int64)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        hash_buckets(["a"], 5, out=out)


def test_what_is_missing_is_filled() -> None:
    masked = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    columns = [[1.0, None, float("nan")], np.array([None, 2, 3], object), masked]
    expected = [[1, -1, 1], [-1, 2, -1], [-1, 3, 3]]
    np.testing.assert_array_equal(pack(columns, fill=-1), expected)
    found = pack(columns, fill=[5, 6, 7], mean=1, scale=[1, 1, 2])
    np.testing.assert_array_equal(found, [[0, 5, 0], [4, 1, 12], [4, 2, 4]])


def test_integers_are_packed_exactly() -> None:
    big = np.array([2**62 + 1, -(2**62) - 1])
    small = np.array([[1, 2], [3, 4]], np.uint16)
    found = pack([big, small, [True, False]], dtype="int64")
    np.testing.assert_array_equal(found, [[2**62 + 1, 1, 2, 1], [-(2**62) - 1, 3, 4, 0]])
    assert pack([small, np.array([5, 6], np.int32)], dtype="int32").dtype == np.int32


def test_empty_columns() -> None:
    assert hash_buckets([], 5).shape == (0,)
    assert hash_buckets(np.empty((0, 3), "S4"), 5).shape == (0, 3)
    assert VOCABULARY.lookup([]).shape == (0,)
    assert NUMBERS.lookup(np.empty((3, 0), object)).shape == (3, 0)
    assert bucketize([], [1]).shape == (0,)
    assert pack([[], []]).shape == (0, 2)
    packer = Packer({"x": [Hash("a", 5), Lookup("a", VOCABULARY), Bucketize("b", [1])], "y": Dense("b")})
    made = packer({"a": [], "b": []})
    assert made["x"].shape == (0, 3) and made["y"].shape == (0, 1)


def test_shapes_of_a_packers_inputs() -> None:
    raw = {"a": ["x", "y"], "b": np.array([[1, 2], [3, 4]])}
    made = Packer(
        {
            "alone": Hash("a", 5),
            "wide": Hash("b", 5),
            "cross": Cross(["a", "a"], 5),
            "dense": Dense("b"),
            "matrix": [Hash("a", 5)],
        }
    )(raw)
    shapes = {name: array.shape for name, array in made.items()}
    assert shapes == {"alone": (2,), "wide": (2, 2), "cross": (2,), "dense": (2, 2), "matrix": (2, 1)}


def test_a_vocabulary_file_must_have_terms(tmp_path: Path) -> None:
    path = tmp_path / "terms"
    path.write_bytes(b"5\r\n-7\n")
    numbers = Vocabulary.from_file(path, dtype="int64", oov_buckets=0, default=-1)
    np.testing.assert_array_equal(numbers.lookup([-7, 5, 6]), [1, 0, -1])
    path.write_bytes(b"a\n\nb\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        Vocabulary.from_file(path)
    path.write_bytes(b"1\n9223372036854775808\n")
    with pytest.raises(ValueError, match="line 2 is '9223372036854775808', not an int64"):
        Vocabulary.from_file(path, dtype="int64")
    with pytest.raises(ValueError, match="dtype"):
        Vocabulary.from_file(path, dtype="float")


def test_the_terms_are_copied() -> None:
    terms = np.array([b"a", b"b"])
    vocabulary = Vocabulary(terms)
    terms[:] = b"x"
    np.testing.assert_array_equal(vocabulary.lookup(["a", "b", "x"]), [1, 2, 0])


def _rows(n: int) -> list[np.ndarray]:
    return [np.arange(n) * (i + 1) for i in range(8)]


def test_a_forked_child_packs_with_threads_of_its_own() -> None:
    columns = _rows(20_000)
    expected = [hash_buckets(column, 1000, threads=3) for column in columns]
    child = os.fork()
    if child == 0:
        good = False
        try:
            found = [hash_buckets(column, 1000, threads=3) for column in columns]
            good = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        finally:
            os._exit(0 if good else 1)
    deadline = time.monotonic() + 30
    status = None
    while status is None and time.monotonic() < deadline:
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status == 0


def test_many_threads_pack_at_once() -> None:
    packer = Packer(
        {"ids": [Hash(f"c{i}", 1000) for i in range(8)], "dense": Dense([f"c{i}" for i in range(8)])}
    )
    raw = {f"c{i}": column for i, column in enumerate(_rows(5_000))}
    expected = packer(raw, threads=1)
    wrong = []

    def work() -> None:
        for _ in range(20):
            made = packer(raw, threads=2)
            if not all(np.array_equal(made[name], expected[name]) for name in expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_python_threads_run_meanwhile() -> None:
    """With so long a switch interval no thread runs that is not let in of free will."""
    column = np.char.add("some text ", np.arange(400_000).astype(str)).astype("S")
    raw = {"c": column}
    packer = Packer({"x": Hash("c", 1000, kind="strong", key=1)})
    examples = {"c": column[:50_000]}
    ran, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            ran[0] += 1
            time.sleep(0.0001)

    other = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    other.start()
    try:
        sys.setswitchinterval(60)
        for work in (
            lambda: hash_buckets(column, 1000, threads=1),
            lambda: packer(raw, threads=2),
            lambda: encode_input(examples),
        ):
            for _ in range(50):  # the machine may be too busy to let it run at once
                before = ran[0]
                work()
                if ran[0] > before:
                    break
            assert ran[0] > before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()
