"""model.tflite is read as far as signatures go, whatever its bytes are."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.tflite_files import (
    BOOL,
    FLOAT,
    INT32,
    RESOURCE,
    STRING,
    UINT8,
    SignatureDef,
    SubgraphDef,
    TensorDef,
    half_plus_two,
    tflite_bytes,
)

from fastserve.cli import main
from fastserve.config import Model
from fastserve.control.complete import why_incomplete, why_listing_incomplete
from fastserve.control.version_format import built_in_runtime
from fastserve.savedmodel import Port, Signature
from fastserve.tflite import MODEL, TFLiteError, read, why_cut_short, with_rows
from fastserve.tflite.flatbuffer import BadFlatbuffer, Bytes, root

PREDICT = "tensorflow/serving/predict"


def write(directory: Path, data: bytes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL).write_bytes(data)
    return directory


def test_signatures_are_read_with_aliases_dtypes_and_unknown_sizes(tmp_path: Path) -> None:
    tensors = [
        TensorDef("in_b", INT32, (1, 3), (-1, 3)),
        TensorDef("in_a", UINT8, (1, 2, 2), (-1, 2, -1)),
        TensorDef("out", BOOL, (), has_rank=True),
        TensorDef("odd", FLOAT, ()),
    ]
    subgraphs = [SubgraphDef([]), SubgraphDef(tensors, [0, 1], [2, 3])]
    signatures = [
        SignatureDef("other", {"x": 1}, {"y": 2}, 1),
        SignatureDef("serving_default", {"b": 0, "a": 1}, {"z": 2, "y": 3}, 1),
    ]
    found = read(write(tmp_path, tflite_bytes(subgraphs, signatures)))
    assert [signature.name for signature in found.signatures] == ["other", "serving_default"]
    assert found.signatures[1] == Signature(
        "serving_default",
        PREDICT,
        (Port("a", "in_a", 4, (-1, 2, -1)), Port("b", "in_b", 3, (-1, 3))),
        (Port("y", "odd", 1, None), Port("z", "out", 10, ())),
    )


def test_a_model_without_signatures_has_its_tensors_names_as_aliases(tmp_path: Path) -> None:
    tensors = [TensorDef("serving_default_x:0", shape=(1, 4)), TensorDef("Identity", shape=(1, 2))]
    (signature,) = read(write(tmp_path, tflite_bytes([SubgraphDef(tensors, [0], [1])]))).signatures
    assert signature == Signature(
        "serving_default",
        PREDICT,
        (Port("serving_default_x", "serving_default_x:0", 1, (1, 4)),),
        (Port("Identity", "Identity", 1, (1, 2)),),
    )


def test_tensors_names_may_be_preferred(tmp_path: Path) -> None:
    found = read(write(tmp_path, half_plus_two()), "tensors").signatures
    assert [(s.name, s.inputs[0].alias, s.outputs[0].alias) for s in found] == [
        ("serving_default", "serving_default_x", "StatefulPartitionedCall")
    ]


def test_a_batch_of_exactly_one_row_may_grow() -> None:
    def signature(*dims: tuple[int, ...] | None) -> Signature:
        ports = tuple(Port(f"p{i}", f"t{i}", 1, each) for i, each in enumerate(dims))
        return Signature("s", PREDICT, ports[:1], ports[1:])

    assert with_rows(signature((1, 4), (1, 2))) == signature((-1, 4), (-1, 2))
    for dims in ([(-1, 4), (-1, 2)], [(1, -1), (1, 2)], [(2, 4), (1, 2)], [(1, 4), ()], [(1, 4), None]):
        assert with_rows(signature(*dims)) is None


def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    def refused(*signatures: SignatureDef) -> str:
        tensors = [TensorDef("text", STRING), TensorDef("r", RESOURCE), TensorDef("x"), TensorDef("y")]
        try:
            read(write(tmp_path, tflite_bytes([SubgraphDef(tensors, [2], [3])], signatures)))
        except TFLiteError as error:
            return str(error)
        return ""

    why = "'t' is a tensor of type string, which LiteRT's C API gives no access to"
    strings = SignatureDef("strings", {"t": 0}, {"y": 3})
    assert f"{tmp_path / MODEL}: cannot be served: signature 'strings': {why}" == refused(strings)
    assert "'r' is a tensor of type resource" in refused(SignatureDef("s", {"x": 2}, {"r": 1}))
    # One that can run is enough: the others say for themselves that they cannot.
    assert refused(strings, SignatureDef("good", {"x": 2}, {"y": 3})) == ""
    assert "a signature is of subgraph 7, and there are 1" in refused(SignatureDef("s", {}, {}, 7))
    assert "tensor 9 is named, and there are 4" in refused(SignatureDef("s", {"x": 9}, {}))
    assert "two signatures have one name" in refused(*[SignatureDef("s", {"x": 2}, {"y": 3})] * 2)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TFLiteError, match=r"no such file; name a directory that holds model\.tflite"):
        read(tmp_path)
    for data, why in [
        (b"", "something is said to be at byte 4, and it ends at 0"),
        (b"abcd", "ends at 4"),
        (b"\x10\x00\x00\x00XXXX" + bytes(64), "bytes 4 to 8 are b'XXXX'"),
    ]:
        with pytest.raises(TFLiteError, match="not a TFLite model, or cut short") as caught:
            read(write(tmp_path, data))
        assert why in str(caught.value)
    with pytest.raises(TFLiteError, match="it has no subgraph"):
        read(write(tmp_path, tflite_bytes([])))


def test_a_file_is_whole_when_all_of_its_weights_are_there(tmp_path: Path) -> None:
    whole = half_plus_two()
    file = tmp_path / MODEL
    file.write_bytes(whole)
    assert why_cut_short(file) == ""
    # Up to what pads the file at its end.
    for size in range(0, len(whole) - 4, 97):
        file.write_bytes(whole[:size])
        assert why_cut_short(file), size
    file.write_bytes(tflite_bytes([]))
    assert why_cut_short(file) == "it has no subgraph"


def test_weights_behind_the_flatbuffer_count_too(tmp_path: Path) -> None:
    data = bytearray(tflite_bytes([SubgraphDef([TensorDef("x")], [0], [0])], [], [b""]))
    # The one buffer's table gets an offset and a size, in a vtable of its own at the end of the file.
    model = root(Bytes(len(data), lambda count, at: bytes(data[at : at + count])), b"TFL3")
    (buffer,) = model.tables(4)
    vtable = len(data)
    data[buffer.at : buffer.at + 4] = struct.pack("<i", buffer.at - vtable)
    place = vtable + 10
    data += struct.pack("<5H", 10, 4, 0, place - buffer.at, place + 8 - buffer.at)
    data += struct.pack("<QQ", len(data) + 16, 100)
    file = tmp_path / MODEL
    file.write_bytes(data + bytes(99))
    assert f"a buffer ends at byte {len(data) + 100}, and the file at {len(data) + 99}" == why_cut_short(file)
    file.write_bytes(data + bytes(100))
    assert why_cut_short(file) == ""


def _read_all(data: bytes) -> None:
    """Every function of the reader over `data`, as read and why_cut_short go about it."""
    with suppress(BadFlatbuffer):
        model = root(Bytes(len(data), lambda count, at: data[at : at + count]), b"TFL3")
        for number in range(9):
            model.uint64(number)
            model.string(number)
            model.int32s(number)
            for table in model.tables(number):
                table.string(0)
                table.int32s(0)
                for inner in table.tables(0):
                    inner.string(3)
                    inner.int32s(7)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_an_error_and_nothing_worse(data: bytes) -> None:
    _read_all(data)
    _read_all(data[:4] + b"TFL3" + data[4:])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8))
def test_a_damaged_model_is_an_error_or_another_model(at: int, garbage: bytes) -> None:
    data = bytearray(half_plus_two()[:-4000])
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    _read_all(bytes(data))


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 1 << 20), garbage=st.binary(min_size=1, max_size=8))
def test_reading_a_damaged_file_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, garbage: bytes
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    data = bytearray(half_plus_two()[:-4000])
    at %= len(data)
    data[at : at + len(garbage)] = garbage
    write(directory, bytes(data))
    assert isinstance(why_cut_short(directory / MODEL), str)
    with suppress(TFLiteError):
        read(directory)


def test_a_file_that_shrinks_while_it_is_read_is_an_error() -> None:
    data = half_plus_two()
    with pytest.raises(BadFlatbuffer, match="it became shorter"):
        list(root(Bytes(1 << 20, lambda count, at: data[at : at + count][:1]), b"TFL3").tables(2))


# ---- which file a version is complete by ------------------------------------------------------


def test_a_version_counts_by_the_file_that_is_served(tmp_path: Path) -> None:
    version = tmp_path / "1"
    version.mkdir()
    assert "saved_model.pb is not there yet" in why_incomplete(version)
    assert f"{version}/model.tflite is not there yet" == why_incomplete(version, tflite="only")
    assert "saved_model.pb is not there yet" in why_incomplete(version, tflite="preferred")
    write(version, half_plus_two())
    for rule in ("alone", "preferred", "only"):
        assert why_incomplete(version, tflite=rule) == ""
    (version / "saved_model.pb").write_bytes(b"\x08")
    assert "saved_model.pb (1 bytes) is cut short" in why_incomplete(version, tflite="alone")
    assert why_incomplete(version, tflite="preferred") == ""
    assert why_incomplete(version, tflite="only") == ""
    write(version, half_plus_two()[:-4000])
    assert "model.tflite (" in why_incomplete(version, tflite="preferred")
    assert "is cut short or no TFLite model: " in why_incomplete(version, tflite="only")


def test_a_version_in_a_store_counts_by_its_name(tmp_path: Path) -> None:
    sizes = {"model.tflite": 1000, "other": 1}
    assert why_listing_incomplete("s3://m/1", sizes, tmp_path) == ""
    assert why_listing_incomplete("s3://m/1", {"model.tflite": 0}, tmp_path, tflite="only").endswith(
        "it is empty"
    )
    assert "model.tflite is not there yet" in why_listing_incomplete("s3://m/1", {}, tmp_path, tflite="only")


def test_the_runtime_goes_by_the_files_and_the_model(tmp_path: Path) -> None:
    def runtime(**settings: Any) -> str:
        return built_in_runtime(Model(name="m", base_path=str(tmp_path), **settings), str(tmp_path))

    assert runtime() == "tensorflow"
    assert runtime(platform="tflite") == "litert"
    write(tmp_path, half_plus_two())
    assert runtime() == "litert"
    (tmp_path / "saved_model.pb").touch()
    assert runtime() == "tensorflow"
    assert runtime(prefer_tflite=True) == "litert"
    assert runtime(platform="tflite") == "litert"


def test_inspect_shows_what_a_tflite_model_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    version = write(tmp_path / "3", half_plus_two())
    for directory in (version, tmp_path):
        shown = CliRunner().invoke(main, ["inspect", str(directory)])
        assert shown.exit_code == 0, shown.output
        assert f"{version}  a TFLite model" in shown.output
        assert "serving_default_x:0" in shown.output and "[?]" in shown.output
    refused = CliRunner().invoke(main, ["inspect", "--xla", str(version)])
    assert refused.exit_code != 0 and "XLA compiles SavedModels only" in refused.output
