"""The client's messages against TensorFlow's own: what it writes they read, what they write it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    regression_pb2,
)

from fastserve.client import messages
from fastserve.client.examples import Ragged, encode_input, serialize

KINDS = {"bytes_list": bytes, "float_list": float, "int64_list": int}


def _values(example: Any) -> dict[str, tuple[str, list[Any]]]:
    """What a tf.train.Example holds: each feature's kind and values."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value))
    return found


def _listed(examples: Any) -> list[dict[str, tuple[str, list[Any]]]]:
    message = input_pb2.Input.FromString(encode_input(examples))
    assert message.WhichOneof("kind") == "example_list"
    listed = [_values(example) for example in message.example_list.examples]
    assert [_values(tf.train.Example.FromString(one)) for one in serialize(examples)] == listed
    # As protobuf itself would write it: no field that is unknown, none twice.
    assert input_pb2.Input.FromString(message.SerializeToString()) == message
    assert len(message.SerializeToString()) == len(encode_input(examples))
    return listed


def _column(kind: str, rows: list[list[Any]]) -> list[tuple[str, list[Any]]]:
    return [(kind, values) for values in rows]


COLUMNS = {
    "int64": (np.array([[1, -2], [2**62, -(2**63)]]), "int64_list"),
    "int32": (np.array([5, -7], np.int32), "int64_list"),
    "int16": (np.array([[300], [-300]], np.int16), "int64_list"),
    "int8": (np.array([5, -7], np.int8), "int64_list"),
    "uint64": (np.array([5, 2**63 - 1], np.uint64), "int64_list"),
    "uint32": (np.array([5, 2**32 - 1], np.uint32), "int64_list"),
    "uint16": (np.array([5, 2**16 - 1], np.uint16), "int64_list"),
    "uint8": (np.array([5, 255], np.uint8), "int64_list"),
    "bool": (np.array([[True, False], [False, True]]), "int64_list"),
    "float32": (np.array([[1.5, -0.0], [np.inf, 3e-40]], np.float32), "float_list"),
    "float64": (np.array([0.1, -2.5]), "float_list"),
    "float16": (np.array([0.5, -2.5], np.float16), "float_list"),
    "big endian": (np.array([1, 2], ">i4"), "int64_list"),
    "columns of a matrix": (np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2], "float_list"),
    "backwards": (np.arange(2)[::-1], "int64_list"),
    "read only": (np.broadcast_to(np.float32(3), (2, 4)), "float_list"),
    "no values": (np.empty((2, 0), np.int64), "int64_list"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_numeric_column_is_read_by_tensorflow(name: str) -> None:
    array, kind = COLUMNS[name]
    cast = np.float32 if kind == "float_list" else np.int64
    expected = _column(kind, array.reshape(2, -1).astype(cast).tolist())
    assert [example["x"] for example in _listed({"x": array})] == expected
    dicts = [{"x": row} for row in array.reshape(2, -1)]
    assert [example["x"][1] for example in _listed(dicts)] == [values for _, values in expected]


@pytest.mark.parametrize(
    "column",
    [
        ["", "Zürich \U0001f600"],
        [b"", "Zürich \U0001f600".encode()],
        ["", "Zürich \U0001f600".encode()],
        np.array(["", "Zürich \U0001f600"]),
        np.array(["", "Zürich \U0001f600"], object),
        np.array([b"", "Zürich \U0001f600".encode()]),
        np.array(["", "Zürich \U0001f600"]).astype(np.dtypes.StringDType()),
        np.array(["", "x", "Zürich \U0001f600", "x"])[::2],
    ],
)
def test_a_text_column_is_read_by_tensorflow(column: Any) -> None:
    expected = _column("bytes_list", [[b""], ["Zürich \U0001f600".encode()]])
    assert [example["x"] for example in _listed({"x": column})] == expected


def test_strings_of_several_columns_and_of_lists() -> None:
    examples = _listed({"m": [["a", "b"], ["c", "d\0"]], "r": [["x"], ["y", "zz"]], "e": [[], ["q"]]})
    assert [example["m"][1] for example in examples] == [[b"a", b"b"], [b"c", b"d\0"]]
    assert [example["r"][1] for example in examples] == [[b"x"], [b"y", b"zz"]]
    assert [example["e"] for example in examples] == [("bytes_list", []), ("bytes_list", [b"q"])]


@pytest.mark.parametrize(
    "column",
    [
        [[1, 2, 3], [], [4]],
        [np.array([1, 2, 3]), np.array([], np.int64), np.array([4])],
        Ragged(np.array([1, 2, 3, 4], np.int32), [3, 0, 1]),
        Ragged([1, 2, 3, 4], np.array([3, 0, 1], np.uint8)),
        np.array([[1, 2, 3], [], [4]], object),
        [(1, 2, 3), [], 4],
    ],
)
def test_a_column_of_lists_of_different_lengths(column: Any) -> None:
    assert [example["x"] for example in _listed({"x": column})] == _column("int64_list", [[1, 2, 3], [], [4]])


def test_dictionaries_may_lack_features() -> None:
    examples = _listed([{"a": 1}, {"a": [2, 3], "b": 0.5}, {"b": None, "c": "x"}, {}])
    assert examples == [
        {"a": ("int64_list", [1])},
        {"a": ("int64_list", [2, 3]), "b": ("float_list", [0.5])},
        {"c": ("bytes_list", [b"x"])},
        {},
    ]


def test_no_examples_at_all() -> None:
    assert _listed([]) == []
    assert _listed({"a": np.empty(0, np.float32)}) == []


def test_a_context_is_shared() -> None:
    message = input_pb2.Input.FromString(encode_input({"a": [1, 2]}, {"user": "u", "h": [1.5, 2.5], "n": 3}))
    assert message.WhichOneof("kind") == "example_list_with_context"
    shared = message.example_list_with_context
    assert [_values(example) for example in shared.examples] == [
        {"a": ("int64_list", [1])},
        {"a": ("int64_list", [2])},
    ]
    assert _values(shared.context) == {
        "user": ("bytes_list", [b"u"]),
        "h": ("float_list", [1.5, 2.5]),
        "n": ("int64_list", [3]),
    }


_features = st.dictionaries(
    st.text(max_size=200),
    st.one_of(
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
        st.lists(st.floats(width=32, allow_nan=False), max_size=200),
        st.lists(st.binary(max_size=300), max_size=20),
        st.lists(st.text(max_size=50), max_size=20),
    ),
    max_size=6,
)


@given(_features)
@settings(max_examples=150, deadline=None)
def test_any_features_come_back(features: dict[str, list[Any]]) -> None:
    (one,) = serialize([features])
    found = _values(tf.train.Example.FromString(one))
    assert found.keys() == features.keys()
    for name, values in features.items():
        expected = [value.encode() if isinstance(value, str) else value for value in values]
        assert found[name][1] == expected
        if values:
            assert isinstance(expected[0], KINDS[found[name][0]])


# ---- requests and replies ---------------------------------------------------------------------------


@pytest.mark.parametrize("version,label", [(None, None), (7, None), (0, None), (None, "stable")])
def test_requests_are_what_tensorflow_serving_reads(version: int | None, label: str | None) -> None:
    body = encode_input({"a": [1, 2]})
    for make, kind in (
        (messages.classification_request, classification_pb2.ClassificationRequest),
        (messages.regression_request, regression_pb2.RegressionRequest),
    ):
        request = kind.FromString(make("m", body, signature="s", version=version, label=label))
        assert request.input == input_pb2.Input.FromString(body)
        assert request.model_spec.signature_name == "s"
        _check_spec(request.model_spec, version, label)
    asked = get_model_metadata_pb2.GetModelMetadataRequest.FromString(
        messages.metadata_request("m", version=version, label=label)
    )
    assert list(asked.metadata_field) == ["signature_def"]
    _check_spec(asked.model_spec, version, label)
    status = get_model_status_pb2.GetModelStatusRequest.FromString(
        messages.status_request("m", version=version, label=label)
    )
    _check_spec(status.model_spec, version, label)


def _check_spec(spec: Any, version: int | None, label: str | None) -> None:
    assert spec.name == "m"
    chosen = None if version is None and label is None else "version" if label is None else "version_label"
    assert spec.WhichOneof("version_choice") == chosen
    if version is not None:
        assert spec.version.value == version
    if label is not None:
        assert spec.version_label == label


def test_regressions() -> None:
    reply = regression_pb2.RegressionResponse()
    values = [0.0, 1.5, -2.25, float("inf"), 3e-40]
    for value in values:
        reply.result.regressions.add(value=value)
    reply.model_spec.name = "m"
    reply.model_spec.version.value = 3
    reply.model_spec.signature_name = "r"
    data = reply.SerializeToString()
    read = messages.regressions(data)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.array(values, np.float32))
    assert messages.answering_model(data) == messages.ModelVersion("m", 3, "r")
    assert messages.regressions(b"").shape == (0,)
    assert messages.regressions(data + data).shape == (10,)  # merged, as protobuf does
    np.testing.assert_array_equal(
        messages.regressions(data + data),
        [one.value for one in regression_pb2.RegressionResponse.FromString(data + data).result.regressions],
    )


