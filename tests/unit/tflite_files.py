"""TFLite models for tests that run none: flatbuffers with the tables that say what goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import flatbuffers

FLOAT, INT32, UINT8, STRING, BOOL, RESOURCE = 0, 2, 3, 5, 6, 13


@dataclass
class TensorDef:
    name: str
    type: int = FLOAT
    shape: tuple[int, ...] = (1,)
    # With -1 where sizes are unknown, as converters write it beside `shape`.
    shape_signature: tuple[int, ...] | None = None
    has_rank: bool = False


@dataclass
class SubgraphDef:
    tensors: Sequence[TensorDef]
    inputs: Sequence[int] = ()
    outputs: Sequence[int] = ()


@dataclass
class SignatureDef:
    key: str
    inputs: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    subgraph: int = 0


def tflite_bytes(
    subgraphs: Sequence[SubgraphDef],
    signatures: Sequence[SignatureDef] = (),
    buffers: Sequence[bytes] = (b"",),
) -> bytes:
    builder = flatbuffers.Builder(1024)

    def vector(offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def numbers(values: Sequence[int]) -> int:
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependInt32(value)
        return int(builder.EndVector())

    def tensor(one: TensorDef) -> int:
        name, shape = builder.CreateString(one.name), numbers(one.shape)
        signature = None if one.shape_signature is None else numbers(one.shape_signature)
        builder.StartObject(10)
        builder.PrependUOffsetTRelativeSlot(0, shape, 0)
        builder.PrependUint8Slot(1, one.type, 0)
        builder.PrependUOffsetTRelativeSlot(3, name, 0)
        if signature is not None:
            builder.PrependUOffsetTRelativeSlot(7, signature, 0)
        builder.PrependBoolSlot(8, one.has_rank, False)
        return int(builder.EndObject())

    def subgraph(one: SubgraphDef) -> int:
        tensors = vector([tensor(each) for each in one.tensors])
        inputs, outputs = numbers(one.inputs), numbers(one.outputs)
        builder.StartObject(5)
        for slot, offset in enumerate((tensors, inputs, outputs)):
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        return int(builder.EndObject())

    def ports(names: Mapping[str, int]) -> int:
        entries = []
        for name, number in names.items():
            text = builder.CreateString(name)
            builder.StartObject(2)
            builder.PrependUOffsetTRelativeSlot(0, text, 0)
            builder.PrependUint32Slot(1, number, 0)
            entries.append(int(builder.EndObject()))
        return vector(entries)

    def signature(one: SignatureDef) -> int:
        inputs, outputs, key = ports(one.inputs), ports(one.outputs), builder.CreateString(one.key)
        builder.StartObject(5)
        for slot, offset in enumerate((inputs, outputs, key)):
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        builder.PrependUint32Slot(4, one.subgraph, 0)
        return int(builder.EndObject())

    def buffer(data: bytes) -> int:
        content = builder.CreateByteVector(data)
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, content, 0)
        return int(builder.EndObject())

    graphs = vector([subgraph(one) for one in subgraphs])
    named = vector([signature(one) for one in signatures])
    weights = vector([buffer(data) for data in buffers])
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.PrependUOffsetTRelativeSlot(4, weights, 0)
    if signatures:
        builder.PrependUOffsetTRelativeSlot(7, named, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


def half_plus_two() -> bytes:
    """x: float [-1] -> y: float [-1], with weights."""
    return tflite_bytes(
        [
            SubgraphDef(
                [
                    TensorDef("serving_default_x:0", shape_signature=(-1,)),
                    TensorDef("StatefulPartitionedCall:0", shape_signature=(-1,)),
                ],
                [0],
                [1],
            )
        ],
        [SignatureDef("serving_default", {"x": 0}, {"y": 1})],
        [b"", b"\x00" * 4096],
    )
