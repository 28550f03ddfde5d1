"""Batch sizes as the monitor shows them, from real histograms: one that is just a bound is up to it."""

from __future__ import annotations

import pytest

from fastserve._native.metrics import Histogram
from fastserve.control.telemetry_window import batch_sizes
from fastserve.monitor.clean_names import ROWS


@pytest.mark.parametrize("power", range(13))
def test_a_batch_of_a_power_of_two_is_up_to_it(power: int) -> None:
    rows = 1 << power
    just = Histogram.of([rows], unit=1.0)
    assert batch_sizes(just, 1.0)[-1] == [rows, 1.0]
    assert just.cumulative(ROWS.counted) == [0] * power + [1] * (13 - power)
    # What is more than 2 % above is beyond it, and up to 64 whatever is.
    above = Histogram.of([rows + max(1, rows // 50 + 1)], unit=1.0)
    assert batch_sizes(above, 1.0)[-1] == [2 * rows, 1.0]