def test_classifications() -> None:
    reply = classification_pb2.ClassificationResponse()
    rows = [[("cat", 0.75), ("dog", 0.25)], [], [("Zürich", -1.5), ("", 0.0), ("cat", 1.0)]]
    for row in rows:
        one = reply.result.classifications.add()
        for label, score in row:
            one.classes.add(label=label, score=score)
    reply.model_spec.name = "m"
    data = reply.SerializeToString()
    assert messages.classifications(data) == rows
    assert messages.classifications(data * 2) == rows * 2
    assert messages.classifications(b"") == []
    assert messages.answering_model(data) == messages.ModelVersion("m", None, "")


@pytest.mark.parametrize("kind", ["regressions", "classifications"])
def test_a_cut_or_changed_reply_is_refused_where_protobuf_refuses_it(kind: str) -> None:
    if kind == "regressions":
        reply: Any = regression_pb2.RegressionResponse()
        for value in (1.0, 2.0):
            reply.result.regressions.add(value=value)
    else:
        reply = classification_pb2.ClassificationResponse()
        reply.result.classifications.add().classes.add(label="é", score=2)
    reply.model_spec.name = "mé"
    reply.model_spec.version.value = 300
    data = reply.SerializeToString()
    read = getattr(messages, kind)
    rng = np.random.default_rng(1)
    cases = [data[:n] for n in range(len(data))]
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed))] = rng.integers(256)
        cases.append(bytes(changed))
    refused = 0
    for case in cases:
        try:
            expected = type(reply).FromString(case)
        except Exception:
            refused += 1
            with pytest.raises(messages.MessageError):
                read(case)
            continue
        found = read(case)
        if kind == "regressions":
            values = np.array([one.value for one in expected.result.regressions], np.float32)
            np.testing.assert_array_equal(found, values)
        else:
            rows = [
                [(one.label, one.score) for one in row.classes] for row in expected.result.classifications
            ]
            np.testing.assert_equal(found, rows)
    assert refused > 100


