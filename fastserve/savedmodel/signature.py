"""What a SavedModel offers: its signatures with their inputs and outputs. Values only."""

from __future__ import annotations

from dataclasses import dataclass

# tensorflow.DataType. Reference types are these + 100.
DTYPES = {
    1: "float", 2: "double", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16",
    16: "quint16", 17: "uint16", 18: "complex128", 19: "half", 20: "resource", 21: "variant", 22: "uint32",
    23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip

# What names of TensorFlow's own entries begin with; nobody calls them.
INTERNAL = "__saved_model_"


def dtype_name(dtype: int) -> str:
    """TensorFlow's name of a DataType number; "type 99" for one that is not known here, "none" for 0."""
    return DTYPES.get(dtype, f"type {dtype}" if dtype else "none")


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a tf.Example that a graph parses: its dtype is float, int64 or string. `count`: how many
    values each example has; None: any number."""

    name: str
    dtype: int
    count: int | None


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output. `dims`: -1 where a size is unknown, None when the rank is."""

    alias: str
    tensor: str
    dtype: int
    dims: tuple[int, ...] | None
    # The value of an input that a request leaves out: a serialized TensorProto.
    default: bytes | None = None
    # Of an input that takes serialized tf.Examples: what the graph looks for in them.
    features: tuple[Feature, ...] = ()

    @property
    def has_default(self) -> bool:
        return self.default is not None

    @property
    def any_rows(self) -> bool:
        """Whether its first dimension may be of any size, as that of a request's rows is."""
        return self.dims is None or self.dims[:1] == (-1,)

    @property
    def shape(self) -> str:
        """The shape for people: "[?, 13]", "[]", "unknown rank"."""
        if self.dims is None:
            return "unknown rank"
        return f"[{', '.join('?' if dim < 0 else str(dim) for dim in self.dims)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; inputs and outputs are sorted by alias, the canonical feed order."""

    name: str
    method_name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def internal(self) -> bool:
        """Whether it is TensorFlow's own: it would initialize the model again."""
        return self.name.startswith(INTERNAL)

    @property
    def any_rows(self) -> bool:
        """Whether a request may have any number of rows."""
        return any(port.any_rows for port in self.inputs)

    @property
    def own_rows(self) -> int | None:
        """How many rows every request has, where that is fixed and the same for all inputs; None: any number,
        or there are no rows."""
        sizes = {port.dims[0] if port.dims else -1 for port in self.inputs}
        size = sizes.pop() if len(sizes) == 1 else -1
        return size if size > 0 else None

    def counts_rows(self, port: Port) -> bool:
        """Whether the first dimension of this input is a request's rows."""
        return port.any_rows or self.own_rows is not None


@dataclass(frozen=True, slots=True)
class SavedModel:
    """One meta graph of a SavedModel: the one with these tags. Signatures are sorted by name."""

    path: str
    tags: tuple[str, ...]
    tensorflow_version: str
    signatures: tuple[Signature, ...]
    # As GetModelMetadata tells them: see metadata.
    signature_def_map: bytes = b""

    def signature(self, name: str) -> Signature | None:
        return next((signature for signature in self.signatures if signature.name == name), None)
