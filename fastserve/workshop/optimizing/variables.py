"""The variables of a model being optimized: what they are, and their values as they are needed.

A value comes from the model's own checkpoint, or from a pass that made the variable. Names are those of the
variables' nodes. Imports TensorFlow when a value is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BFLOAT16 = 14


@dataclass(frozen=True, slots=True)
class Variable:
    """`key` and `part`: where the checkpoint has it, and which slice of that, "" for all of it; `key` is None
    for those that a pass made."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    key: str | None = None
    part: str = ""

    @property
    def nbytes(self) -> int:
        from tensorflow.python.framework import dtypes

        return math.prod(self.shape) * int(dtypes.as_dtype(self.dtype).size)


class Variables:
    """All that there are; copies of a graph share them, and the graphs of all signatures. A name is given
    once: what is forgotten leaves its own taken. `written`: names of the nodes of variables and tables that
    one of those changes."""

    def __init__(self, checkpoint: str, known: Iterable[Variable]) -> None:
        """`checkpoint`: its path without `.index`."""
        self._checkpoint = checkpoint
        self._known = {variable.name: variable for variable in known}
        self._made: dict[str, npt.NDArray[Any]] = {}
        self._names = set(self._known)
        self.written: frozenset[str] = frozenset()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Variable:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, name: str, value: npt.NDArray[Any], dtype: int) -> str:
        """A new one with this name, which no other has, and this value. Its name."""
        assert name not in self._names
        self._names.add(name)
        self._known[name] = Variable(name, dtype, value.shape)
        self._made[name] = value
        return name

    def keep(self, used: Collection[str]) -> None:
        """Forgets those that passes made and that are not among `used`, with their values."""
        for name in self._made.keys() - used:
            del self._made[name], self._known[name]

    def value(self, name: str) -> npt.NDArray[Any]:
        """Its value. The checkpoint's are read each time: they may be large."""
        if name in self._made:
            return self._made[name]
        import tensorflow as tf

        variable = self._known[name]
        with tf.device("/cpu:0"):
            (read,) = tf.raw_ops.RestoreV2(
                prefix=self._checkpoint,
                tensor_names=[variable.key],
                shape_and_slices=[variable.part],
                dtypes=[tf.dtypes.as_dtype(variable.dtype)],
            )
        array: npt.NDArray[Any] = np.asarray(read.numpy()).reshape(variable.shape)
        return array
