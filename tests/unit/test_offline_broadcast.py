"""Inputs that may come with one row: which versions have them, and recorded requests with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastserve.errors import ModelError
from fastserve.offline.broadcast import check_broadcast, spread
from fastserve.offline.tensors import STRING, Tensor
from fastserve.savedmodel import Port, Signature


def port(alias: str, *dims: int, dtype: int = 1) -> Port:
    return Port(alias, f"{alias}:0", dtype, dims)


RANK = Signature("rank", "", (port("cand", -1, 2), port("user", -1, 3), port("word", -1, dtype=STRING)), ())
SCALED = Signature("scaled", "", (port("scale"), Port("user", "u:0", 1, None)), ())
FIXED = Signature("fixed", "", (port("cand", -1), port("weights", 3)), ())
INIT = Signature("__saved_model_init_op", "", (), ())


@pytest.mark.parametrize("names", [[], ["user"], ["user", "word", "cand"]])
def test_inputs_of_any_signature_may_be_named(names: list[str]) -> None:
    check_broadcast("m", names, (INIT, RANK, SCALED, FIXED))


@pytest.mark.parametrize(
    ("name", "signatures", "why"),
    [
        (
            "usr",
            (INIT, RANK, FIXED),
            "'usr' is no input of it; there are rank: cand, user, word; fixed: cand, weights",
        ),
        ("user", (INIT,), "'user' is no input of it; there are none"),
        (
            "scale",
            (RANK, SCALED),
            "'scale' has the shape []: its first dimension does not follow the request's rows",
        ),
        (
            "weights",
            (FIXED,),
            "'weights' has the shape [3]: its first dimension does not follow the request's rows",
        ),
    ],
)
def test_other_names_are_refused_with_what_there_is(
    name: str, signatures: tuple[Signature, ...], why: str
) -> None:
    with pytest.raises(ModelError) as caught:
        check_broadcast("ranker", ["user"] * (RANK in signatures) + [name], signatures)
    assert str(caught.value) == f"model 'ranker', batching.broadcast: {why}"


def tensors(cand: int, user: int, word: int) -> tuple[Tensor, ...]:
    words = np.array([b"w"] * word, object)
    arrays: tuple[Any, ...] = (
        np.arange(cand * 2.0).reshape(cand, 2),
        np.arange(user * 3.0).reshape(user, 3),
        words,
    )
    return tuple(Tensor(dtype, array) for dtype, array in zip((1, 1, STRING), arrays, strict=True))


# Rows of cand, user and word, of which the last two may have one; and what becomes of them.
SPREAD = [
    ((4, 1, 1), (4, 4, 4)), ((4, 1, 4), (4, 4, 4)), ((4, 4, 4), (4, 4, 4)), ((1, 1, 1), (1, 1, 1)),
    ((0, 1, 1), (0, 0, 0)), ((1, 1, 4), (1, 1, 4)), ((4, 1, 3), (4, 1, 3)), ((1, 4, 4), (1, 4, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "become"), SPREAD)
def test_rows_of_a_recorded_request(rows: tuple[int, int, int], become: tuple[int, int, int]) -> None:
    given = tensors(*rows)
    found = spread(RANK, ["user", "word"], given)
    assert tuple(len(tensor.array) for tensor in found) == become
    for before, after in zip(given, found, strict=True):
        assert after.array.shape[1:] == before.array.shape[1:]
        last = len(before.array) - 1
        assert all(np.all(row == before.array[min(i, last)]) for i, row in enumerate(after.array))
        # As a runtime takes it.
        dtype, shape, values = after.native()
        assert (dtype, shape) == (before.dtype, after.array.shape)
        assert len(values) == after.array.size * (1 if dtype == STRING else 8)


def test_inputs_that_are_not_named_stay_as_they_are() -> None:
    given = tensors(4, 1, 4)
    assert spread(RANK, (), given) == given
    assert spread(RANK, ["word"], given) == given


def test_inputs_without_rows_have_no_say() -> None:
    scalar, row = Tensor(1, np.array(2.0, np.float32)), Tensor(1, np.ones((1, 3)))
    assert spread(SCALED, ["user"], [scalar, row]) == (scalar, row)
    weights, many = Tensor(1, np.ones(3)), Tensor(1, np.ones(5))
    signature = Signature("s", "", (port("cand", -1), port("user", -1), port("weights", 3)), ())
    found = spread(signature, ["user", "weights"], [many, Tensor(1, np.ones(1)), weights])
    assert [len(tensor.array) for tensor in found] == [5, 5, 3]
