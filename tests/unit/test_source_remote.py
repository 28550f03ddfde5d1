"""The remote source and its cache, with fsspec's memory: what needs no server that fails."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from exported_models import exported_models
from remote_stores import LIMIT_S, RemoteStore, Watch, memory_store

from fastserve.config import Model, Versions
from fastserve.control.plugins import check_plugins, make_source
from fastserve.control.remote_mirror import MANIFEST, InUse, Mirror, fingerprint
from fastserve.control.remote_store import RemoteFile, Store, protocol_of
from fastserve.control.source_remote import RemoteSource, list_remote_versions, remote_source
from fastserve.errors import ConfigError, ModelError
from fastserve.extensions import SourceContext
from fastserve.log import Log


@pytest.fixture
def store() -> RemoteStore:
    return memory_store()


@pytest.fixture
def model() -> Path:
    return exported_models() / "half_plus_two/1"


def _context(url: str, tmp_path: Path, **options: Any) -> SourceContext:
    return SourceContext(
        Model(name="m", base_path=url, options=options),
        choose=sorted,
        poll_s=1,
        cache_dir=str(tmp_path),
        log=Log(),
    )


# ---- what a configuration may say -------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("s3://bucket/m", "s3"),
        ("https://host/m", "https"),
        ("simplecache::s3://bucket/m", "simplecache"),
        ("/srv/models", ""),
        ("models", ""),
    ],
)
def test_a_url_is_told_from_a_directory(path: str, protocol: str) -> None:
    assert protocol_of(path) == protocol


def test_a_url_gets_the_remote_source(store: RemoteStore, tmp_path: Path) -> None:
    assert isinstance(make_source(_context(store.url, tmp_path)), RemoteSource)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "s3fs" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"s3 needs the package s3fs: pip install 'fastserve\[remote\]'"):
        remote_source(_context("s3://bucket/m", tmp_path))


def test_fsspec_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.registry", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastserve\[remote\]'"):
        remote_source(_context("s3://bucket/m", tmp_path))


def test_a_configuration_with_an_unknown_protocol_is_refused() -> None:
    from fastserve.config import Config

    with pytest.raises(ConfigError, match='no file system of fsspec is called "s4"'):
        check_plugins(Config(models=(Model(name="m", base_path="s4://bucket/m"),)))


@pytest.mark.parametrize("options", [{"poll_s": 0}, {"poll_s": "1"}, {"timeout_s": -1}, {"timeout_s": True}])
def test_an_option_of_ours_is_checked(store: RemoteStore, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a number of seconds, more than 0"):
        remote_source(_context(store.url, tmp_path, **options))


async def test_an_option_that_the_store_does_not_know_is_a_problem(
    store: RemoteStore, tmp_path: Path
) -> None:
    store.url = "s3://bucket/m"
    store.options = {"anon": True, "config_kwargs": {"no_such_setting": 1}}
    async with Watch(store, tmp_path) as watch:
        assert "no_such_setting" in watch.problem


def test_nothing_of_fsspec_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, fastserve.control.source_remote, fastserve.control.plugins\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('fsspec', 's3fs', 'aiohttp')])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert out.strip() == "[]"


def test_the_versions_of_a_url_are_listed_for_a_check(store: RemoteStore, model: Path) -> None:
    described = Model(name="m", base_path=store.url)
    with pytest.raises(ModelError, match="has no version"):
        list_remote_versions(described)
    store.upload(model, 9)
    store.upload(model, 10)
    assert list(list_remote_versions(described).items()) == [(9, f"{store.url}/9"), (10, f"{store.url}/10")]


# ---- which versions ---------------------------------------------------------------------------


async def test_only_directories_with_numbers_are_versions(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    for name in ("latest", "-1", "1.5", "²", str(1 << 63)):
        store.put(f"{name}/saved_model.pb", b"")
    store.put("3", b"a file")
    store.upload(model, 2)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        assert watch.served == [2]


async def test_polls_are_gentle_unless_told_otherwise(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path, poll_s=0.5) as watch:
        await watch.look(2)
        assert watch.waits[0] == 1.0  # what was seen once is looked at again soon
        assert all(4 <= wait <= 6 for wait in watch.waits[1:])
    store.options["poll_s"] = 2
    async with Watch(store, tmp_path / "other", poll_s=0.5) as watch:
        await watch.look(2)
        assert all(1.6 <= wait <= 2.4 for wait in watch.waits[1:])


async def test_what_an_operator_pauses_is_not_aspired(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        watch.choice.paused = True
        await watch.look()
        assert watch.served == []
        assert watch.problem == ""


async def test_what_is_served_stays_until_what_was_chosen_instead_is_here(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    store.upload(exported_models() / "defaults/1", 2)
    async with Watch(store, tmp_path, versions=Versions(policy="specific", specific=(1,))) as watch:
        await watch.look()
        watch.choice.versions = Versions(policy="specific", specific=(2,))
        await watch.look()
        assert watch.served == [1]
        await watch.look()
        assert watch.served == [2]
        assert 0 not in [len(aspired.versions) for aspired in watch.told]


async def test_a_run_that_takes_over_from_another_says_what_is_aspired_again(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        told = len(watch.told)
        assert watch.task is not None
        watch.task.cancel()
        watch.start()  # without waiting for the end of the one before, as a reload does
        await watch.look()
        assert watch.served == [1]
        assert len(watch.told) == told + 1
        assert watch.cached() == ["1"]


async def test_with_polling_off_it_looks_until_it_knows_and_no_more(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    watch = Watch(store, tmp_path, poll_s=0)
    await watch.look()
    watch._go.set()
    async with asyncio.timeout(LIMIT_S):
        while not watch.served:
            await watch.turn()
    store.upload(exported_models() / "defaults/1", 2)
    waits = len(watch.waits)
    for _ in range(20):
        await watch.turn()
    assert watch.served == [1]
    assert len(watch.waits) == waits
    await watch.stop()


async def test_a_store_that_hangs_does_not_hold_up_the_end(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    hangs, end = threading.Event(), threading.Event()

    def hang(*args: Any, **kwargs: Any) -> None:
        hangs.set()
        end.wait(30)

    monkeypatch.setattr(MemoryFileSystem, "ls", hang)
    watch = Watch(store, tmp_path)
    watch.start()
    async with asyncio.timeout(LIMIT_S):
        while not hangs.is_set():
            await watch.turn()
    await watch.stop()
    end.set()


async def test_a_name_that_would_lead_out_of_the_cache_is_left_out(store: RemoteStore) -> None:
    opened = Store(store.url, {}, answer_s=30, stall_s=30)
    await opened.open()
    entries = [{"name": f"{store.url}/1/{name}", "type": "file"} for name in ("..", ".", "a\0b", "", "good")]
    opened._fs.ls = lambda *args, **kwargs: entries  # what no honest store says
    assert list(await opened._list(f"{store.url}/1", store.url)) == ["good"]


async def test_what_changes_while_it_is_copied_is_not_taken(
    store: RemoteStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(model, 1)
    fetch = Store.fetch

    async def meddle(self: Store, file: RemoteFile, *args: Any) -> None:
        await fetch(self, file, *args)
        if file.path.endswith("fingerprint.pb"):
            store.put("1/saved_model.pb", b"another")

    async with Watch(store, tmp_path) as watch:
        monkeypatch.setattr(Store, "fetch", meddle)
        await watch.look()
        assert watch.served == []
        assert "changed while it was copied" in watch.problem
        monkeypatch.undo()
        await watch.look(2)
        assert "saved_model.pb (7 bytes) is cut short" in watch.problem
        store.upload(model, 1)
        await watch.look(2)
        assert watch.served == [1]


# ---- the cache --------------------------------------------------------------------------------


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_copies_that_nobody_wants_are_removed_after_a_while_but_for_one(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    clock = _Clock()
    async with Watch(store, tmp_path, clock=clock) as watch:
        for number in (1, 2, 3, 4):
            store.upload(model, number)
            clock.now += 10
            await watch.look(2)
        assert watch.cached() == ["1", "2", "3", "4"]
        clock.now += 300
        await watch.look()
        assert watch.cached() == ["3", "4"]
        assert watch.served == [4]
        clock.now += 3000
        await watch.look()
        assert watch.cached() == ["3", "4"]


async def test_a_cache_that_somebody_empties_is_filled_again(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        for file in sorted((watch.cache / "1").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        await watch.look()
        assert (Path(watch.aspired.versions[0].path) / "saved_model.pb").is_file()


async def test_what_is_not_ours_stays_in_the_cache(store: RemoteStore, model: Path, tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/precious").write_text("mine")
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        assert watch.served == [1]
        assert (tmp_path / "m/1/precious").read_text() == "mine"
        assert watch.aspired.versions[0].path != str(tmp_path / "m/1")


async def test_copies_from_another_url_are_not_taken_for_ours(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
    elsewhere = memory_store()
    elsewhere.upload(exported_models() / "defaults/1", 1)
    clock = _Clock()
    async with Watch(elsewhere, tmp_path, clock=clock) as watch:
        assert watch.served == []
        await watch.look()
        data = (Path(watch.aspired.versions[0].path) / "saved_model.pb").read_bytes()
        assert data == (exported_models() / "defaults/1/saved_model.pb").read_bytes()


def test_a_copy_that_lost_a_byte_is_removed_at_the_start(tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path), "m", "s3://b/m")
    assert mirror.open() == []
    files = {"a": RemoteFile("b/m/1/a", 3, "mark")}
    part = mirror.begin(1, files)
    (part.coming / "0").write_bytes(b"abc")
    mirror.keep(part, part.coming / "0", "a")
    copy = mirror.commit(part, fingerprint(files), 1.0)
    assert mirror.open() == [copy]
    assert mirror.open() == [copy]
    Path(copy.path, "a").write_bytes(b"ab")
    assert mirror.open() == []
    assert not Path(copy.path).exists()


def test_a_part_keeps_only_files_that_are_still_the_same(tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path), "m", "s3://b/m")
    mirror.open()
    before = {
        name: RemoteFile(name, 1, mark) for name, mark in (("same", "1"), ("new", "1"), ("unmarked", ""))
    }
    part = mirror.begin(1, {**before, "gone": RemoteFile("gone", 1, "1")})
    for name in ("same", "new", "unmarked", "gone"):
        (part.coming / name).write_bytes(b"x")
        mirror.keep(part, part.coming / name, name)
    again = mirror.begin(1, {**before, "new": RemoteFile("new", 1, "2")})
    assert again.there == {"same"}
    assert [path.name for path in again.whole.iterdir()] == ["same"]


def test_a_directory_has_one_user_at_a_time(tmp_path: Path) -> None:
    first, second = (Mirror(str(tmp_path), "m", "s3://b/m") for _ in range(2))
    first.open()
    with pytest.raises(InUse, match="cache_dir"):
        second.open()
    first.close()
    assert second.open() == []


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc", "ä ö"])
def test_a_models_name_is_one_directory_in_the_cache(tmp_path: Path, name: str) -> None:
    mirror = Mirror(str(tmp_path), name, "s3://b/m")
    mirror.open()
    assert mirror.directory.resolve().parent == tmp_path.resolve()
    assert [path.name for path in tmp_path.iterdir()] == [mirror.directory.name]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", json.dumps({"files": 3}), json.dumps({"files": {"a": 1}, "url": 3})]
)
def test_a_manifest_that_is_damaged_makes_no_copy(tmp_path: Path, text: str) -> None:
    mirror = Mirror(str(tmp_path), "m", "s3://b/m")
    mirror.open()
    (mirror.directory / "1").mkdir()
    (mirror.directory / "1" / MANIFEST).write_text(text)
    assert mirror.open() == []


async def test_a_cache_that_cannot_be_made_ends_the_source_with_its_path(
    store: RemoteStore, tmp_path: Path
) -> None:
    (tmp_path / "m").write_text("a file")
    with pytest.raises(ModelError, match=r"cache_dir"):
        await Watch(store, tmp_path).look()


def test_fingerprints_tell_sizes_marks_and_names_apart() -> None:
    versions = [
        {"a": RemoteFile("a", 1, "x")},
        {"b": RemoteFile("a", 1, "x")},
        {"a": RemoteFile("a", 2, "x")},
        {"a": RemoteFile("a", 1, "y")},
        {"a": RemoteFile("a", 1, "x"), "b": RemoteFile("b", 1, "x")},
        {},
    ]
    assert len({fingerprint(version) for version in versions}) == len(versions)
