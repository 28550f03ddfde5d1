"""The remote source with stores on loopback: S3 (moto), a web server, fsspec's memory; and when they fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported_models import exported_models
from remote_stores import LIMIT_S, Faults, RemoteStore, S3Server, Watch, memory_store, web_store

from fastserve.config import Versions
from fastserve.control.complete import why_incomplete

INDEX = "variables/variables.index"
DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture(params=["memory", "s3", "web"])
def store(request: pytest.FixtureRequest) -> RemoteStore:
    """Each of the stores."""
    if request.param == "memory":
        return memory_store()
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(params=["s3", "web"])
def server(request: pytest.FixtureRequest) -> RemoteStore:
    """Each of the stores that can fail."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server) -> RemoteStore:
    return s3_server.store()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RemoteStore]:
    made, stop = web_store(tmp_path / "web")
    yield made
    stop()


@pytest.fixture
def model() -> Path:
    return exported_models() / "shapes/1"


@pytest.fixture
def other() -> Path:
    return exported_models() / "half_plus_two/1"


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".fastserve-remote.json"
    }


# ---- when the store does what it should -------------------------------------------------------


async def test_a_version_is_copied_once_it_is_at_rest(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        assert watch.told == []  # it may still be being written
        await watch.look()
        assert watch.served == [1]
        assert watch.problem == ""
        assert watch.aspired.versions[0].path == str(watch.cache / "1")
        assert _files(watch.cache / "1") == _files(model)
        assert watch.cached() == ["1"]
        await watch.look(3)
        assert len(watch.told) == 1  # nothing new, nothing said


async def test_a_new_version_takes_over_when_it_is_here(
    store: RemoteStore, model: Path, other: Path, tmp_path: Path
) -> None:
    store.upload(model, 9)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        store.upload(other, 10)
        await watch.look()
        assert watch.served == [9]
        await watch.look()
        assert watch.served == [10]
        assert [path.version for path in watch.aspired.spares] == [9]
        assert _files(watch.cache / "10") == _files(other)


@pytest.mark.parametrize(
    ("store", "last"),
    [
        ("memory", "saved_model.pb"),
        ("web", "saved_model.pb"),
        ("memory", INDEX),
        ("memory", DATA),
        ("web", DATA),
        ("s3", DATA),
        ("memory", "assets/words.txt"),
    ],
    indirect=["store"],
)
async def test_a_version_that_is_half_uploaded_does_not_count(
    store: RemoteStore, model: Path, other: Path, tmp_path: Path, last: str
) -> None:
    store.upload(other, 1)
    store.upload(model, 2, without=[last])
    async with Watch(store, tmp_path) as watch:
        await watch.look(2)
        assert watch.served == [1]
        assert f"version 2 does not count: {store.url}/2/{last} is not there" in watch.problem
        assert not list(watch.cache.glob(f"2*/**/{Path(DATA).name}"))  # the large files were not fetched
        store.upload_file(model, 2, last)
        await watch.look(2)
        assert watch.served == [2]
        assert watch.problem == ""
        assert _files(watch.cache / "2") == _files(model)
        assert watch.cached() == ["1", "2"]


async def test_a_shard_that_is_too_short_does_not_count(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    store.put(f"1/{DATA}", (model / DATA).read_bytes()[:-1])
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        assert watch.served == []
        assert "has 1144 bytes of the 1145" in watch.problem


async def test_a_version_that_changes_in_place_is_copied_to_another_place(
    store: RemoteStore, model: Path, other: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        before = watch.aspired.versions[0]
        store.delete("1")
        store.upload(other, 1)
        await watch.look()
        assert watch.aspired.versions[0].path == before.path
        await watch.look()
        after = watch.aspired.versions[0]
        assert after.version == 1
        assert after.path != before.path
        assert after.fingerprint != before.fingerprint
        assert _files(Path(after.path)) == _files(other)
        assert _files(Path(before.path)) == _files(model)  # it may still be served


async def test_a_version_that_is_removed_makes_way_for_the_one_before(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        store.upload(model, 2)
        await watch.look(2)
        assert watch.served == [2]
        store.delete("2")
        await watch.look()
        assert watch.served == [1]
        assert watch.problem == ""


async def test_a_marker_makes_a_version_count_at_once(store: RemoteStore, tmp_path: Path) -> None:
    store.put("1/table.txt", b"a 1\n")
    async with Watch(store, tmp_path, versions=Versions(complete_marker="DONE"), platform="lookup") as watch:
        await watch.look(2)
        assert watch.served == []
        assert f"{store.url}/1/DONE is not there yet" in watch.problem
        store.put("1/DONE", b".")
        await watch.look()
        assert watch.served == [1]
        assert _files(watch.cache / "1") == {"table.txt": b"a 1\n", "DONE": b"."}


async def test_several_versions_are_all_copied(
    store: RemoteStore, model: Path, other: Path, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        store.upload(other if number % 2 else model, number)
    versions = Versions(policy="latest", num_versions=2)
    async with Watch(store, tmp_path, versions=versions) as watch:
        await watch.look()
        assert watch.served == [2, 3]
        assert watch.cached() == ["2", "3"]


async def test_a_start_goes_on_with_what_is_in_the_cache(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
    before = len(store.faults.seen)
    async with Watch(store, tmp_path) as watch:
        assert watch.served == [1]
        assert not [line for line in watch.log_lines if line.startswith("download")]
        assert not [seen for seen in store.faults.seen[before:] if "GET" in seen and seen.endswith(DATA)]


async def test_objects_that_were_uploaded_in_parts_have_no_md5_to_check(
    s3: RemoteStore, tmp_path: Path
) -> None:
    model = exported_models() / "ranker/1"
    s3.upload(model, 1, without=[DATA])
    bucket = s3.url.split("/")[2]
    key = f"models/m/1/{DATA}"
    upload = s3.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    data = (model / DATA).read_bytes() + bytes(6 << 20)
    parts = [
        {"PartNumber": number, "ETag": s3.client.upload_part(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=piece)["ETag"]}
        for number, piece in enumerate((data[: 5 << 20], data[5 << 20 :]), 1)
    ]  # fmt: skip
    s3.client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    async with Watch(s3, tmp_path) as watch:
        await watch.look()
        assert watch.served == [1]
        assert (watch.cache / "1" / DATA).read_bytes() == data


# ---- when it does not -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Faults.SILENT, 403, 500])
async def test_what_is_served_stays_while_the_store_fails(
    server: RemoteStore, model: Path, other: Path, tmp_path: Path, fault: str | int
) -> None:
    server.upload(model, 1)
    async with Watch(server, tmp_path) as watch:
        await watch.look()
        server.faults.by_path[""] = fault
        if fault == Faults.SILENT:
            watch.limit(answer_s=0.3)
        await watch.look()
        assert watch.served == [1]
        assert server.url in watch.problem
        said = {Faults.SILENT: "no answer within 0.3 s", 403: "access is denied", 500: "500"}[fault]
        assert said in watch.problem
        watch.limit()
        server.faults.clear()
        server.upload(other, 2)
        await watch.look(2)
        assert watch.served == [2]
        assert watch.problem == ""


async def test_a_start_without_the_store_serves_what_is_in_the_cache(
    server: RemoteStore, model: Path, tmp_path: Path
) -> None:
    server.upload(model, 1)
    async with Watch(server, tmp_path) as watch:
        await watch.look()
    server.faults.by_path[""] = Faults.SILENT
    async with Watch(server, tmp_path, answer_s=0.2) as watch:
        assert watch.served == [1]
        assert "no answer" in watch.problem
        server.faults.clear()


async def test_a_server_that_is_not_there_is_said_to_be_so(model: Path, tmp_path: Path) -> None:
    gone, stop = web_store(tmp_path / "web")
    stop()
    async with Watch(gone, tmp_path) as watch:
        assert watch.served == []
        assert "Connect" in watch.problem and gone.url in watch.problem


async def test_a_base_path_that_is_not_there_is_a_problem(server: RemoteStore, tmp_path: Path) -> None:
    server.url += "-not"
    async with Watch(server, tmp_path) as watch:
        assert watch.served == []
        assert f"{server.url}: there is nothing" in watch.problem


async def test_a_base_path_that_is_empty_takes_nothing_out_of_service(
    store: RemoteStore, model: Path, tmp_path: Path
) -> None:
    store.upload(model, 1)
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        store.delete("1")
        await watch.look()
        assert watch.served == [1]
        assert store.url in watch.problem


@pytest.mark.parametrize("fault", [Faults.CUT, Faults.STALL, Faults.FLIP, 403])
async def test_a_file_that_does_not_arrive_whole_is_no_version(
    server: RemoteStore, model: Path, other: Path, tmp_path: Path, fault: str | int
) -> None:
    if fault == Faults.FLIP and server.url.startswith("http"):
        server.faults.by_path["/2/saved_model.pb"] = fault  # no checksum: what is seen is seen by its content
        fault = ""
    server.upload(other, 1)
    async with Watch(server, tmp_path) as watch:
        await watch.look()
        if fault == Faults.STALL:
            watch.limit(stall_s=1.5)
        server.faults.method = "GET"
        server.faults.by_path[f"/2/{DATA}"] = fault
        server.upload(model, 2)
        await watch.look(2)
        if fault != "":
            assert watch.served == [1]
            assert f"version 2 could not be copied: {server.url}/2/{DATA}" in watch.problem
            assert "2" not in watch.cached()
        watch.limit()
        server.faults.clear()
        await watch.look(2)
        assert watch.served == [2]
        assert watch.problem == ""
        assert watch.cached() == ["1", "2"]
        if fault != "":
            assert _files(watch.cache / "2") == _files(model)


async def test_a_wrong_checksum_is_named(s3: RemoteStore, model: Path, tmp_path: Path) -> None:
    s3.upload(model, 1)
    s3.faults.by_path["fingerprint.pb"] = Faults.FLIP
    async with Watch(s3, tmp_path) as watch:
        await watch.look()
        assert watch.served == []
        assert "checksum" in watch.problem.lower() or "the store says" in watch.problem


async def test_an_older_version_serves_where_the_newest_cannot_be_copied(
    server: RemoteStore, model: Path, other: Path, tmp_path: Path
) -> None:
    server.upload(other, 1)
    server.upload(model, 2)
    server.faults.by_path["/2/fingerprint.pb"] = 403
    server.faults.method = "GET"
    async with Watch(server, tmp_path) as watch:
        await watch.look(2)
        assert watch.served == [1]
        assert "version 2 could not be copied" in watch.problem
        server.faults.clear()
        await watch.look()
        assert watch.served == [2]


async def test_looks_are_farther_apart_while_they_fail(web: RemoteStore, tmp_path: Path) -> None:
    web.faults.by_path[""] = 500
    async with Watch(web, tmp_path) as watch:
        await watch.look(5)
        for wait, about in zip(watch.waits, (20, 40, 60, 60, 60, 60), strict=True):
            assert 0.8 * about <= wait <= 1.2 * about
        assert len(set(watch.waits)) == len(watch.waits)  # no two machines in step
        web.faults.clear()


# ---- the end in the middle --------------------------------------------------------------------


async def test_a_download_is_cancelled_at_once_and_leaves_only_a_part(
    server: RemoteStore, model: Path, tmp_path: Path
) -> None:
    server.upload(model, 1)
    server.faults.by_path[f"/1/{DATA}"] = Faults.STALL
    server.faults.method = "GET"
    watch = Watch(server, tmp_path)
    await watch.look()
    watch._go.set()
    await asyncio.to_thread(server.faults.stalled.wait, LIMIT_S)
    assert "version 1" in watch.source.progress
    loop = asyncio.get_running_loop()
    began = loop.time()
    await watch.stop()
    assert loop.time() - began < 5  # the store would keep it for longer
    assert watch.cached() == ["1.part"]
    assert watch.source.progress == ""


RUN = """
import asyncio, resource, sys
sys.path[:0] = [{repo!r}, {tests!r}]
from pathlib import Path
from remote_stores import RemoteStore, Watch

if {file_bytes}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))

async def main():
    store = RemoteStore({url!r}, {options!r}, None, None)
    async with Watch(store, Path({cache!r})) as watch:
        await watch.look(2)
        print(watch.served, watch.problem, watch.cached(), flush=True)

asyncio.run(main())
"""


def _process(store: RemoteStore, cache: Path, file_bytes: int = 0) -> subprocess.Popen[str]:
    tests = Path(__file__).resolve().parents[1]
    code = RUN.format(
        repo=str(tests.parent),
        tests=str(tests),
        url=store.url,
        options=store.options,
        cache=str(cache),
        file_bytes=file_bytes,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


async def test_a_start_after_a_crash_goes_on_where_it_was(
    server: RemoteStore, model: Path, tmp_path: Path
) -> None:
    server.upload(model, 1)
    server.faults.by_path[f"/1/{DATA}"] = Faults.STALL
    server.faults.method = "GET"
    process = _process(server, tmp_path)
    try:
        assert await asyncio.to_thread(server.faults.stalled.wait, LIMIT_S)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
    assert os.listdir(tmp_path / "m" / "1.part")
    assert not (tmp_path / "m" / "1").exists()
    server.faults.clear()
    before = len(server.faults.seen)
    async with Watch(server, tmp_path) as watch:
        assert watch.served == []
        await watch.look()
        assert watch.served == [1]
        assert watch.cached() == ["1"]
        assert _files(watch.cache / "1") == _files(model)
        fetched = [seen for seen in server.faults.seen[before:] if seen.startswith("GET")]
        assert not [seen for seen in fetched if "saved_model.pb" in seen]  # it was here
        assert [seen for seen in fetched if f"/1/{DATA}" in seen]


async def test_a_disk_that_is_full_is_said_to_be_so_and_left_clean(
    store: RemoteStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    store.upload(model, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    async with Watch(store, tmp_path) as watch:
        await watch.look()
        assert watch.served == []
        assert f"{watch.cache} has no room" in watch.problem
        assert "[loading] cache_dir" in watch.problem
        monkeypatch.undo()
        await watch.look()
        assert watch.served == [1]


async def test_a_write_that_fails_for_want_of_room_leaves_nothing(
    server: RemoteStore, tmp_path: Path
) -> None:
    server.upload(exported_models() / "ranker/1", 1)
    process = _process(server, tmp_path, file_bytes=100_000)
    out, _ = await asyncio.to_thread(process.communicate, timeout=LIMIT_S)
    assert process.returncode == 0, out
    assert out.startswith("[] version 1 could not be copied: "), out
    assert f"{tmp_path / 'm'} has no room" in out
    assert out.rstrip().endswith("[]")  # no part of it either


async def test_what_is_copied_is_what_tensorflow_exported(server: RemoteStore, tmp_path: Path) -> None:
    server.upload(exported_models() / "ranker/1", 7)
    async with Watch(server, tmp_path) as watch:
        await watch.look()
        assert watch.served == [7]
        assert why_incomplete(watch.aspired.versions[0].path) == ""
