"""What a signature says of itself."""

from __future__ import annotations

import pytest

from fastserve.savedmodel import Port, Signature


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(32, 8)], 32),
        ([(32, 8), (32,)], 32),
        ([(32, 8), (16,)], None),
        ([(32, 8), ()], None),
        ([(32, 8), None], None),
        ([(32, 8), (-1, 8)], None),
        ([(-1, 8)], None),
        ([()], None),
        ([(0, 8)], None),
        ([], None),
    ],
)
def test_rows_that_a_signature_is_fixed_to(shapes: list[tuple[int, ...] | None], rows: int | None) -> None:
    ports = [Port(f"x{i}", f"x{i}:0", 1, dims) for i, dims in enumerate(shapes)]
    assert Signature("score", "", tuple(ports), ()).own_rows == rows
