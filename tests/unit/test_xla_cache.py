"""The compile cache on disk: what is kept, what goes, and what keeps a trial from having one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve.config import TensorFlow
from fastserve.control.xla_cache import XlaCache, entries_of, open_cache
from fastserve.control.xla_cache_key import cache_key
from fastserve.log import Log

DAY_S = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def new_cache(tmp_path: Path, **options: object) -> XlaCache:
    return XlaCache(tmp_path / "xla", "key", Log(level="error"), **options)  # type: ignore[arg-type]


def add(cache: XlaCache, name: str, data: bytes = b"compiled code") -> dict[str, str]:
    """As a trial does: the file, and then what it tells of it."""
    cache.directory.mkdir(parents=True, exist_ok=True)
    (cache.directory / name).write_bytes(data)
    entries = {name: hashlib.sha256(data).hexdigest()}
    cache.record(entries)
    return entries


def names(cache: XlaCache) -> set[str]:
    return set(os.listdir(cache.directory))


def test_what_trials_have_made_stays_and_cannot_be_written(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    assert cache.prepare() == ""
    entries = add(cache, "a.pb")
    assert cache.prepare() == ""
    assert names(cache) == {"a.pb"}
    assert cache.verify({"xla_cache": entries}) == []
    assert (cache.directory / "a.pb").stat().st_mode & 0o777 == 0o444
    assert new_cache(tmp_path).prepare() == "", "and in the next life"
    assert names(cache) == {"a.pb"}


def bit_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def zero_length(path: Path) -> None:
    os.truncate(path, 0)


def a_link(path: Path) -> None:
    """Even to what it was: whoever owns the target may change it."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [bit_flip, truncated, zero_length, a_link, gone])
