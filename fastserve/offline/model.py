"""An open model: runs of its signatures, in numpy's tensors, and what they cost."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from fastserve._native.runtime import Inputs, Model, RuntimeFailure
from fastserve.offline.tensors import RECORDED, Style, Tensor, from_native, sample, styles_for
from fastserve.savedmodel import Signature

# One measurement of one batch size takes about this long, and never fewer or more runs than these.
_MEASURE_US = 100_000
_MEASURE_RUNS = (3, 101)
# Rows of a sample that shows what a model accepts: enough that values which it refuses are likely to be among
# them, and then few, for models that take no more.
_STYLE_ROWS = (8, 2)
# Sleeping hardware, page faults and other processes: a run that compiles nothing is settled after so many.
_SETTLE_RUNS = 2


class Cache(Protocol):
    """A compile cache that may be why a run has failed."""

    def blame(self, error: RuntimeFailure) -> None:
        """Raises if it is."""


class OpenModel:
    """Runs signatures of an open model. Samples are the same in every process that opens one version."""

    def __init__(
        self,
        model: Model,
        cache: Cache | None = None,
        recorded: Mapping[str, tuple[Tensor, ...]] | None = None,
    ) -> None:
        """`recorded`: by signature, rows that it is known to take."""
        self._model = model
        self._cache = cache
        self._recorded = recorded or {}
        self._rng = np.random.default_rng(20240229)

    def close(self) -> None:
        self._model.close()

    def sample(self, signature: Signature, rows: int, style: Style) -> list[Tensor]:
        """Inputs of so many rows, or of as many as the signature says."""
        if style == RECORDED:
            pool = self._recorded[signature.name]
            counted = [signature.counts_rows(port) for port in signature.inputs]
            total = next((len(t.array) for t, with_rows in zip(pool, counted, strict=True) if with_rows), 1)
            # All before any again.
            chosen = np.resize(self._rng.permutation(total), signature.own_rows or rows)
            return [
                Tensor(tensor.dtype, tensor.array[chosen]) if with_rows else tensor
                for tensor, with_rows in zip(pool, counted, strict=True)
            ]
        return [sample(port, rows, style, self._rng) for port in signature.inputs]

    def sample_bytes(self, signature: Signature, rows: int, style: Style) -> int:
        """About what a sample takes."""
        if style == RECORDED:
            return sum(t.array.nbytes // len(t.array) * rows for t in self._recorded[signature.name])
        total = 0
        for port in signature.inputs:
            size = 16 + sum(len(feature.name) + 8 * (feature.count or 2) for feature in port.features)
            for axis, dim in enumerate(port.dims or ()):
                size *= dim if dim >= 0 else rows if axis == 0 else max(style.inner, 1)
            total += size
        return total

    def run(self, signature: Signature, inputs: Sequence[Tensor], *, compiled: bool = False) -> list[Tensor]:
        """The outputs in the order of their aliases. RuntimeFailure when the run fails, or what the
        compile cache raises when it may be why."""
        native = [tensor.native() for tensor in inputs]
        try:
            outputs = self._model.run(signature.name, native, compiled=compiled)
        except RuntimeFailure as error:
            if compiled and self._cache is not None:
                self._cache.blame(error)
            raise
        return [from_native(out) for out in outputs]

    def find_style(self, signature: Signature, rows: Sequence[int] = _STYLE_ROWS) -> Style:
        """The first way to make up samples, of one of so many `rows`, that the signature accepts.
        RuntimeFailure, of the first one, when it accepts none."""
        failure: RuntimeFailure | None = None
        styles = styles_for(signature)
        if signature.name in self._recorded:
            styles.insert(0, RECORDED)
        for size, style in itertools.product(rows, styles):
            try:
                self.run(signature, self.sample(signature, size, style))
                return style
            except RuntimeFailure as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def cost_us(
        self, signature: Signature, inputs: Sequence[Tensor], variants: Sequence[bool]
    ) -> list[float]:
        """The median time of a run for each of `variants` (compiled or not), measured in turn, so that a
        machine that slows down meanwhile favours none."""
        fed = Inputs([tensor.native() for tensor in inputs])
        settled = [
            self._model.time(signature.name, fed, compiled=compiled, repeats=_SETTLE_RUNS)[-1]
            for compiled in variants
        ]
        least, most = _MEASURE_RUNS
        runs = max(least, min(most, int(_MEASURE_US / (max(settled) + 1))))
        took: list[list[float]] = [[] for _ in variants]
        for done in range(0, runs, 8):
            for times, compiled in zip(took, variants, strict=True):
                repeats = min(8, runs - done)
                times.extend(self._model.time(signature.name, fed, compiled=compiled, repeats=repeats))
        return [statistics.median(times) for times in took]
