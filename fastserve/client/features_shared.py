"""What the packing of features stands on: threads, where results go, which columns an op takes."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from fastserve._native.columns import Column, ColumnError
from fastserve._native.features import Pool, Step, run
from fastserve.cgroup import available_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Key = int | Sequence[int]

# Fewer items make no pool: as ALONE_ITEMS in csrc/pack.c.
ALONE_BELOW = 1 << 15


class _Pools:
    """Pools by their number of threads, made when first asked for and kept. A forked child makes its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[int, Pool] = {}
        self.all = 0  # processors, once they have been counted
        os.register_at_fork(after_in_child=self.forked)

    def forked(self) -> None:
        self.lock = threading.Lock()  # another thread may have held it
        self.made = {}

    def get(self, threads: int | None, items: int) -> Pool | None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: at least the calling one works")
        if threads == 1 or items < ALONE_BELOW:
            return None
        with self.lock:
            if threads is None and self.all == 0:
                self.all = available_cpus()
            wanted = threads or self.all
            if wanted == 1:
                return None
            if wanted not in self.made:
                self.made[wanted] = Pool(wanted)
            return self.made[wanted]


_pools = _Pools()


def run_steps(steps: list[Step], threads: int | None) -> None:
    items = sum(step.items_in for step in steps)
    refused = run(steps, _pools.get(threads, items))
    if refused is not None:
        at, row = refused
        raise ColumnError(
            f"{steps[at].name}: row {row} holds a term that the vocabulary lacks; "
            f"give it oov_buckets=1 or a default"
        )


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    import numpy as np

    return np.empty(shape, dtype)


def result_for(column: Column, out: np.ndarray | None, dtype: str) -> np.ndarray:
    shape = (len(column),) if column.ndim == 1 else (len(column), column.width)
    return result_of(out, shape, dtype)


def result_of(out: np.ndarray | None, shape: tuple[int, ...], dtype: str, name: str = "out") -> np.ndarray:
    """`out`, or a new array. ValueError where it has another shape, or a type that the values do not fit."""
    allowed = {"int64": ("int64", "int32"), "float32": ("float32",)}.get(dtype, (dtype,))
    if dtype not in ("int64", "int32", "uint64", "float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: float32, float64, int32 or int64")
    if out is None:
        return empty(shape, dtype)
    if out.shape != shape or out.dtype.name not in allowed or not out.flags.writeable:
        raise ValueError(
            f"{name}: {out.dtype}{list(out.shape)}; a writeable {' or '.join(allowed)}{list(shape)} is needed"
        )
    return out


def check_buckets(name: str, n: int, out: np.ndarray) -> int:
    if not 1 <= n < 1 << 63:
        raise ValueError(f"{name}: {n} buckets; at least one is needed")
    if out.dtype.itemsize == 4 and n > 1 << 31:
        raise ValueError(f"{name}: {n} buckets do not fit int32")
    return n


def check_hashable(column: Column) -> Column:
    if column.is_real and len(column) > 0:
        raise ColumnError(
            f"{column.name}: floats are not hashed, for equal ones may be written differently; "
            f'bucketise them, or make integers of them with astype("int64")'
        )
    return column


def check_crossable(column: Column) -> Column:
    if column.exceeds_int64():
        raise ColumnError(f"{column.name}: holds numbers of 2^63 and more, which cannot be crossed")
    return check_hashable(column)


def check_numeric(column: Column) -> Column:
    if column.is_text and len(column) > 0:
        raise ColumnError(f"{column.name}: holds strings where numbers are needed; hash them or look them up")
    return column


def check_integers(column: Column, dtype: np.dtype) -> None:
    if column.is_real and len(column) > 0:
        raise ColumnError(f"{column.name}: holds floats, which are not packed into {dtype}")
    if column.exceeds_int64() or column.int_bytes > dtype.itemsize:
        raise ColumnError(f"{column.name}: holds numbers that may not fit {dtype}")


def token_of(column: Column, value: str | bytes | int) -> bytes:
    """A value as a column's hash sees it. ColumnError where a column has no such values."""
    if isinstance(value, (str, bytes)) != column.is_text and len(column) > 0:
        raise ColumnError(f"{column.name}: {value!r:.40} is none of its values: not of their type")
    if isinstance(value, bytes):
        return value
    # As tf.as_string writes integers and bools.
    return value.encode() if isinstance(value, str) else str(value).lower().encode()


def hash_key(kind: str, key: Key | None) -> tuple[int, int] | None:
    """Two words for SipHash, None for Fingerprint64. ValueError."""
    if kind not in ("fast", "strong"):
        raise ValueError(f'kind={kind!r}: "fast" or "strong"')
    if (kind == "strong") != (key is not None):
        raise ValueError('a key is for kind="strong", which needs one: two integers')
    if key is None:
        return None
    words = (key, key) if isinstance(key, int) else tuple(key)
    if len(words) != 2:
        raise ValueError(f"key={key!r}: two integers")
    return words[0] & (1 << 64) - 1, words[1] & (1 << 64) - 1
