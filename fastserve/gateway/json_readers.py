"""What reads a predict request's text straight to tensors, for each signature of a version.

In front of json_text and json_tensors, on the loop: it gives what they would give, or nothing, and then they
are asked, who know every way to write a request and what is wrong with one.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastserve._native.json_tensors import Reader, readable, signature_of
from fastserve.client.messages import DTYPE_NAMES, SignatureInfo
from fastserve.gateway.json_tensors import Tensors

# By name, which is numpy's, too, for these.
_DTYPES = {name: number for number, name in DTYPE_NAMES.items() if readable(number)}


class Readers:
    """`signatures`: by name."""

    def __init__(self, signatures: Mapping[str, SignatureInfo]) -> None:
        # By what a request calls it.
        self._readers = {name: _reader(name, signature) for name, signature in signatures.items()}
        default = signatures.get("serving_default")
        self._readers[""] = _reader("", default) if default is not None else None

    def read(self, text: bytes) -> tuple[str, Tensors, bool] | None:
        """The signature's name, "" for the default one, the tensors, and whether they came in rows."""
        name = signature_of(text)
        reader = self._readers.get(name)
        found = reader.read(text) if reader is not None else None
        return None if found is None else (name, *found)


def _reader(name: str, signature: SignatureInfo) -> Reader | None:
    """None where an input is of strings, say."""
    inputs = signature.inputs
    if not inputs or any(info.dtype not in _DTYPES for info in inputs.values()):
        return None
    return Reader(name, [(alias, _DTYPES[info.dtype], info.dtype) for alias, info in inputs.items()])