def test_statuses() -> None:
    reply = get_model_status_pb2.GetModelStatusResponse()
    reply.model_version_status.add(version=2, state=30)
    one = reply.model_version_status.add(version=-1, state=50)
    one.status.error_code = 5
    one.status.error_message = "not thére"
    reply.model_version_status.add(version=9, state=77)
    state = messages.VersionState
    assert messages.statuses(reply.SerializeToString()) == [
        messages.VersionStatus(2, state.AVAILABLE, 0, ""),
        messages.VersionStatus(-1, state.END, 5, "not thére"),
        messages.VersionStatus(9, state.UNKNOWN, 0, ""),
    ]
    assert messages.statuses(b"") == []
    defined = get_model_status_pb2.ModelVersionStatus.State.items()
    assert dict(defined) == {one.name: one.value for one in state}


def _metadata_reply() -> Any:
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.model_spec.name = "m"
    reply.model_spec.version.value = 4
    signatures = get_model_metadata_pb2.SignatureDefMap()
    one = signatures.signature_def["serving_default"]
    one.method_name = "tensorflow/serving/predict"
    x = one.inputs["x"]
    x.name, x.dtype = "x:0", tf.float32.as_datatype_enum
    for size in (-1, 3, 0):
        x.tensor_shape.dim.add(size=size)
    y = one.inputs["y"]
    y.name, y.dtype = "y:0", tf.string.as_datatype_enum
    y.tensor_shape.unknown_rank = True
    out = one.outputs["out"]
    out.name, out.dtype = "out:0", 101
    out.tensor_shape.SetInParent()
    bare = one.outputs["bare"]
    bare.dtype = 9
    signatures.signature_def["empty"].SetInParent()
    reply.metadata["signature_def"].Pack(signatures)
    return reply


def test_metadata() -> None:
    read = messages.metadata(_metadata_reply().SerializeToString())
    info = messages.TensorInfo
    assert read == messages.ModelMetadata(
        messages.ModelVersion("m", 4, ""),
        {
            "empty": messages.SignatureInfo({}, {}, ""),
            "serving_default": messages.SignatureInfo(
                {"x": info("x:0", "float32", (None, 3, 0)), "y": info("y:0", "string", None)},
                {"out": info("out:0", "float32", ()), "bare": info("", "int64", None)},
                "tensorflow/serving/predict",
            ),
        },
    )


def test_dtype_names_are_tensorflows() -> None:
    assert {n: tf.as_dtype(n).name for n in messages.DTYPE_NAMES} == messages.DTYPE_NAMES


def test_malformed_metadata_and_status() -> None:
    data = _metadata_reply().SerializeToString()
    for n in range(1, len(data)):
        try:
            whole = get_model_metadata_pb2.GetModelMetadataResponse.FromString(data[:n])
        except Exception:
            with pytest.raises(messages.MessageError):
                messages.metadata(data[:n])
        else:
            assert "signature_def" not in whole.metadata
            with pytest.raises(messages.MessageError, match="has no signature_def"):
                messages.metadata(data[:n])
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    packed = AnyMessage()
    packed.Pack(regression_pb2.RegressionResponse())
    reply.metadata["signature_def"].CopyFrom(packed)
    with pytest.raises(messages.MessageError, match="RegressionResponse"):
        messages.metadata(reply.SerializeToString())
    status = get_model_status_pb2.GetModelStatusResponse()
    status.model_version_status.add(version=2, state=30).status.error_message = "x" * 200
    data = status.SerializeToString()
    for n in range(1, len(data)):
        with pytest.raises(messages.MessageError):
            messages.statuses(data[:n])
