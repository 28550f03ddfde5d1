"""complete.py, variables_index.py and wire.py: on models that TensorFlow exported, whole and in parts, and on
files that are something else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from exported_models import exported_models
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.saved_model_files import meta_graph, write

from fastserve.control.complete import fingerprint, why_incomplete, written_before
from fastserve.control.variables_index import BadIndex, Compressed, crc32c, shard_sizes
from fastserve.control.wire import BadWire, fields

MODELS = [
    "defaults", "half_plus_two", "identity", "ranker", "reference_variable", "shapes", "tensorflow1"
]  # fmt: skip
INDEX = "variables/variables.index"
DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return _copy("shapes", tmp_path)


def _copy(model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_models() / model / "1", tmp_path / model / "1"))


def _cuts(size: int) -> list[int]:
    """Every length of a small file; of a large one, those where something may be special."""
    if size < 2000:
        return list(range(size))
    return sorted({*range(0, size, size // 400), *range(100), *range(size - 100, size)})


# ---- models of TensorFlow's -------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_what_tensorflow_exports_is_complete(model: str) -> None:
    assert why_incomplete(exported_models() / model / "1") == ""


@pytest.mark.parametrize("model", MODELS)
def test_the_index_says_how_long_the_data_is(model: str) -> None:
    version = exported_models() / model / "1"
    assert shard_sizes(version / INDEX) == ((version / DATA).stat().st_size,)


@pytest.mark.parametrize("file", ["saved_model.pb", INDEX, DATA])
def test_a_file_cut_at_any_length_is_seen(version: Path, file: str) -> None:
    whole = (version / file).read_bytes()
    for length in _cuts(len(whole)):
        os.truncate(version / file, 0)
        (version / file).write_bytes(whole[:length])
        reason = why_incomplete(version)
        assert file in reason, length
        assert str(length) in reason, length  # a size to compare
    (version / file).write_bytes(whole)
    assert why_incomplete(version) == ""


@pytest.mark.parametrize("file", ["saved_model.pb", INDEX, DATA, "assets/words.txt"])
def test_a_file_that_is_missing_is_named(version: Path, file: str) -> None:
    (version / file).unlink()
    assert str(version / file) in why_incomplete(version)


@pytest.mark.parametrize("directory", ["variables", "assets"])
def test_a_directory_that_is_missing_is_seen(version: Path, directory: str) -> None:
    shutil.rmtree(version / directory)
    assert f"/{directory}/" in why_incomplete(version)


def test_no_directory_at_all_is_a_reason(tmp_path: Path) -> None:
    assert "saved_model.pb is not there yet" in why_incomplete(tmp_path / "1")


def test_a_model_as_text_is_never_complete_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1")
    assert "saved_model.pbtxt is not read" in why_incomplete(tmp_path)


def test_a_model_that_restores_nothing_needs_no_variables(tmp_path: Path) -> None:
    assert why_incomplete(write(tmp_path / "1", meta_graph())) == ""


def test_a_copy_of_any_order_is_complete_with_its_last_file_only(version: Path, tmp_path: Path) -> None:
    needed = ["saved_model.pb", INDEX, DATA, "assets/words.txt"]
    for last in needed:
        target = tmp_path / f"without-{Path(last).name}"
        for file in [*(name for name in needed if name != last), last]:
            assert why_incomplete(target) != ""
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(version / file, target / file)
        assert why_incomplete(target) == ""


def test_shards_are_looked_for_by_the_number_that_the_index_names(version: Path) -> None:
    (version / INDEX).write_bytes(_table([(b"", b"\x08\x02"), (b"w", b"\x18\x01\x20\x0a\x28\x05")]))
    assert shard_sizes(version / INDEX) == (0, 15)
    data = version / "variables"
    assert "variables.data-00000-of-00002 is not there" in why_incomplete(version)
    (data / "variables.data-00000-of-00002").touch()
    assert "variables.data-00001-of-00002 is not there; by the index it has 15 bytes" in why_incomplete(
        version
    )
    (data / "variables.data-00001-of-00002").write_bytes(bytes(14))
    assert "variables.data-00001-of-00002 has 14 bytes of the 15" in why_incomplete(version)
    (data / "variables.data-00001-of-00002").write_bytes(bytes(15))
    assert why_incomplete(version) == ""


def test_a_marker_decides_alone(tmp_path: Path, version: Path) -> None:
    assert f"{version}/DONE is not there yet" in why_incomplete(version, "DONE")
    (version / "DONE").touch()
    assert why_incomplete(version, "DONE") == ""
    (tmp_path / "DONE").touch()
    assert why_incomplete(tmp_path, "DONE") == ""


# ---- files that are something else ------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _block(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """Without prefixes in common; `kind` is what the block says of its compression."""
    data = (
        b"".join(b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
        + (0).to_bytes(8, "little")[:4]
        + (1).to_bytes(4, "little")
    )
    crc = crc32c(data + bytes([kind]))
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data + bytes([kind]) + masked.to_bytes(4, "little")


def _table(*blocks: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    out, handles = b"", []
    for entries in blocks:
        block = _block(entries, kind)
        handles.append((b"key", _varint(len(out)) + _varint(len(block) - 5)))
        out += block
    index = _block(handles)
    footer = _varint(0) + _varint(0) + _varint(len(out)) + _varint(len(index) - 5)
    return out + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def test_crc32c_is_the_one_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_entries_over_several_blocks_are_all_counted(tmp_path: Path) -> None:
    header = [(b"", b"\x08\x01"), (b"a", b"\x28\x05")]
    (tmp_path / "index").write_bytes(_table(header, [(b"b", b"\x20\x05\x28\x07")]))
    assert shard_sizes(tmp_path / "index") == (12,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (_table([(b"a", b"\x28\x05")]), "no header"),
        (_table([(b"", b"\x08\x01"), (b"", b"\x08\x01")]), "two headers"),
        (_table([(b"", b"")]), "0 shards"),
        (_table([(b"", b"\x08\xff\xff\xff\xff\x0f")]), "4294967295 shards"),
        (_table([(b"", b"\x08\x01"), (b"a", b"\x18\x01")]), "shard 1 of 1"),
        (_table(), "no header"),
        (_table([(b"", b"\x08\x01")]).replace(b"key", b"kez"), "checksum"),
    ],
)
def test_a_table_that_is_no_index_is_a_reason(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "index").write_bytes(data)
    with pytest.raises(BadIndex, match=why):
        shard_sizes(tmp_path / "index")


def test_blocks_that_repeat_do_not_multiply_the_work(tmp_path: Path) -> None:
    block = _block([(b"", b"\x08\x01")])
    index = _block([(b"key", _varint(0) + _varint(len(block) - 5))] * 2)
    footer = (b"\0\0" + _varint(len(block)) + _varint(len(index) - 5)).ljust(40, b"\0")
    (tmp_path / "index").write_bytes(block + index + footer + (0xDB4775248B80FB57).to_bytes(8, "little"))
    with pytest.raises(BadIndex, match="overlap"):
        shard_sizes(tmp_path / "index")


def test_of_a_compressed_index_only_the_names_are_looked_at(version: Path) -> None:
    (version / INDEX).write_bytes(_table([(b"", b"\x08\x01")], kind=1))
    with pytest.raises(Compressed):
        shard_sizes(version / INDEX)
    assert why_incomplete(version) == ""
    (version / DATA).unlink()
    assert "its data is not" in why_incomplete(version)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_upset_the_wire_format(data: bytes) -> None:
    try:
        list(fields(data))
    except BadWire:
        return


@given(file=st.sampled_from(["saved_model.pb", INDEX]), garbage=st.binary(max_size=300), tail=st.booleans())
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_reason_and_no_exception(
    tmp_path_factory: pytest.TempPathFactory, file: str, garbage: bytes, tail: bool
) -> None:
    version = _copy("half_plus_two", tmp_path_factory.mktemp("garbage"))
    footer = (version / file).read_bytes()[-48:] if tail else b""
    (version / file).write_bytes(garbage + footer)
    assert isinstance(why_incomplete(version), str)
    shutil.rmtree(version.parents[1])


@given(at=st.integers(0, 731), mask=st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_a_flipped_byte_of_the_index_changes_no_size(
    tmp_path_factory: pytest.TempPathFactory, at: int, mask: int
) -> None:
    index = exported_models() / "ranker/1" / INDEX
    data = bytearray(index.read_bytes())
    data[at] ^= mask
    flipped = tmp_path_factory.mktemp("flip") / "index"
    flipped.write_bytes(data)
    try:
        assert shard_sizes(flipped) == shard_sizes(index)  # a byte of the padding, or of the block not read
    except BadIndex as error:
        assert str(error)
    except Compressed:
        pytest.fail("a checksum covers that byte")


def test_a_large_file_of_something_else_ends_soon(tmp_path: Path) -> None:
    with open(tmp_path / "saved_model.pb", "wb") as file:
        file.truncate(1 << 33)
    assert "no SavedModel" in why_incomplete(tmp_path)


# ---- nothing changed, renamed into place ------------------------------------------------------


def test_the_fingerprint_stays_while_nothing_changes(version: Path) -> None:
    before = fingerprint(version)
    assert before
    assert fingerprint(version) == before
    version.rename(version.with_name("2"))
    assert fingerprint(version.with_name("2")) == before


def test_the_fingerprint_changes_with_every_kind_of_change(version: Path) -> None:
    seen = [fingerprint(version)]
    with open(version / DATA, "ab") as file:
        file.write(b"x")
    seen.append(fingerprint(version))
    os.utime(version / "saved_model.pb", ns=(1, 1))
    seen.append(fingerprint(version))
    (version / "new").touch()
    seen.append(fingerprint(version))
    (version / "new").rename(version / "newer")
    seen.append(fingerprint(version))
    status = (version / INDEX).stat()
    shutil.copy(version / INDEX, version.parent / "copy")
    os.utime(version.parent / "copy", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(version.parent / "copy", version / INDEX)  # same name, size and mtime: another inode
    seen.append(fingerprint(version))
    assert len(set(seen)) == len(seen)


def test_there_is_no_fingerprint_of_what_is_not_there(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "1") == ""


def test_a_link_to_nowhere_is_a_file_like_any_other(version: Path) -> None:
    before = fingerprint(version)
    (version / "link").symlink_to("nowhere")
    assert fingerprint(version) not in ("", before)


def test_a_rename_does_not_make_a_version_younger(version: Path) -> None:
    written = max(path.stat().st_ctime for path in version.rglob("*"))
    version.rename(version.with_name("2"))
    assert written_before(version.with_name("2"), written + 1)


def test_what_was_written_after_the_last_look_is_not_old(version: Path) -> None:
    os.utime(version / DATA, ns=(1, 1))  # as cp -p and rsync -t set it
    assert not written_before(version, min(path.stat().st_ctime for path in version.rglob("*")))
    assert not written_before(version.parent / "gone", time.time())
