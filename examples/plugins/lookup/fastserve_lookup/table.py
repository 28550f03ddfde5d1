"""The file of a lookup table: written by who trains, checked by the loader, mapped by lookup.c."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "table.lookup"
_HEADER = struct.Struct("<8sQI44x")
_MAGIC = b"fslookup"


class TableError(ValueError):
    """The file is no lookup table."""


def write_table(
    path: str | Path, keys: npt.ArrayLike, vectors: npt.ArrayLike, default: npt.ArrayLike | None = None
) -> None:
    """Writes a table: `keys` int64 [n], `vectors` float32 [n, dims], and `default`, the row of a key that is
    not there, float32 [dims] (zeros when it is not given). The file appears at once and whole."""
    key_array = np.asarray(keys, "<i8")
    rows: npt.NDArray[Any] = np.asarray(vectors, "<f4")
    if rows.ndim != 2 or rows.shape[1] == 0 or key_array.shape != rows.shape[:1]:
        raise ValueError(f"expected keys [n] and vectors [n, dims], not {key_array.shape} and {rows.shape}")
    last = np.zeros(rows.shape[1], "<f4") if default is None else np.asarray(default, "<f4")
    if last.shape != rows.shape[1:]:
        raise ValueError(f"expected a default row of {rows.shape[1]} values, not of shape {last.shape}")
    order = np.argsort(key_array, kind="stable")
    key_array, rows = key_array[order], rows[order]
    if (key_array[1:] == key_array[:-1]).any():
        raise ValueError("a key is there twice")
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(_HEADER.pack(_MAGIC, len(key_array), rows.shape[1]))
        file.write(key_array.tobytes())
        file.write(rows.tobytes())
        file.write(last.tobytes())
    os.replace(part, path)


def read_dims(path: str | Path) -> int:
    """How many values a row has. Checks the file: its size, and that its keys increase. TableError."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise TableError(f'{path} does not begin with "{_MAGIC.decode()}"')
    _, rows, dims = _HEADER.unpack(header)
    wanted = _HEADER.size + rows * 8 + (rows + 1) * dims * 4
    if dims == 0 or size != wanted:
        raise TableError(f"{path} has {size} bytes; {rows} rows of {dims} values take {wanted}")
    if rows:
        keys = np.memmap(path, "<i8", "r", offset=_HEADER.size, shape=(rows,))
        if not (keys[1:] > keys[:-1]).all():
            raise TableError(f"{path}: its keys do not increase; write_table sorts them")
    return int(dims)
