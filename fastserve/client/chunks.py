"""How predict_many cuts rows into chunks."""

from __future__ import annotations

from collections.abc import Callable

# By default no chunk is smaller: below this a call's own cost outweighs what running side by side saves.
MIN_ROWS = 32

Chooser = Callable[[int], tuple[list[int], int]]


def chooser(chunk_rows: int | None, parallel: int | None, connections: int) -> Chooser:
    """A function from the number of rows to the chunks' rows and how many may be under way at once. Rows
    below 0 mean that the inputs do not have the same number: ValueError."""
    for name, number in (("chunk_rows", chunk_rows), ("parallel", parallel)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"{name} is a whole number, not {number!r}")
        if number is not None and number < 1:
            raise ValueError(f"{name} is at least 1, not {number}")

    def choose(rows: int) -> tuple[list[int], int]:
        if rows < 0:
            raise ValueError(
                "predict_many needs inputs with the same number of rows, their first dimension: "
                "repeat what stands for all rows, or call predict"
            )
        at_once = parallel or max(1, connections)
        if chunk_rows is not None:
            count = -(-rows // chunk_rows)
            return [min(chunk_rows, rows - i * chunk_rows) for i in range(count)], parallel or max(1, count)
        count = max(1, min(at_once, rows // MIN_ROWS))
        return [rows * (i + 1) // count - rows * i // count for i in range(count)], at_once

    return choose
