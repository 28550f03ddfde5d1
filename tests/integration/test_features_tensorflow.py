"""Packed features against TensorFlow's ops and Keras's layers, which define what they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

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

_binary = st.one_of(st.binary(max_size=20), st.binary(min_size=0, max_size=300))
_int64 = st.one_of(st.integers(-300, 300), st.integers(-(2**63), 2**63 - 1))
_key = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
_ways = settings(max_examples=60, deadline=None)

EVERY_LENGTH = [bytes(range(n % 251)) + bytes(n - n % 251) for n in range(400)]
KINDS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_]


def _keras(layer: Any, values: Any) -> np.ndarray:
    return np.asarray(layer(values))


# ---- hashes -----------------------------------------------------------------------------------------


@given(st.lists(_binary, min_size=1, max_size=20))
@example(EVERY_LENGTH)
@_ways
def test_fingerprints(texts: list[bytes]) -> None:
    expected = tf.fingerprint(tf.constant(texts)).numpy().view(np.uint64)[:, 0]
    np.testing.assert_array_equal(fingerprint64(texts), expected)


@given(st.lists(_binary, min_size=1, max_size=20), st.integers(1, 2**62), _key)
@example(EVERY_LENGTH, 1 << 40, (7, 9))
@_ways
def test_hash_buckets_of_strings(texts: list[bytes], n: int, key: tuple[int, int]) -> None:
    np.testing.assert_array_equal(hash_buckets(texts, n), tf.strings.to_hash_bucket_fast(texts, n))
    np.testing.assert_array_equal(
        hash_buckets(texts, n, kind="strong", key=key),
        tf.strings.to_hash_bucket_strong(texts, n, key=list(key)),
    )


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
@example(["", "Zürich", "\U0001f600" * 30, "x" * 100])
@_ways
def test_hash_buckets_of_text_in_any_form(texts: list[str]) -> None:
    expected = tf.strings.to_hash_bucket_fast(texts, 1000)
    np.testing.assert_array_equal(hash_buckets(texts, 1000), expected)
    np.testing.assert_array_equal(hash_buckets(np.array(texts, object), 1000), expected)
    cut = [text.rstrip("\0") for text in texts]  # as numpy's own arrays have it
    expected = tf.strings.to_hash_bucket_fast(cut, 1000)
    np.testing.assert_array_equal(hash_buckets(np.array(texts), 1000), expected)
    encoded = np.array([text.encode() for text in texts])
    np.testing.assert_array_equal(hash_buckets(encoded, 1000), expected)
    np.testing.assert_array_equal(hash_buckets(encoded[::-1], 1000), expected[::-1])


@given(st.lists(_int64, min_size=1, max_size=30), st.sampled_from([None, 5, (3, 4)]), st.booleans())
@example([0, -1, 10, 99, 100, -(2**63), 2**63 - 1], None, False)
@_ways
def test_hash_buckets_of_integers_as_keras(numbers: list[int], salt: Any, masked: bool) -> None:
    mask = numbers[0] if masked else None
    layer = tf.keras.layers.Hashing(100, mask_value=mask, salt=salt)
    values = np.array(numbers, np.int64)
    kind = "fast" if salt is None else "strong"
    found = hash_buckets(values, 100, kind=kind, key=salt, mask_value=mask)
    np.testing.assert_array_equal(found, _keras(layer, values))


@pytest.mark.parametrize("dtype", KINDS)
def test_hash_buckets_of_every_kind_of_integer(dtype: Any) -> None:
    limits = (0, 1) if dtype is np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.array([limits[0], limits[1], 0, 1], dtype)
    expected = tf.strings.to_hash_bucket_fast(tf.strings.as_string(values), 1 << 50)
    np.testing.assert_array_equal(hash_buckets(values, 1 << 50), expected)


@pytest.mark.parametrize("mask", [None, "", "b"])
@pytest.mark.parametrize("salt", [None, 133, (133, 137)])
@pytest.mark.parametrize("bins", [1, 2, 3, 50])
def test_hash_buckets_of_strings_as_keras(mask: str | None, salt: Any, bins: int) -> None:
    values = np.array([["a", "b", ""], ["b", "c", "d"]])
    layer = tf.keras.layers.Hashing(bins, mask_value=mask, salt=salt)
    kind = "fast" if salt is None else "strong"
    found = hash_buckets(values, bins, kind=kind, key=salt, mask_value=mask)
    np.testing.assert_array_equal(found, _keras(layer, values))


# ---- crosses ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(_binary, _int64, _binary), min_size=1, max_size=20), st.integers(1, 2**62))
@_ways
def test_crosses(rows: list[tuple[bytes, int, bytes]], n: int) -> None:
    a, b, c = [row[0] for row in rows], np.array([row[1] for row in rows]), [row[2] for row in rows]
    columns = [tf.constant(values)[:, None] for values in (a, b, c)]
    for key in (None, 1, 2**62):
        expected = tf.sparse.to_dense(tf.sparse.cross_hashed(columns, n, key))[:, 0]
        found = cross([a, b, c], n) if key is None else cross([a, b, c], n, key=key)
        np.testing.assert_array_equal(found, expected)


def test_crosses_as_keras() -> None:
    a, b = np.array(["A", "B", "A", "B", "A"]), np.array([101, 101, 101, 102, 102], np.int32)
    layer = tf.keras.layers.HashedCrossing(5)
    np.testing.assert_array_equal(cross([a, b], 5), _keras(layer, (a, b)))
    np.testing.assert_array_equal(cross([a[:, None], b], 5), _keras(layer, (a, b)))


# ---- buckets ----------------------------------------------------------------------------------------

# TensorFlow's threads take subnormal numbers for zero.
_float = st.floats(width=32, allow_nan=False, allow_subnormal=False)


@given(
    st.lists(_float, min_size=1, max_size=20),
    st.lists(_float, max_size=40).map(sorted),
    st.sampled_from([np.float32, np.float64]),
)
@_ways
def test_buckets_of_floats(values: list[float], boundaries: list[float], dtype: Any) -> None:
    with np.errstate(over="ignore"):
        column = np.array(values + boundaries + [math.nan, math.inf, -math.inf], dtype)
    expected = tf.raw_ops.Bucketize(input=column, boundaries=boundaries)
    np.testing.assert_array_equal(bucketize(column, boundaries), expected)
    # A boundary is float32, which 0.1 is not.
    tenths = np.arange(30) / 10
    np.testing.assert_array_equal(
        bucketize(tenths, [0.1, 0.3, 0.7]), tf.raw_ops.Bucketize(input=tenths, boundaries=[0.1, 0.3, 0.7])
    )


@given(st.lists(_int64, min_size=1, max_size=20), st.lists(_int64, max_size=9).map(sorted))
@example([2**24, 2**24 + 1, 2**24 + 2], [2**24 + 1])
@_ways
def test_buckets_of_integers(values: list[int], boundaries: list[int]) -> None:
    column = np.array(values)
    floats = [float(boundary) for boundary in boundaries]
    expected = tf.raw_ops.Bucketize(input=column, boundaries=floats)
    np.testing.assert_array_equal(bucketize(column, floats), expected)
    narrow = column.astype(np.int32)
    expected = tf.raw_ops.Bucketize(input=narrow, boundaries=floats)
    np.testing.assert_array_equal(bucketize(narrow, floats), expected)


def test_buckets_as_keras() -> None:
    values = np.array([[-1.5, 1.0, 3.4, 0.5], [0.0, 3.0, 1.3, math.nan]], np.float32)
    layer = tf.keras.layers.Discretization(bin_boundaries=[0.0, 1.0, 2.0])
    np.testing.assert_array_equal(bucketize(values, [0.0, 1.0, 2.0]), _keras(layer, values))
    whole = np.array([-1, 0, 1, 5])
    np.testing.assert_array_equal(bucketize(whole, [0.0, 1.0, 2.0]), _keras(layer, whole))


# ---- vocabularies -----------------------------------------------------------------------------------

_terms = st.lists(st.text(alphabet="abcdeé", min_size=1, max_size=5), min_size=1, max_size=30, unique=True)


@given(_terms, st.integers(1, 4), st.sampled_from([None, "zz", ""]), st.sampled_from([None, 3, (1, 2)]))
@_ways
def test_lookups_of_strings_as_keras(terms: list[str], oov: int, mask: str | None, salt: Any) -> None:
    layer = tf.keras.layers.StringLookup(
        vocabulary=terms, num_oov_indices=oov, mask_token=mask, salt=salt, oov_method="farmhash"
    )
    vocabulary = Vocabulary(terms, oov_buckets=oov, mask_token=mask, key=salt)
    column = np.array([*terms, "zz", "", "q", "qq", "ab"], object)
    found = vocabulary.lookup(column)
    np.testing.assert_array_equal(found, _keras(layer, tf.constant(column)))
    assert len(vocabulary) == layer.vocabulary_size()
    assert found.max() < len(vocabulary)


@pytest.mark.parametrize("oov", [1, 2, 5])
@pytest.mark.parametrize("mask", [None, 0, -7])
@pytest.mark.parametrize("method", ["floormod", "farmhash"])
def test_lookups_of_integers_as_keras(oov: int, mask: int | None, method: str) -> None:
    terms = [12, -36, 1138, 2**62, 42]
    layer = tf.keras.layers.IntegerLookup(
        vocabulary=np.array(terms), num_oov_indices=oov, mask_token=mask, oov_method=method
    )
    vocabulary = Vocabulary(
        np.array(terms), oov_buckets=oov, mask_token=mask, oov="mod" if method == "floormod" else "hash"
    )
    column = np.array([[*terms, 0, -7], [1, 2, -3, -4, -(2**63), 2**63 - 1, 99]])
    np.testing.assert_array_equal(vocabulary.lookup(column), _keras(layer, column))
    assert len(vocabulary) == layer.vocabulary_size()
    if method == "floormod":
        by_default = Vocabulary(terms, oov_buckets=oov, mask_token=mask)
        np.testing.assert_array_equal(by_default.lookup(column), _keras(layer, column))


@given(_terms, st.integers(1, 5))
@_ways
def test_lookups_as_static_vocabulary_tables(terms: list[str], oov: int) -> None:
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(terms, tf.range(len(terms), dtype=tf.int64)), oov
    )
    column = np.array([*terms, "", "q", "qq", "ab", "x" * 100], object)
    vocabulary = Vocabulary(terms, oov_buckets=oov, oov_first=False)
    np.testing.assert_array_equal(vocabulary.lookup(column), table.lookup(tf.constant(column)))
    assert len(vocabulary) == table.size()
    numbers = tf.constant([len(term) * 7919 for term in terms], tf.int64)
    unique, _ = tf.unique(numbers)
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(unique, tf.range(len(unique), dtype=tf.int64)),
        oov,
        lookup_key_dtype=tf.int64,
    )
    vocabulary = Vocabulary(unique.numpy(), oov_buckets=oov, oov_first=False)
    values = np.array([*numbers.numpy(), 0, 1, -5, 2**40])
    np.testing.assert_array_equal(vocabulary.lookup(values), table.lookup(tf.constant(values)))


@pytest.mark.parametrize(
    "content", [b"a\nb\nc\n", b"a\nb\nc", b"a\r\nb\r\n", b"\xff\n x \n", "é\nü\n".encode()]
)
def test_vocabularies_from_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes(content)
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(path),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        2,
    )
    column = [b"a", b"b", b"c", b"", b"\xff", b" x ", "é".encode(), "ü".encode(), b"a\r", b"none"]
    vocabulary = Vocabulary.from_file(path, oov_buckets=2, oov_first=False)
    np.testing.assert_array_equal(vocabulary.lookup(column), table.lookup(tf.constant(column)))
    assert len(vocabulary) == table.size()


def test_a_large_vocabulary() -> None:
    terms = np.char.add("term", np.arange(200_000).astype(str))
    vocabulary = Vocabulary(terms)
    np.testing.assert_array_equal(vocabulary.lookup(terms[::-1]), np.arange(200_000)[::-1] + 1)
    np.testing.assert_array_equal(vocabulary.lookup(np.char.add("no", terms[:1000])), np.zeros(1000, int))
    numbers = np.arange(200_000) * 2**32
    vocabulary = Vocabulary(numbers, oov_buckets=0, default=-1)
    np.testing.assert_array_equal(vocabulary.lookup(numbers), np.arange(200_000))
    assert (vocabulary.lookup(numbers + 1) == -1).all()
    assert vocabulary.nbytes < 200_000 * 32


# ---- dense ------------------------------------------------------------------------------------------


def _dense(columns: list[np.ndarray], dtype: str, fill: Any, log1p: Any, mean: Any, scale: Any) -> np.ndarray:
    wide = np.concatenate([np.atleast_2d(column.T).T.astype(np.float64) for column in columns], 1)
    x = np.where(np.isnan(wide), fill, wide)
    x = np.where(log1p, np.log1p(x), x)
    return ((x - mean) * scale).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 7, 255, 256, 1000])
def test_dense_matrices(dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    columns = [
        rng.normal(size=n).astype(np.float32),
        rng.normal(size=(n, 5)),
        rng.normal(size=(n, 12)).astype(np.float32),
        rng.normal(size=(n, 12)).astype(np.float32)[:, ::3],
        rng.integers(0, 99, n),
        rng.integers(0, 99, (n, 2)).astype(np.int32),
        *[rng.integers(0, 2, n).astype(kind) for kind in KINDS],
        rng.normal(size=n).astype(np.float16),
        rng.normal(size=n).astype(">f4"),
    ]
    for column in columns[:3]:
        column[rng.random(column.shape) < 0.1] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_array_equal(pack(columns, dtype=dtype), _dense(columns, dtype, 0, False, 0, 1))
        total = 1 + 5 + 12 + 4 + 1 + 2 + len(KINDS) + 2
        mean, scale = rng.normal(size=total), rng.normal(size=total)
        fill = rng.normal(size=total)
        np.testing.assert_array_equal(
            pack(columns, dtype=dtype, fill=fill, mean=mean, scale=scale),
            _dense(columns, dtype, fill, False, mean, scale),
        )
        logs = rng.random(total) < 0.5
        np.testing.assert_allclose(
            pack(columns, dtype=dtype, log1p=logs, mean=0.5),
            _dense(columns, dtype, 0, logs, 0.5, 1),
            rtol=1e-6 if dtype == "float32" else 1e-14,
            atol=1e-15,
        )


# ---- all together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 1000, 20_000])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_packer_makes_a_models_inputs(n: int, threads: int | None) -> None:
    rng = np.random.default_rng(n)
    users = rng.integers(0, 10**12, n)
    cities = np.array(["Oslo", "Rome", "Zürich", "?"])[rng.integers(0, 4, n)]
    history = rng.integers(0, 10**6, (n, 4)).astype(str).astype(object)
    ages = rng.integers(0, 90, n).astype(np.float32)
    prices = rng.lognormal(size=(n, 2))
    packer = Packer(
        {
            "sparse": [
                Hash("user", 1000),
                Lookup("city", Vocabulary(["Rome", "Oslo"])),
                Cross(("user", "city"), 500),
                Bucketize("age", [18, 30, 60]),
                Hash("history", 77, kind="strong", key=3),
            ],
            "history": Hash("history", 50, dtype="int32"),
            "age": Bucketize("age", [18, 30, 60]),
            "cross": Cross(("user", "city"), 500),
            "dense": Dense(["age", "price"], mean=[30, 1], scale=[0.1, 2]),
            "raw": Dense("user", dtype="int64"),
        }
    )
    raw = {"user": users, "city": cities, "history": history, "age": ages, "price": prices, "more": None}
    inputs = packer(raw, threads=threads)
    assert list(inputs) == ["sparse", "history", "age", "cross", "dense", "raw"]
    crossed = tf.sparse.to_dense(
        tf.sparse.cross_hashed([tf.constant(users[:, None]), tf.constant(cities[:, None])], 500)
    )
    lookup = tf.keras.layers.StringLookup(vocabulary=["Rome", "Oslo"])
    strong = tf.strings.to_hash_bucket_strong(history.astype(str), 77, [3, 3])
    buckets = tf.raw_ops.Bucketize(input=ages, boundaries=[18, 30, 60])
    expected = [
        tf.strings.to_hash_bucket_fast(tf.strings.as_string(users), 1000).numpy()[:, None],
        _keras(lookup, cities)[:, None],
        crossed,
        buckets.numpy()[:, None],
        strong,
    ]
    np.testing.assert_array_equal(inputs["sparse"], np.concatenate(expected, 1))
    assert inputs["sparse"].dtype == np.int64
    np.testing.assert_array_equal(inputs["history"], tf.strings.to_hash_bucket_fast(history.astype(str), 50))
    assert inputs["history"].dtype == np.int32
    np.testing.assert_array_equal(inputs["age"], buckets)
    np.testing.assert_array_equal(inputs["cross"], crossed[:, 0])
    dense = _dense([ages, prices], "float32", 0, False, [30, 1, 1], [0.1, 2, 2])
    np.testing.assert_array_equal(inputs["dense"], dense)
    np.testing.assert_array_equal(inputs["raw"], users[:, None])
    out = {name: np.empty_like(array) for name, array in inputs.items()}
    again = packer(raw, out=out, threads=threads)
    for name, array in inputs.items():
        assert again[name] is out[name]
        np.testing.assert_array_equal(again[name], array)


def test_terms_that_are_refused_are_named() -> None:
    vocabulary = Vocabulary(["a"], oov_buckets=0)
    column = np.array(["a"] * 50_000)
    column[[33_333, 40_000]] = "b"
    with pytest.raises(ColumnError, match="row 33333 holds a term"):
        vocabulary.lookup(column)
