"""Packer: from named raw columns to a model's inputs, all in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastserve._native.columns import Column, ColumnError
from fastserve._native.features import Step
from fastserve.client.features_shared import result_of, run_steps
from fastserve.client.features_steps import (
    CROSS_KEY,
    bucketize_step,
    cross_step,
    dense_step,
    hash_step,
    numbers,
)
from fastserve.client.features_vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

    from fastserve.client.features_shared import Key


@dataclass(frozen=True)
class Hash:
    """A column's hash buckets, as `hash_buckets`."""

    column: str
    buckets: int
    kind: str = "fast"
    key: Key | None = None
    mask_value: str | bytes | int | None = None
    dtype: str = "int64"

    @property
    def names(self) -> Sequence[str]:
        return (self.column,)

    def width(self, columns: list[Column]) -> int:
        return columns[0].width

    def step(self, columns: list[Column], out: np.ndarray) -> Step:
        return hash_step(columns[0], out, self.buckets, self.kind, self.key, self.mask_value)


@dataclass(frozen=True)
class Cross:
    """The buckets of several columns' combinations, as `cross`."""

    columns: Sequence[str]
    buckets: int
    key: int = CROSS_KEY
    dtype: str = "int64"

    @property
    def names(self) -> Sequence[str]:
        return self.columns

    def width(self, columns: list[Column]) -> int:
        return 1

    def step(self, columns: list[Column], out: np.ndarray) -> Step:
        return cross_step(columns, out, self.buckets, self.key)


@dataclass(frozen=True)
class Bucketize:
    """A column's place among boundaries, as `bucketize`."""

    column: str
    boundaries: Sequence[float]
    dtype: str = "int64"

    @property
    def names(self) -> Sequence[str]:
        return (self.column,)

    def width(self, columns: list[Column]) -> int:
        return columns[0].width

    def step(self, columns: list[Column], out: np.ndarray) -> Step:
        return bucketize_step(columns[0], out, self.boundaries)


@dataclass(frozen=True)
class Lookup:
    """A column's ids in a vocabulary."""

    column: str
    vocabulary: Vocabulary
    dtype: str = "int64"

    @property
    def names(self) -> Sequence[str]:
        return (self.column,)

    def width(self, columns: list[Column]) -> int:
        return columns[0].width

    def step(self, columns: list[Column], out: np.ndarray) -> Step:
        return self.vocabulary.step(columns[0], out)


@dataclass(frozen=True)
class Dense:
    """Numeric columns side by side, as `pack`; with an integer dtype, ids that need no more work."""

    columns: Sequence[str] | str
    fill: float | Sequence[float] = 0.0
    log1p: bool | Sequence[bool] = False
    mean: float | Sequence[float] | None = None
    scale: float | Sequence[float] | None = None
    dtype: str = "float32"

    @property
    def names(self) -> Sequence[str]:
        return (self.columns,) if isinstance(self.columns, str) else self.columns

    def width(self, columns: list[Column]) -> int:
        return sum(column.width for column in columns)

    def step(self, columns: list[Column], out: np.ndarray) -> Step:
        return dense_step(columns, out, self.fill, self.log1p, self.mean, self.scale)


Feature = Hash | Cross | Bucketize | Lookup | Dense


class Packer:
    """How each of a model's inputs is made of raw columns.

    `inputs` gives for each input's name one feature, or a list of features, whose results stand side by side
    in one matrix [n, sum of widths]. One feature alone has its column's shape, [n] or [n, k]; Cross has [n],
    Dense always [n, sum of widths]. Features that are made into one matrix have one dtype.

    A Packer may be called by any number of threads at once.
    """

    def __init__(self, inputs: Mapping[str, Feature | Sequence[Feature]]) -> None:
        self._inputs: dict[str, tuple[tuple[Feature, ...], bool]] = {}
        for name, features in inputs.items():
            alone = isinstance(features, Feature)
            listed = (features,) if isinstance(features, Feature) else tuple(features)
            if not listed or not all(isinstance(feature, Feature) for feature in listed):
                raise ValueError(
                    f"input {name!r}: a feature or a list of features is needed, not {features!r}"
                )
            dtypes = {feature.dtype for feature in listed}
            if len(dtypes) > 1:
                raise ValueError(
                    f"input {name!r}: features of one matrix have one dtype, not {sorted(dtypes)}"
                )
            self._inputs[name] = (listed, alone)

    def __call__(
        self,
        columns: Mapping[str, Any],
        *,
        out: Mapping[str, np.ndarray] | None = None,
        threads: int | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's inputs from raw columns, which may hold more than are used (a DataFrame will do). `out`
        has arrays for those inputs that are not to be new ones. ColumnError names the column."""
        taken: dict[tuple[str, bool], Column] = {}
        steps: list[Step] = []
        made: dict[str, np.ndarray] = {}
        for name, (features, alone) in self._inputs.items():
            of_each = [
                [_take(taken, columns, column, isinstance(feature, Dense)) for column in feature.names]
                for feature in features
            ]
            widths = [feature.width(used) for feature, used in zip(features, of_each, strict=True)]
            rows = len(of_each[0][0]) if of_each[0] else 0
            flat = alone and (
                isinstance(features[0], Cross)
                or (not isinstance(features[0], Dense) and of_each[0][0].ndim == 1)
            )
            shape = (rows,) if flat else (rows, sum(widths))
            array = result_of(None if out is None else out.get(name), shape, features[0].dtype, name)
            at = 0
            for feature, used, width in zip(features, of_each, widths, strict=True):
                if used and len(used[0]) != rows:
                    raise ColumnError(
                        f"{used[0].name}: has {len(used[0])} rows where other columns have {rows}"
                    )
                steps.append(feature.step(used, array if flat else array[:, at : at + width]))
                at += width
            made[name] = array
        run_steps(steps, threads)
        return made


def _take(
    taken: dict[tuple[str, bool], Column], columns: Mapping[str, Any], name: str, numeric: bool
) -> Column:
    """A column, once for all features that use it."""
    if (name, numeric) not in taken:
        try:
            values = columns[name]
        except KeyError:
            raise ColumnError(f"{name}: there is no such column") from None
        taken[name, numeric] = Column(numbers(values) if numeric else values, name)
    return taken[name, numeric]
