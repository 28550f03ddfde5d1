"""Whether all targets answer alike: rates of servers that do different things say nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastserve.bench.requests import Array
from fastserve.errors import FastServeError


class Disagreement(FastServeError):
    """Two targets gave different answers to one request. The text says which, where and by how much."""


def compare_answers(
    answers: Sequence[tuple[str, Mapping[str, Array]]], rtol: float, atol: float, number: int
) -> None:
    """Raises Disagreement unless all of `answers`, (target, outputs), are like the first.

    A single output may have no name ("", from REST). number: which request it was, for the text.
    """
    first, expected = answers[0]
    for name, outputs in answers[1:]:
        who = f"request {number + 1}: {first} and {name} give"
        if len(outputs) != len(expected) or (set(outputs) != set(expected) and len(expected) > 1):
            raise Disagreement(f"{who} different outputs: {_names(expected)} and {_names(outputs)}")
        for output in expected:
            found = outputs[output] if output in outputs else next(iter(outputs.values()))
            _compare(f"{who} different {output or 'outputs'}", expected[output], found, rtol, atol)


def _names(outputs: Mapping[str, Array]) -> str:
    return ", ".join(outputs) or "none"


def _compare(what: str, expected: Array, found: Array, rtol: float, atol: float) -> None:
    if expected.shape != found.shape:
        raise Disagreement(f"{what}: shapes {list(expected.shape)} and {list(found.shape)}")
    if expected.dtype.kind not in "fiub" or found.dtype.kind not in "fiub":
        same = [_text(value) for value in expected.ravel()] == [_text(value) for value in found.ravel()]
        if not same:
            raise Disagreement(f"{what}: the strings differ")
        return
    left, right = expected.astype(np.float64), found.astype(np.float64)
    wrong = ~np.isclose(right, left, rtol=rtol, atol=atol, equal_nan=True)
    if wrong.any():
        worst = int(np.argmax(np.where(wrong, np.abs(left - right), -1.0)))
        where = [int(i) for i in np.unravel_index(worst, left.shape)]
        raise Disagreement(
            f"{what}: {int(wrong.sum())} of {left.size} values; at {where} {left.ravel()[worst]:.8g} and "
            f"{right.ravel()[worst]:.8g} (rtol {rtol:g}, atol {atol:g})"
        )


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
