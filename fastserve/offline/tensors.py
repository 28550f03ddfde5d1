"""Tensors in numpy: made up as samples, given to a runtime, and compared.

A tensor is a DataType number and a numpy array; bfloat16 is held as float32, strings as an object array of
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve._native.codec import decode_tensor, view_tensor
from fastserve.protos import message
from fastserve.savedmodel import Feature, Port, Signature
from fastserve.savedmodel.signature import dtype_name

STRING, BFLOAT16, BOOL = 7, 14, 10
FLOATS = (1, 2, 14, 19)
COMPLEX = (8, 18)
IDS = (3, 9)  # int32 and int64: what embeddings are looked up by

_NUMPY: dict[int, Any] = {
    1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8, 8: np.complex64,
    9: np.int64, 10: np.bool_, 11: np.int8, 12: np.uint8, 13: np.int32, 14: np.float32, 15: np.int16,
    16: np.uint16, 17: np.uint16, 18: np.complex128, 19: np.float16, 22: np.uint32, 23: np.uint64,
}  # fmt: skip

# How far two computations of one number may lie apart: relative to it, and to the largest one in the tensor.
# Kernels order their sums by the batch's size, and XLA fuses, so equality would refuse every real model.
_TOLERANCE: dict[int, tuple[float, float]] = {
    1: (1e-3, 1e-4), 2: (1e-6, 1e-8), 8: (1e-3, 1e-4), 14: (4e-2, 2e-2), 18: (1e-6, 1e-8), 19: (1e-2, 4e-3),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: int
    array: npt.NDArray[Any]

    def rows(self, first: int, last: int) -> Tensor:
        return Tensor(self.dtype, self.array[first:last])

    def native(self) -> tuple[int, tuple[int, ...], Any]:
        """As fastserve._native.runtime takes it."""
        array = np.ascontiguousarray(self.array).reshape(self.array.shape)
        if self.dtype == STRING:
            return self.dtype, array.shape, list(array.flat)
        if self.dtype == BFLOAT16:
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        return self.dtype, array.shape, array.tobytes()


def from_native(tensor: tuple[int, tuple[int, ...], Any]) -> Tensor:
    """What fastserve._native.runtime gives."""
    dtype, dims, data = tensor
    if dtype == STRING:
        array = np.empty(len(data), dtype=object)
        array[:] = data
    elif dtype == BFLOAT16:
        array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(data, _NUMPY[dtype])
    return Tensor(dtype, array.reshape(dims))


def from_proto(data: bytes) -> Tensor:
    """What a serialized TensorProto holds. CodecError."""
    view = view_tensor(data)
    return from_native((view.dtype, view.dims, decode_tensor(data)))


@dataclass(frozen=True, slots=True)
class Style:
    """How samples are made up. `spread`: 2 for numbers of some width, 1 for 0 and 1 where the type has no
    fractions, 0 for nothing but 0 and empty strings there. `inner`: the size of unknown dimensions after the
    first. `examples`: strings that are parsed as tf.Examples are some, and a feature of theirs that may have
    any number of values has `inner`, or when that is 0 now this many and now that."""

    spread: int
    inner: int
    examples: bool = False


# Rows of the requests that the version brought along, instead of made-up ones.
RECORDED = Style(-1, 0)

# Tried in this order until the model accepts one: rows that differ say most about a model.
STYLES = tuple(Style(spread, inner) for inner in (1, 2, 8, 32) for spread in (2, 1, 0))
EXAMPLE_STYLES = tuple(Style(spread, inner, examples=True) for inner in (0, 1) for spread in (2, 1, 0))


def styles_for(signature: Signature) -> list[Style]:
    """The styles to try for a signature, in this order."""
    open_inside = any(dim < 0 for port in signature.inputs for dim in (port.dims or ())[1:])
    styles = [style for style in STYLES if style.inner == 1 or open_inside]
    return [*EXAMPLE_STYLES, *styles] if any(port.features for port in signature.inputs) else styles


def sample(port: Port, rows: int, style: Style, rng: np.random.Generator) -> Tensor:
    """A tensor for `port`: `rows` where its first dimension is unknown."""
    dims = (-1,) if port.dims is None else port.dims
    inner = max(style.inner, 1)
    shape = tuple((rows if axis == 0 else inner) if dim < 0 else dim for axis, dim in enumerate(dims))
    if style.examples and port.features:
        array = np.empty(shape, dtype=object)
        array.flat[:] = [_example(port.features, style, rng) for _ in range(array.size)]
        return Tensor(STRING, array)
    return Tensor(port.dtype, _values(port.dtype, shape, style.spread, rng))


def _example(features: Sequence[Feature], style: Style, rng: np.random.Generator) -> bytes:
    """A serialized tf.Example that has them all, save those that may be left out and then sometimes are."""
    example = message("tensorflow.Example")()
    for feature in features:
        count = style.inner or int(rng.integers(0, 3)) if feature.count is None else feature.count
        if feature.count is None and count == 0:
            continue
        values = _values(feature.dtype, (count,), style.spread, rng)
        kind = {1: "float_list", IDS[1]: "int64_list", STRING: "bytes_list"}[feature.dtype]
        getattr(example.features.feature[feature.name], kind).value.extend(values)
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def _values(dtype: int, shape: tuple[int, ...], spread: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    if dtype == STRING:
        words = ((b"",), (b"", b"a"), (b"", b"a", b"b", b"1", b"2", b"some words"))[spread]
        array = np.empty(shape, dtype=object)
        array.flat[:] = [words[i] for i in rng.integers(0, len(words), array.size)]
        return array
    kind = _NUMPY[dtype]
    if dtype in FLOATS:
        wide = rng.standard_normal(shape)
        array = (wide if spread == 2 else rng.random(shape)).astype(kind)
        return (
            array if dtype != BFLOAT16 else (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        )
    if dtype in COMPLEX:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(kind)
    below = 2 if dtype == BOOL else (1, 2, 10)[spread]
    return rng.integers(0, below, shape).astype(kind)


@dataclass(frozen=True, slots=True)
class Apart:
    """How far two tensors lie apart at most: absolute, and relative to the largest number expected. `wrong`:
    in which way by more than is allowed; None: they agree."""

    absolute: float = 0.0
    relative: float = 0.0
    wrong: str | None = None


def apart(expected: Tensor, actual: Tensor, allowed: float, of_largest: float) -> Apart:
    """Floating numbers may differ by `allowed` of their own size and `of_largest` of the largest one's in the
    tensor; everything else has to be equal."""
    if expected.dtype != actual.dtype:
        return Apart(wrong=f"type: {dtype_name(expected.dtype)} became {dtype_name(actual.dtype)}")
    if expected.array.shape != actual.array.shape:
        return Apart(wrong=f"shape: {list(expected.array.shape)} became {list(actual.array.shape)}")
    if expected.dtype not in _TOLERANCE:
        different = np.count_nonzero(expected.array != actual.array)
        return Apart(wrong=f"{different} of {expected.array.size} values" if different else None)
    wide = np.complex128 if expected.dtype in COMPLEX else np.float64
    a, b = expected.array.astype(wide), actual.array.astype(wide)
    with np.errstate(all="ignore"):
        finite = np.isfinite(a) & np.isfinite(b)
        odd = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if odd.any():
            return Apart(wrong=f"{np.count_nonzero(odd)} of {a.size} values, infinite or NaN in one of them")
        a, b = a[finite], b[finite]
        largest = float(np.abs(a).max(initial=0.0))
        gap: npt.NDArray[Any] = np.abs(a - b)
        far = gap > allowed * np.abs(a) + of_largest * largest
    absolute = float(gap.max(initial=0.0))
    relative = absolute / largest if largest else 0.0
    if not far.any():
        return Apart(absolute, relative)
    worst = int(np.argmax(np.where(far, gap, 0.0)))
    return Apart(
        absolute,
        relative,
        f"{np.count_nonzero(far)} of {expected.array.size} values, by up to {gap[worst]:.3g}: "
        f"{a[worst]:.6g} became {b[worst]:.6g}",
    )


def difference(expected: Tensor, actual: Tensor) -> str | None:
    """In which way two tensors that should agree do not; None when they do."""
    return apart(expected, actual, *_TOLERANCE.get(expected.dtype, (0.0, 0.0))).wrong


def first_difference(
    names: Sequence[str], expected: Sequence[Tensor], actual: Sequence[Tensor]
) -> str | None:
    """The first output that differs, and how; None when all agree."""
    for name, one, other in zip(names, expected, actual, strict=True):
        how = difference(one, other)
        if how is not None:
            return f"output '{name}' differs in {how}"
    return None
