"""All passes, in the order in which they are tried."""

from __future__ import annotations

from fastserve.workshop.passes import (
    columns,
    common,
    crosses,
    fold,
    freeze,
    gathers,
    grappler,
    half,
    onehot,
    prune,
    selects,
    user,
)
from fastserve.workshop.passes.base import Pass

PASSES: tuple[Pass, ...] = (
    prune.PASS,
    freeze.PASS,
    fold.PASS,
    columns.PASS,
    crosses.PASS,
    onehot.PASS,
    common.PASS,
    user.PASS,
    gathers.PASS,
    selects.PASS,
    grappler.PASS,
    half.BFLOAT16,
    half.FLOAT16,
)
