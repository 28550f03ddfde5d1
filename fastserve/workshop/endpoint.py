"""One signature that a source offers: what it takes, how it is traced, and what the source itself answers.

The sources (export_keras, export_module, export_saved_model) make them; export_write and export check them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
# Lines about the code that an error comes from, and first lines that say no more than that.
_ABOUT_CODE = (
    "Traceback",
    "File ",
    "*",
    "[[",
    "Detected at node",
    "<stack traces",
    "Arguments received",
    "•",
)
_WHERE_ONLY = ("in user code", "Graph execution error", "Exception encountered when calling")

# Name -> a tensor, an array or a tf.TensorSpec, as the place says.
Named = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """A signature in the making, with the source's own names."""

    name: str
    # tf.TensorSpecs, first dimensions as the source has them.
    inputs: Named
    # Tensors in, tensors out, while a graph is traced. May be given more rows than `inputs` says.
    call: Callable[[Named], Named]
    # Eager tensors in, what the source itself answers out: arrays or eager tensors.
    predict: Callable[[Named], Named]
    # Trackable objects that hold what the graph uses beside variables: lookup tables.
    owners: tuple[Any, ...] = ()
    # Where the source is a SavedModel: what its signature says beside inputs and outputs.
    method_name: str = ""
    defaults: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that the source insists on; None where it takes any, or has none. Beside an
        input with any number of rows, a first dimension that is fixed is not one of rows."""
        shapes = [spec.shape for spec in self.inputs.values()]
        if any(shape.rank is None or (shape.rank and shape[0] is None) for shape in shapes):
            return None
        return next((int(shape[0]) for shape in shapes if shape.rank), None)


@dataclass(frozen=True)
class Source:
    """`what`: for people, "a Keras 3 model". `named`: whether the endpoints' names are the source's own.
    `path`: of a SavedModel's version, which may bring more along than its graph."""

    what: str
    endpoints: tuple[Endpoint, ...]
    named: bool = True
    path: Path | None = None


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; TensorFlow and Keras write pages."""
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_ABOUT_CODE)]
    text = lines[0] if lines else ""
    if len(lines) > 1 and text.startswith(_WHERE_ONLY):
        # Of those that list a stack, the last line has what happened; of Keras' own, the second.
        text = f"{text.rstrip('.:')}: {lines[1] if text.startswith(_WHERE_ONLY[-1]) else lines[-1]}"
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
