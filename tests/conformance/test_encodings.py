"""Every way of writing a tensor, for every dtype.

TensorFlow's own decoder is the oracle: what it reads comes back from a signature that gives its input back,
and what it refuses is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conformance.case import Answer, ask
from conformance.case import tensor as text_of
from google.protobuf import text_format
from predict_client import content, typed
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

# By dtype, values that show its limits.
VALUES: dict[str, Any] = {
    "float16": [1.5, -0.0, np.inf, np.nan, 6e-8],
    "bfloat16": [1.5, -0.0, -np.inf, np.nan, 3e38],
    "float32": [1.5, -0.0, np.inf, np.nan, 1e-45],
    "float64": [1.5, -0.0, -np.inf, np.nan, -2e300],
    "int8": [-128, 127, 0, -1, 5],
    "uint8": [0, 255, 1, 127, 128],
    "int16": [-32768, 32767, 0, -1, 5],
    "uint16": [0, 65535, 1, 32767, 32768],
    "int32": [-(2**31), 2**31 - 1, 0, -1, 5],
    "uint32": [0, 2**32 - 1, 1, 2**31, 5],
    "int64": [-(2**63), 2**63 - 1, 0, -1, 5],
    "uint64": [0, 2**64 - 1, 1, 2**63, 5],
    "bool": [True, False, False, True, True],
    "complex64": [1 + 2j, -0.5j, complex(np.inf, -1), 3, -4],
    "complex128": [1 + 2j, -0.5j, complex(-np.inf, 1e300), 3, -4],
    "string": [b"a", b"", b"x\x00y", "\u00fc".encode(), b"l" * 300],
}


@dataclass(frozen=True)
class Encoding:
    """A tensor whose values are cut or repeated to `shape`, or have none. `how`: "typed" or "content"."""

    name: str
    how: str
    values: int
    shape: tuple[int, ...]


ENCODINGS = [
    Encoding("typed", "typed", 5, (5,)),
    Encoding("typed, as a matrix", "typed", 4, (2, 2)),
    Encoding("content", "content", 5, (5,)),
    Encoding("content, as a matrix", "content", 4, (2, 2)),
    Encoding("a scalar, typed", "typed", 1, ()),
    Encoding("a scalar in content", "content", 1, ()),
    Encoding("a scalar of nothing", "typed", 0, ()),
    Encoding("one value repeated", "typed", 1, (4,)),
    Encoding("the last value repeated", "typed", 2, (5,)),
    Encoding("no values: zeros", "typed", 0, (3,)),
    Encoding("too many values: cut", "typed", 5, (2,)),
    Encoding("no rows", "typed", 0, (0,)),
    Encoding("no rows, and values for none", "typed", 2, (0,)),
    Encoding("rows of nothing", "typed", 0, (3, 0)),
    Encoding("too little content", "content", 2, (3,)),
    Encoding("too much content", "content", 3, (2,)),
]


def encoded(name: str, encoding: Encoding) -> tensor_pb2.TensorProto:
    dtype = tf.dtypes.as_dtype(name)
    values = VALUES[name][: encoding.values]
    if name != "string":
        tensor = (typed if encoding.how == "typed" else content)(values, dtype)
    elif encoding.how == "typed":
        tensor = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, string_val=values)
    else:
        # The lengths of all strings, then their bytes.
        lengths = b"".join(_varint(len(value)) for value in values)
        tensor = tensor_pb2.TensorProto(
            dtype=dtype.as_datatype_enum, tensor_content=lengths + b"".join(values)
        )
    tensor.ClearField("tensor_shape")
    tensor.tensor_shape.SetInParent()
    for size in encoding.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def echo(channel: grpc.Channel, signature: str, tensor: tensor_pb2.TensorProto) -> Answer:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "identity", signature
    request.inputs["x"].CopyFrom(tensor)
    return ask(channel, "Predict", request)


def expect_as_tensorflow(answer: Answer, signature: str, tensor: tensor_pb2.TensorProto) -> None:
    dtype = tf.dtypes.as_dtype(signature)
    try:
        read = tf.io.parse_tensor(tensor.SerializeToString(), dtype)
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError):
        assert (answer.code, answer.message) == ("INVALID_ARGUMENT", "tensor parsing error: x")
        return
    assert answer.code == "OK", answer.message
    reply: Any = answer.reply.outputs["y"]  # type: ignore[union-attr]
    assert reply.dtype == dtype.as_datatype_enum and not reply.tensor_content
    assert not reply.tensor_shape.unknown_rank
    assert [dim.size for dim in reply.tensor_shape.dim] == read.shape.as_list()
    # In the field that the dtype has, and all of them: nothing is left to be repeated.
    flat = tf.reshape(read, [-1]).numpy()
    if signature == "string":
        assert list(reply.string_val) == flat.tolist()
    else:
        expected = typed(flat, dtype)
        expected.tensor_shape.CopyFrom(reply.tensor_shape)
        assert reply.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
@pytest.mark.parametrize("dtype", VALUES)
def test_what_tensorflow_reads(channel: grpc.Channel, dtype: str, encoding: Encoding) -> None:
    tensor = encoded(dtype, encoding)
    expect_as_tensorflow(echo(channel, dtype, tensor), dtype, tensor)


# Tensors that are odd in other ways: signature and text.
FLOAT = "dtype: DT_FLOAT float_val: 1 "
ODD = {
    "content counts, not values": (
        "float32",
        text_of([1], 'tensor_content: "\\000\\000\\200?" float_val: 7'),
    ),
    "another field than the dtype's": ("float32", text_of([1], "int_val: 7")),
    "no dtype": ("float32", "tensor_shape { dim { size: 1 } } float_val: 1"),
    "a reference": ("float32", text_of([1], "float_val: 1", "DT_FLOAT_REF")),
    "no shape": ("float32", FLOAT),
    "unknown rank": ("float32", FLOAT + "tensor_shape { unknown_rank: true }"),
    "unknown rank with dimensions": (
        "float32",
        FLOAT + "tensor_shape { unknown_rank: true dim { size: 2 } }",
    ),
    "an unknown dimension": ("float32", text_of([-1], "float_val: 1")),
    "a dimension of less than that": ("float32", text_of([-2], "float_val: 1")),
    "a dimension with a name": ("float32", FLOAT + 'tensor_shape { dim { size: 1 name: "batch" } }'),
    "254 dimensions": ("float32", text_of([1] * 254, "float_val: 1")),
    "255 dimensions": ("float32", text_of([1] * 255, "float_val: 1")),
    "more elements than there can be": ("float32", text_of([1 << 62, 4], "float_val: 1")),
    "an int8 too large for it": ("int8", text_of([2], "int_val: [300, -129]", "DT_INT8")),
    "a half too large for it": ("float16", text_of([2], "half_val: [65536, 81408]", "DT_HALF")),
    "half a complex number": ("complex64", text_of([1], "scomplex_val: 1", "DT_COMPLEX64")),
    "one and a half": ("complex64", text_of([2], "scomplex_val: [1, 2, 3]", "DT_COMPLEX64")),
    "a string longer than its content": ("string", text_of([1], 'tensor_content: "\\005a"', "DT_STRING")),
    "content left over after the strings": ("string", text_of([1], 'tensor_content: "\\001ab"', "DT_STRING")),
}


@pytest.mark.parametrize("name", ODD)
def test_what_tensorflow_reads_of_odd_tensors(channel: grpc.Channel, name: str) -> None:
    signature, text = ODD[name]
    tensor = text_format.Parse(text, tensor_pb2.TensorProto())
    expect_as_tensorflow(echo(channel, signature, tensor), signature, tensor)


@pytest.fixture(scope="module")
def content_channel(serve: Any) -> Iterator[grpc.Channel]:
    with serve({"identity": ""}, server="tensor_content_replies = true").channel() as channel:
        yield channel


@pytest.mark.parametrize("dtype", VALUES)
def test_replies_as_tensor_content(content_channel: grpc.Channel, dtype: str) -> None:
    """Numbers, that is: strings stay in string_val, or TensorFlow's own make_ndarray could not read them."""
    tensor = encoded(dtype, ENCODINGS[0])
    answer = echo(content_channel, dtype, tensor)
    assert answer.code == "OK", answer.message
    reply = answer.reply.outputs["y"]  # type: ignore[union-attr]
    assert reply == (tensor if dtype == "string" else encoded(dtype, ENCODINGS[2]))
