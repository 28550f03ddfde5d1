"""Vocabularies: ids of strings and integers, as Keras's lookup layers and tf.lookup's tables give them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve._native.columns import Column, ColumnError
from fastserve._native.features import Step, Vocab
from fastserve.client.features_shared import check_hashable, hash_key, result_for, run_steps, token_of

if TYPE_CHECKING:
    import numpy as np

    from fastserve.client.features_shared import Key


class Vocabulary:
    """Terms, strings or integers, and the id of each.

    Ids begin with 0 for `mask_token`, where there is one; then come the ids of unknown terms (out of the
    vocabulary), `oov_buckets` of them, and then the terms in their order: tf.keras.layers.StringLookup and
    IntegerLookup. With oov_first=False unknown terms come last: tf.lookup.StaticVocabularyTable. Which of
    several an unknown term gets is its Fingerprint64 modulo their number, or SipHash with `key`; integers
    with oov_first take their own value modulo the number, unless `oov` is "hash", which is Keras's oov_method
    "farmhash".

    With oov_buckets=0 unknown terms get `default`, or are refused with a ColumnError where there is none.
    `terms` is a column [n] of distinct values. Made once, it may be used by any number of threads.
    """

    def __init__(
        self,
        terms: Any,
        *,
        oov_buckets: int = 1,
        oov_first: bool = True,
        default: int | None = None,
        mask_token: str | bytes | int | None = None,
        oov: str | None = None,
        key: Key | None = None,
    ) -> None:
        if oov_buckets < 0:
            raise ValueError(f"oov_buckets={oov_buckets}: 0 at least")
        if oov_buckets > 0 and default is not None:
            raise ValueError("a default is for oov_buckets=0: unknown terms have ids of their own otherwise")
        if oov not in (None, "hash", "mod"):
            raise ValueError(f'oov={oov!r}: "hash" or "mod"')
        column = check_hashable(Column(_still(terms), "terms"))
        if column.is_text and oov == "mod":
            raise ValueError('oov="mod" is for integers: strings have no remainder')
        if len(column) == 0:
            raise ColumnError("terms: there are none")
        self._table = Vocab(column)
        self._mod = not column.is_text and oov_first and key is None if oov is None else oov == "mod"
        self._key = None if key is None else hash_key("strong", key)
        if self._mod and key is not None:
            raise ValueError('a key is for oov="hash"')
        self._mask = None if mask_token is None else token_of(column, mask_token)
        self._buckets = oov_buckets
        masked = int(self._mask is not None)
        self._first_id = masked + (oov_buckets if oov_first else 0)
        unknown_id = masked if oov_first else masked + len(self._table)
        self._unknown = unknown_id if oov_buckets > 0 else default
        self._ids = masked + oov_buckets + len(self._table)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, dtype: str = "string", **options: Any) -> Vocabulary:
        """From a file with one term on each line, as tf.lookup.TextFileInitializer reads it: carriage returns
        are dropped, and empty lines refused. `dtype` is "string" or "int64", `options` are those of
        Vocabulary. OSError, ValueError."""
        import numpy as np

        if dtype not in ("string", "int64"):
            raise ValueError(f'dtype={dtype!r}: "string" or "int64"')
        lines = Path(path).read_bytes().replace(b"\r", b"").split(b"\n")
        if not lines[-1]:
            del lines[-1]
        if b"" in lines:
            raise ValueError(f"{path}: line {lines.index(b'') + 1} is empty; remove it")
        if dtype == "string":
            return cls(lines, **options)
        for at, line in enumerate(lines, 1):
            try:
                number = int(line)
            except ValueError:
                number = 1 << 64
            if not -(1 << 63) <= number < 1 << 63:
                raise ValueError(f"{path}: line {at} is {line.decode(errors='replace')!r:.40}, not an int64")
        return cls(np.array([int(line) for line in lines], np.int64), **options)

    def __len__(self) -> int:
        """How many ids there are, mask and unknown ones included: the rows of an embedding table."""
        return self._ids

    @property
    def is_text(self) -> bool:
        """Whether the terms are strings; integers otherwise."""
        return self._table.is_text

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the table takes."""
        return self._table.nbytes

    def lookup(self, column: Any, *, out: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
        """The id of each value: int64, of the column's shape (int32 with such an `out`)."""
        taken = Column(column, "column")
        array = result_for(taken, out, "int64")
        run_steps([self.step(taken, array)], threads)
        return array

    def step(self, column: Column, out: np.ndarray) -> Step:
        """The lookup of one column, to be run with others. ColumnError."""
        check_hashable(column)
        if len(column) * column.width == 0:
            return Step.fingerprint(column, out)  # an empty list is of no type
        if column.is_text != self.is_text:
            have, want = ("strings", "integers") if column.is_text else ("integers", "strings")
            raise ColumnError(f"{column.name}: holds {have}, but the vocabulary {want}; convert the column")
        if not self.is_text and column.exceeds_int64():
            raise ColumnError(f"{column.name}: holds numbers of 2^63 and more, which no vocabulary has")
        if out.dtype.itemsize == 4 and self._ids > 1 << 31:
            raise ValueError(f"{column.name}: {self._ids} ids do not fit int32")
        return Step.lookup(
            column, out, self._table, self._first_id, self._unknown, self._buckets, self._key, self._mod,
            self._mask,
        )  # fmt: skip


def _still(terms: Any) -> Any:
    """A copy, which nobody writes to while a table is made of it."""
    import numpy as np

    return (
        terms.copy()
        if isinstance(terms, np.ndarray)
        else list(terms)
        if isinstance(terms, Iterable)
        else terms
    )
