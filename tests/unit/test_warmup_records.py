"""Warm-up records: TFRecord files and what becomes of the requests in them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastserve._native.codec import parse_predict

from fastserve.offline.model import OpenModel
from fastserve.offline.records import (
    REQUESTS_FILE,
    WarmupError,
    WarmupRequest,
    read_requests,
    sample_rows,
    write_requests,
)
from fastserve.offline.tensors import RECORDED, Style, Tensor
from fastserve.protos import message
from fastserve.savedmodel import Port, SavedModel, Signature
from fastserve.savedmodel.tfrecord import TFRecordError, crc32c, read_records

FLOAT, STRING, INT64 = 1, 7, 9
Example = message("tensorflow.Example")


# ---- TFRecord -----------------------------------------------------------------------------


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(*records: bytes) -> bytes:
    return b"".join(
        struct.pack("<Q", len(r)) + masked(struct.pack("<Q", len(r))) + r + masked(r) for r in records
    )


def test_crc32c_is_the_published_one() -> None:
    """The vectors are RFC 3720's."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("size", [4095, 4096, 4097, 100_003])
def test_crc32c_of_long_data_is_that_of_its_bytes_one_by_one(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(data) == register ^ 0xFFFFFFFF


def test_records_come_in_order(tmp_path: Path) -> None:
    # Written by tf.io.TFRecordWriter.
    written = bytes.fromhex("0300000000000000b099490e6162636e57f121")
    assert framed(b"abc") == written
    records = [b"abc", b"", b"d" * 5000]
    (tmp_path / "f").write_bytes(framed(*records))
    assert list(read_records(tmp_path / "f")) == records


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


TWO = framed(b"abc", b"d" * 50)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (flipped(TWO, 3), "corrupted record at 0 (Is this even a TFRecord file?)"),
        (flipped(TWO, 13), "corrupted record at 12"),
        (flipped(TWO, 23), "corrupted record at 19"),
        (flipped(TWO, 40), "corrupted record at 31"),
        (flipped(TWO, len(TWO) - 1), "corrupted record at 31"),
        (TWO[:-1], "truncated record at 19' failed with Read less bytes than requested"),
        (TWO[:31], "truncated record at 19' failed with Read less bytes than requested"),
        (b"this is no such file", "corrupted record at 0 (Is this even a TFRecord file?)"),
        (framed(b"abc")[:8] + b"\xff" * 40, "corrupted record at 0 (Is this even a TFRecord file?)"),
    ],
)
def test_damage_is_found_and_named_as_tensorflow_does(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(TFRecordError) as caught:
        list(read_records(tmp_path / "f"))
    assert str(caught.value) == why


@pytest.mark.parametrize("rest", [0, 1, 11])
def test_less_than_a_header_at_the_end_is_nothing(tmp_path: Path, rest: int) -> None:
    (tmp_path / "f").write_bytes(TWO[: 19 + rest])
    assert list(read_records(tmp_path / "f")) == [b"abc"]


# ---- requests -----------------------------------------------------------------------------


def port(alias: str, dtype: int = FLOAT, dims: tuple[int, ...] = (-1, 2), default: Any = None) -> Port:
    return Port(alias, f"{alias}:0", dtype, dims, default)


MODEL = SavedModel(
    "/m",
    ("serve",),
    "2",
    (
        Signature("examples", "", (port("inputs", STRING, (-1,)),), (port("scores"),)),
        Signature(
            "optional",
            "",
            (port("x"), port("y", default=b"\x08\x01\x12\x00\x2a\x04" + bytes(4))),
            (port("z"),),
        ),
        Signature("serving_default", "", (port("ids", INT64), port("x")), (port("y"),)),
    ),
)


def tensor(array: Any) -> Any:
    array = np.asarray(array)
    proto = message("tensorflow.TensorProto")()
    proto.dtype = {"float32": FLOAT, "int64": INT64}[array.dtype.name]
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    proto.tensor_content = array.tobytes()
    return proto


def log() -> Any:
    return message("tensorflow.serving.PredictionLog")()


def predict(signature: str = "", **inputs: Any) -> Any:
    made = log()
    made.predict_log.request.model_spec.name = "as it was called then"
    made.predict_log.request.model_spec.version.value = 99
    made.predict_log.request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        made.predict_log.request.inputs[alias].CopyFrom(tensor(value))
    return made


def ids_and_x(rows: int, first: int = 0) -> dict[str, Any]:
    ids = np.arange(first, first + 2 * rows, dtype=np.int64).reshape(rows, 2)
    return {"ids": ids, "x": ids.astype(np.float32)}


def requests(tmp_path: Path, *logs: Any) -> list[WarmupRequest]:
    file = tmp_path / REQUESTS_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(
        framed(*(made if isinstance(made, bytes) else made.SerializeToString() for made in logs))
    )
    return read_requests(tmp_path, MODEL)


def refused(tmp_path: Path, *logs: Any) -> tuple[str, str]:
    with pytest.raises(WarmupError) as caught:
        requests(tmp_path, *logs)
    return caught.value.code, str(caught.value)


def test_one_row_for_all_is_recorded_once_and_run_in_full(tmp_path: Path) -> None:
    once = ids_and_x(3) | {"ids": np.array([[7, 8]], np.int64)}
    requests(tmp_path, predict(**once))
    (warmup,) = read_requests(tmp_path, MODEL, ("ids",))
    assert warmup.inputs[0].array.tolist() == [[7, 8]] * 3
    assert parse_shape(warmup.request.inputs["ids"]) == [1, 2]
    assert [tensor.array.shape for tensor in sample_rows([warmup])["serving_default"]] == [(3, 2)] * 2


def parse_shape(tensor: Any) -> list[int]:
    return [dim.size for dim in tensor.tensor_shape.dim]


def test_a_version_without_records_has_no_requests(tmp_path: Path) -> None:
    assert read_requests(tmp_path, MODEL) == []
    assert requests(tmp_path) == []
    assert requests(tmp_path, log()) == [], "a record of nothing"


def test_predict_gives_inputs_in_the_order_of_the_signature(tmp_path: Path) -> None:
    (found,) = requests(tmp_path, predict(**ids_and_x(3)))
    assert found.signature.name == "serving_default"
    assert [(t.dtype, t.array.tolist()) for t in found.inputs] == [
        (INT64, [[0, 1], [2, 3], [4, 5]]),
        (FLOAT, [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
    ]


def test_an_input_that_is_left_out_has_its_default(tmp_path: Path) -> None:
    (found,) = requests(tmp_path, predict("optional", x=np.ones((1, 2), np.float32)))
    assert [t.array.tolist() for t in found.inputs] == [[[1.0, 1.0]], 0.0]
    assert sorted(found.request.inputs) == ["x", "y"]
    assert refused(tmp_path, predict("optional", y=np.ones((1, 2), np.float32))) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. Inputs "
        "expected to be in the request {y}, or default input alias set: y",
    )


@pytest.mark.parametrize("kind", ["classify_log", "regress_log"])
def test_examples_become_one_input_of_strings(tmp_path: Path, kind: str) -> None:
    made = log()
    request = getattr(made, kind).request
    request.model_spec.signature_name = "examples"
    request.input.example_list.examples.extend(map(Example.FromString, [b"\x0a\x00", b""]))
    with_context = log()
    request = getattr(with_context, kind).request
    request.model_spec.signature_name = "examples"
    request.input.example_list_with_context.examples.add().features.SetInParent()
    request.input.example_list_with_context.context.features.feature["f"].int64_list.value.append(7)
    first, second = requests(tmp_path, made, with_context)
    assert first.inputs[0].array.tolist() == [b"\x0a\x00", b""]
    context = request.input.example_list_with_context.context.SerializeToString()
    assert second.inputs[0].array.tolist() == [context + b"\x0a\x00"]


def test_multi_inference_is_a_request_for_each_task(tmp_path: Path) -> None:
    made = log()
    request = made.multi_inference_log.request
    request.input.example_list.examples.add()
    task = request.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.signature_name = "examples"
    assert [found.signature.name for found in requests(tmp_path, made)] == ["examples"]
    request.tasks.add().CopyFrom(task)
    assert refused(tmp_path, made)[1] == "Duplicate evaluation of signature: examples"
    del request.tasks[1]
    task.method_name = "other"
    assert refused(tmp_path, made) == ("UNIMPLEMENTED", "Unsupported signature method_name: other")
    task.model_spec.signature_name = "none"
    assert refused(tmp_path, made)[1] == "Requested signature not found in model graph: none"


def examples(signature: str, *serialized: bytes) -> Any:
    made = log()
    made.classify_log.request.model_spec.signature_name = signature
    made.classify_log.request.input.example_list.examples.extend(map(Example.FromString, serialized))
    return made


@pytest.mark.parametrize(
    ("record", "code", "text"),
    [
        (predict("none"), "FAILED_PRECONDITION", 'Serving signature key "none" not found.'),
        (
            predict(x=np.ones((1, 2), np.float32)),
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=2 len({x}) != len({ids,x}). Sent extra: {}. Missing but "
            "required: {ids}.",
        ),
        (
            predict(ids=np.ones((1, 2), np.float32), x=np.ones((1, 2), np.float32)),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be int64 but float is provided",
        ),
        (examples("none", b""), "INVALID_ARGUMENT", "No signature was found with the name: none"),
        (examples("", b""), "INVALID_ARGUMENT", "Expected one input Tensor."),
        (examples("examples"), "INVALID_ARGUMENT", "Input is empty."),
    ],
)
def test_what_cannot_be_run_is_refused_in_tensorflow_servings_words(
    tmp_path: Path, record: Any, code: str, text: str
) -> None:
    assert refused(tmp_path, record) == (code, text)


@pytest.mark.parametrize(("kind", "number"), [("session_run_log", 5), ("predict_streamed_log", 7)])
def test_kinds_that_cannot_be_run(tmp_path: Path, kind: str, number: int) -> None:
    made = log()
    getattr(made, kind).SetInParent()
    assert refused(tmp_path, made) == ("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")


def test_a_tensor_that_is_none(tmp_path: Path) -> None:
    made = predict(**ids_and_x(2))
    made.predict_log.request.inputs["x"].tensor_content = b"123"
    assert refused(tmp_path, made) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_an_output_that_is_none(tmp_path: Path) -> None:
    made = predict(**ids_and_x(2))
    made.predict_log.request.output_filter.append("z")
    assert refused(tmp_path, made)[1] == (
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}."
    )


def test_files_that_are_no_records(tmp_path: Path) -> None:
    code, text = refused(tmp_path, b"\xff\xffnot a message")
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("Failed to parse warmup record: ")
    assert text.endswith(f"not a message from {tmp_path}/assets.extra/tf_serving_warmup_requests")
    (tmp_path / REQUESTS_FILE).write_bytes(b"garbage that is long enough")
    with pytest.raises(WarmupError) as caught:
        read_requests(tmp_path, MODEL)
    assert caught.value.code == "DATA_LOSS"
    assert str(caught.value) == (
        "corrupted record at 0 (Is this even a TFRecord file?). Please verify your warmup data is in "
        "TFRecord format."
    )
    (tmp_path / REQUESTS_FILE).unlink()
    (tmp_path / REQUESTS_FILE).mkdir()
    with pytest.raises(WarmupError, match="cannot be read: Is a directory"):
        read_requests(tmp_path, MODEL)


def test_a_thousand_records_are_taken_and_no_more(tmp_path: Path) -> None:
    one = predict(**ids_and_x(1)).SerializeToString()
    assert len(requests(tmp_path, *[one] * 1000)) == 1000
    assert refused(tmp_path, *[one] * 1001) == (
        "INVALID_ARGUMENT",
        "Number of warmup records exceeds the maximum (1000) at "
        f"{tmp_path}/assets.extra/tf_serving_warmup_requests",
    )


def test_the_core_gets_them_addressed_to_the_version(tmp_path: Path) -> None:
    found = requests(tmp_path, predict(**ids_and_x(1)), examples("examples", b"\x0a\x00"))
    write_requests(found, tmp_path / "new" / "file", "ranker", 7)
    data = (tmp_path / "new" / "file").read_bytes()
    parsed = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        parsed.append(parse_predict(data[4 : 4 + size]))
        data = data[4 + size :]
    assert [(p.model.name, p.model.version, p.model.signature) for p in parsed] == [
        ("ranker", 7, "serving_default"),
        ("ranker", 7, "examples"),
    ]
    assert [sorted(p.inputs) for p in parsed] == [["ids", "x"], ["inputs"]]


# ---- samples ------------------------------------------------------------------------------


def test_rows_of_all_requests_are_samples_each_once(tmp_path: Path) -> None:
    logs = [predict(**ids_and_x(2)), predict(**ids_and_x(2)), predict(**ids_and_x(1, first=100))]
    pools = sample_rows(requests(tmp_path, *logs))
    assert list(pools) == ["serving_default"]
    assert sorted(pools["serving_default"][0].array.tolist()) == [[0, 1], [2, 3], [100, 101]]

    signature = MODEL.signatures[2]
    model = OpenModel(None, recorded=pools)  # type: ignore[arg-type]
    ids, x = model.sample(signature, 7, RECORDED)
    assert ids.array.shape == (7, 2)
    assert len(np.unique(ids.array, axis=0)) == 3
    assert (ids.array == x.array).all(), "rows stay together"
    assert model.sample_bytes(signature, 10, RECORDED) == 10 * (16 + 8)
    assert model.sample(signature, 7, Style(2, 1))[0].array.max() < 10, "made up where that is asked for"


@pytest.mark.parametrize(
    "logs",
    [
        [predict(**ids_and_x(1))],
        [predict(**ids_and_x(1)), predict(**ids_and_x(1))],
        [predict(ids=np.zeros((3, 2), np.int64), x=np.zeros((2, 2), np.float32))],
        [predict("optional", x=np.ones((2, 2), np.float32))],
    ],
    ids=["one", "twice the same", "rows that do not agree", "a scalar"],
)
def test_requests_that_are_no_samples(tmp_path: Path, logs: list[Any]) -> None:
    assert sample_rows(requests(tmp_path, *logs)) == {}


def test_rows_of_strings(tmp_path: Path) -> None:
    pools = sample_rows(requests(tmp_path, examples("examples", b"\x0a\x00", b"", b"")))
    assert sorted(pools["examples"][0].array.tolist()) == [b"", b"\x0a\x00"]


def test_recorded_rows_are_tried_before_made_up_ones(tmp_path: Path) -> None:
    pools = sample_rows(requests(tmp_path, predict(**ids_and_x(2, first=50))))

    class Fussy(OpenModel):
        """Takes ids from 50 on."""

        def run(self, signature: Signature, inputs: Any, *, compiled: bool = False) -> list[Tensor]:
            assert (inputs[0].array >= 50).all()
            return []

    assert Fussy(None, recorded=pools).find_style(MODEL.signatures[2]) == RECORDED  # type: ignore[arg-type]
