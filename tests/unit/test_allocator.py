"""[server] allocator: which library the core is started with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastserve.control import allocator
from fastserve.control.allocator import allocator_environment
from fastserve.errors import StartError

# Any library of this machine serves as an allocator that can be preloaded.
REAL = next(str(path) for path in Path("/").glob("lib*/**/libm.so.6"))
INHERITED = {"PATH": os.environ["PATH"]}


def test_the_c_librarys_needs_nothing() -> None:
    assert allocator_environment("system", {"LD_PRELOAD": "/x.so"}) == {}


def test_a_library_by_its_path_comes_before_what_is_preloaded_already() -> None:
    assert allocator_environment(REAL, INHERITED) == {"LD_PRELOAD": REAL}
    inherited = {**INHERITED, "LD_PRELOAD": REAL, "MALLOC_CONF": "x:1"}
    assert allocator_environment(REAL, inherited) == {"LD_PRELOAD": f"{REAL} {REAL}"}


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        StartError, match=r'allocator = ".*/none\.so": there is no such file; expected "system"'
    ):
        allocator_environment(str(tmp_path / "none.so"), INHERITED)


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "malloc.so"
    path.write_text("int main")
    with pytest.raises(StartError, match=r"malloc\.so cannot be preloaded: .*(invalid ELF header|too short)"):
        allocator_environment(str(path), INHERITED)


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose text is what the dynamic linker's cache holds; nothing is in the usual folders."""
    path = tmp_path / "cache"
    path.write_text("")
    monkeypatch.setattr(allocator, "_cached_libraries", path.read_text)
    monkeypatch.setattr(allocator, "_FOLDERS", (str(tmp_path / "lib"),))
    return path


def test_jemalloc_is_found_where_the_dynamic_linker_finds_it(tmp_path: Path, listing: Path) -> None:
    library = tmp_path / "libjemalloc.so.2"
    library.symlink_to(REAL)
    listing.write_text(
        "2 libs found in cache\n"
        f"\tlibjemalloc.so.2.old (libc6,x86-64) => {REAL}\n"
        f"\tlibjemalloc.so.2 (libc6) => {tmp_path}/gone/libjemalloc.so.2\n"
        f"\tlibjemalloc.so.2 (libc6,x86-64) => {library}\n"
    )
    expected = {"LD_PRELOAD": str(library), "MALLOC_CONF": "background_thread:true"}
    assert allocator_environment("jemalloc", INHERITED) == expected


def test_jemalloc_is_found_without_the_cache(tmp_path: Path, listing: Path) -> None:
    library = tmp_path / "lib" / "x86_64-linux-gnu" / "libjemalloc.so.2"
    library.parent.mkdir(parents=True)
    library.symlink_to(REAL)
    inherited = {**INHERITED, "MALLOC_CONF": "narenas:2"}
    found = allocator_environment("jemalloc", inherited)
    assert found == {"LD_PRELOAD": str(library), "MALLOC_CONF": "background_thread:true,narenas:2"}


def test_jemalloc_that_is_not_installed(listing: Path) -> None:
    with pytest.raises(
        StartError, match=r"libjemalloc\.so\.2 is not installed; apt-get install libjemalloc2"
    ):
        allocator_environment("jemalloc", INHERITED)


def test_the_cache_of_this_machine_can_be_read() -> None:
    assert " => " in allocator._cached_libraries()