def test_damage_is_found_before_the_core_and_before_a_trial(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cache = new_cache(tmp_path)
    first, second = add(cache, "a.pb"), add(cache, "b.pb", b"other code")
    (cache.directory / "a.pb").chmod(0o600)
    damage(cache.directory / "a.pb")
    assert cache.verify({"xla_cache": second}) == []
    assert cache.verify({"xla_cache": first | second}) == ["a.pb"]
    assert names(cache) == {"b.pb"}

    add(cache, "a.pb")
    (cache.directory / "a.pb").chmod(0o600)
    damage(cache.directory / "a.pb")
    assert cache.prepare() == ""
    assert names(cache) == {"b.pb"}


def test_what_no_trial_has_told_of_goes(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    add(cache, "a.pb")
    (cache.directory / "foreign.pb").write_bytes(b"planted")
    (cache.directory / "a.pbhost-12-34.tmp").write_bytes(b"half of")
    (cache.directory / "directory.pb").mkdir()
    (cache.directory / "directory.pb" / "file").touch()
    (cache.directory / "link.pb").symlink_to("/etc/passwd")
    assert cache.prepare() == ""
    assert names(cache) == {"a.pb"}
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize("text", ["", "null", "[]", '{"entries": []}', '{"entries": {"a.pb": {}}}', "\xff"])
def test_a_damaged_manifest_costs_the_entries_and_nothing_else(tmp_path: Path, text: str) -> None:
    cache = new_cache(tmp_path)
    add(cache, "a.pb")
    (tmp_path / "xla" / "key.json").write_text(text, "latin-1")
    assert cache.prepare() == ""
    assert names(cache) == set()
    entries = add(cache, "b.pb")
    assert cache.verify({"xla_cache": entries}) == []


def test_names_that_are_paths_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.pb"
    outside.write_bytes(b"mine")
    cache = new_cache(tmp_path)
    entries = {"../../outside.pb": hashlib.sha256(b"mine").hexdigest(), ".hidden.pb": "", "a.txt": ""}
    assert cache.prepare() == ""
    cache.record(entries)
    assert cache.verify({"xla_cache": entries}) == list(entries)
    cache.discard({"xla_cache": entries})
    assert outside.read_bytes() == b"mine"
    assert json.loads((tmp_path / "xla" / "key.json").read_text()) == {"entries": {}}


def test_a_version_can_be_discarded(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    entries = add(cache, "a.pb")
    add(cache, "b.pb")
    cache.discard({"xla_cache": entries, "model": "m"})
    assert names(cache) == {"b.pb"}
    cache.discard({"model": "never compiled"})
    assert entries_of({}) == {}


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    clock = Clock()
    cache = new_cache(tmp_path, max_bytes=250, clock=clock)
    for name in ("a.pb", "b.pb", "c.pb"):
        clock.now += 1
        add(cache, name, name.encode() * 25)
    clock.now += 1
    cache.record({"a.pb": hashlib.sha256(b"a.pb" * 25).hexdigest()})
    assert cache.prepare() == ""
    assert names(cache) == {"a.pb", "c.pb"}
    clock.now += 31 * DAY_S
    add(cache, "d.pb")
    assert cache.prepare() == ""
    assert names(cache) == {"d.pb"}


def test_caches_of_settings_that_nobody_uses_any_more_go(tmp_path: Path) -> None:
    old = XlaCache(tmp_path / "xla", "old", Log(level="error"))
    add(old, "a.pb")
    cache = new_cache(tmp_path)
    assert cache.prepare() == ""
    assert old.directory.exists()
    os.utime(tmp_path / "xla" / "old.json", (1e9, 1e9))
    assert cache.prepare() == ""
    assert not old.directory.exists()
    assert sorted(os.listdir(tmp_path / "xla")) == ["key"]


def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    cache = new_cache(tmp_path)
    entries = add(cache, "a.pb")
    (cache.directory / "a.pb").unlink()
    cache.directory.rmdir()
    assert cache.verify({"xla_cache": entries}) == ["a.pb"]
    cache.directory.touch()
    assert cache.prepare() == ""
    assert cache.directory.is_dir()


def test_a_disk_that_is_full_or_cannot_be_written_says_so(tmp_path: Path) -> None:
    why = new_cache(tmp_path, free_bytes=1 << 60).prepare()
    assert why == f"{tmp_path}/xla/key: less than {1 << 40} MiB are left on the disk"
    (tmp_path / "file").touch()
    assert XlaCache(tmp_path / "file", "key", Log(level="error")).prepare().endswith("Not a directory")
    nowhere = XlaCache("/proc/self", "key", Log(level="error"))
    assert nowhere.prepare().startswith("/proc/self/key: ")
    nowhere.record({"a.pb": "12ab"})


def test_there_is_a_cache_unless_it_is_off_or_somebody_has_brought_one(tmp_path: Path) -> None:
    log = Log(level="error")
    assert open_cache(tmp_path, TensorFlow(xla_cache=False), {}, log) is None
    own = {"TF_XLA_FLAGS": "--a --tf_xla_persistent_cache_directory=/mine"}
    assert open_cache(tmp_path, TensorFlow(), own, log) is None
    cache = open_cache(tmp_path, TensorFlow(), {}, log)
    assert cache is not None and cache.directory.parent == tmp_path / "xla"
    assert not cache.directory.exists()


# ---- the key ------------------------------------------------------------------------------


def proc(tmp_path: Path, cpuinfo: str, gpu: str = "") -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    if gpu:
        path = tmp_path / "driver" / "nvidia" / "gpus" / "0000:01:00.0"
        path.mkdir(parents=True)
        (path / "information").write_text(f"Model: \t {gpu}\nIRQ: 12\n")
        (tmp_path / "driver" / "nvidia" / "version").write_text("NVRM version: 550.1\nGCC version: 12\n")
    return tmp_path


CPU = "processor : 0\nmodel name : A\nflags : sse avx\ncpu MHz : 1000\n"


def test_the_key_is_of_what_compiled_code_depends_on(tmp_path: Path) -> None:
    def key(
        settings: TensorFlow = TensorFlow(),  # noqa: B008
        environment: dict[str, str] | None = None,
        cpuinfo: str = CPU,
        gpu: str = "",
    ) -> str:
        place = tmp_path / hashlib.sha256(repr((cpuinfo, gpu)).encode()).hexdigest()
        if not place.exists():
            proc(place, cpuinfo, gpu)
        return cache_key(settings, environment or {}, place)

    same = key()
    assert key(cpuinfo=CPU.replace("1000", "2000") + CPU.replace(": 0", ": 1")) == same
    assert key(environment={"HOME": "/x"}) == same
    assert key(TensorFlow(log_level="info", inter_op_threads=3)) == same
    library = tmp_path / "tensorflow"
    library.mkdir()
    (library / "libtensorflow_cc.so.2").write_bytes(b"another build")
    others = [
        key(cpuinfo=CPU.replace("avx", "avx512f")),
        key(cpuinfo=CPU.replace("name : A", "name : B")),
        key(TensorFlow(intra_op_threads=2)),
        key(TensorFlow(device="cpu")),
        key(TensorFlow(library_dir=str(library))),
        key(environment={"XLA_FLAGS": "--xla_cpu_enable_fast_math"}),
        key(environment={"TF_XLA_FLAGS": "--tf_xla_cpu_global_jit"}),
        key(environment={"CUDA_VISIBLE_DEVICES": "1"}),
        key(gpu="NVIDIA H200"),
        key(gpu="NVIDIA A100"),
    ]
    assert len({same, *others}) == 1 + len(others)
    assert key(TensorFlow(device="cpu"), gpu="NVIDIA H200") == key(TensorFlow(device="cpu"))
