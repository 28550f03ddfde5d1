"""Lookup tables as servables: a Loader, platform = "lookup", and the runtime that it names.

A version's directory holds `table.lookup`, or a link to one: models whose versions are links to one file
share it in memory. It is served as keys int64 [n] -> vectors float [n, dims].
"""

from __future__ import annotations

import importlib.util
import os

from fastserve.config import Model
from fastserve.errors import ModelError
from fastserve.extensions import Prepared, VersionPath
from fastserve.savedmodel import Port, Signature
from fastserve_lookup.table import NAME, TableError, read_dims, write_table

__all__ = ["LookupLoader", "runtime", "write_table"]

_INT64, _FLOAT = 9, 1


class LookupLoader:
    """fastserve.extensions.Loader for one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prepare(self, version: VersionPath, work_dir: str) -> Prepared:
        """Checks the table; nothing is copied, so `work_dir` stays empty."""
        path = os.path.join(version.path, NAME)
        try:
            dims = read_dims(path)
            size = os.stat(path).st_size
        except FileNotFoundError:
            raise ModelError(
                f"there is no {path}: a version of a lookup model is a directory with {NAME} in it"
            ) from None
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from None
        except TableError as error:
            raise ModelError(str(error)) from None
        return Prepared(
            path=path,
            runtime="lookup",
            signatures=(
                Signature(
                    name="serving_default",
                    method_name="tensorflow/serving/predict",
                    inputs=(Port("keys", "keys", _INT64, (-1,)),),
                    outputs=(Port("vectors", "vectors", _FLOAT, (-1, dims)),),
                ),
            ),
            resident_bytes=size,
        )


def runtime() -> str:
    """The path of lookup.c's library. It is no Python module, though setuptools names it like one."""
    spec = importlib.util.find_spec("fastserve_lookup.lookup")
    if spec is None or spec.origin is None:
        raise ImportError("fastserve_lookup was installed without its library: pip install it again")
    return spec.origin
