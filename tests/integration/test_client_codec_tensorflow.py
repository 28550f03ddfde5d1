"""The client's codec against TensorFlow: what it sends is what make_tensor_proto means, and what
make_tensor_proto gives it reads as make_ndarray does."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from fastserve._native.client_codec import decode_reply, encode_request

NUMERIC = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
]  # fmt: skip
# tf.make_tensor_proto does not know these, TensorFlow's parser does.
PARSED_ONLY = ["float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"]
SHAPES = pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (40, 30), (0, 13), (1, 2, 3, 4)])


def example(name: str, *shape: int) -> np.ndarray[Any, Any]:
    dtype = tf.as_dtype(name).as_numpy_dtype
    return (np.arange(int(np.prod(shape))) % 7).astype(dtype).reshape(shape)


def sent(value: Any) -> Any:
    return predict_pb2.PredictRequest.FromString(encode_request("m", {"x": value})).inputs["x"]


def received(proto: Any) -> Any:
    reply = predict_pb2.PredictResponse()
    reply.outputs["y"].CopyFrom(proto)
    return decode_reply(reply.SerializeToString())[0]["y"]


@SHAPES
@pytest.mark.parametrize("name", NUMERIC)
def test_arrays(name: str, shape: tuple[int, ...]) -> None:
    array = example(name, *shape)
    theirs = tf.make_tensor_proto(array)
    proto = sent(array)
    assert (proto.dtype, proto.tensor_shape) == (theirs.dtype, theirs.tensor_shape)
    for got in (tf.make_ndarray(proto), received(theirs), received(proto)):
        assert (got.dtype, got.shape) == (array.dtype, shape)
        assert got.tobytes() == array.tobytes()


@SHAPES
@pytest.mark.parametrize("name", PARSED_ONLY)
def test_arrays_that_only_the_parser_knows(name: str, shape: tuple[int, ...]) -> None:
    array = example(name, *shape)
    proto = sent(array)
    parsed = tf.io.parse_tensor(proto.SerializeToString(), name)
    assert (parsed.dtype, tuple(parsed.shape)) == (tf.as_dtype(name), shape)
    assert received(proto).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", ["qint8", "quint8", "qint16", "quint16", "qint32"])
def test_quantized_arrays(name: str) -> None:
    array = np.array([(1,), (2,), (100,)], dtype=tf.as_dtype(name).as_numpy_dtype)
    proto = sent(array)
    assert proto.dtype == tf.as_dtype(name).as_datatype_enum
    parsed = tf.io.parse_tensor(proto.SerializeToString(), name)
    assert tf.cast(tf.bitcast(parsed, name[1:]), tf.int32).numpy().tolist() == [1, 2, 100]
    assert received(proto).tolist() == [1, 2, 100]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2)])
def test_strings(shape: tuple[int, ...]) -> None:
    values = [b"", b"x\0y\0", b"\xff", "é".encode()][: int(np.prod(shape))]
    array = np.array(values, dtype=object).reshape(shape)
    theirs = tf.make_tensor_proto(array, dtype=tf.string, shape=shape)
    proto = sent(array)
    assert (proto.dtype, proto.tensor_shape) == (theirs.dtype, theirs.tensor_shape)
    assert list(proto.string_val) == list(theirs.string_val)
    assert received(theirs).tolist() == tf.make_ndarray(theirs).tolist() == array.tolist()


def test_tensors_of_tensorflow() -> None:
    assert np.array_equal(tf.make_ndarray(sent(tf.constant([[1.0, 2.0]]))), [[1.0, 2.0]])
    assert list(sent(tf.constant(["a", "b"])).string_val) == [b"a", b"b"]
    bfloat16 = sent(tf.constant([1.5, 2.5], tf.bfloat16))
    assert bfloat16.tensor_content == np.array([1.5, 2.5], ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("values", [[], [5], [5, 6], [5, 6, 7, 8, 9]])
@pytest.mark.parametrize("name", ["int64", "float32", "int32"])
def test_short_and_long_lists(name: str, values: list[int]) -> None:
    dtype = tf.as_dtype(name)
    proto = tf.make_tensor_proto(np.zeros(0, dtype.as_numpy_dtype))
    del proto.tensor_shape.dim[:]
    proto.tensor_shape.dim.add(size=3)
    field = {"int64": proto.int64_val, "float32": proto.float_val, "int32": proto.int_val}[name]
    field.extend(values)
    assert received(proto).tolist() == tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy().tolist()
