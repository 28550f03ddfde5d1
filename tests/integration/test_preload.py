"""The library that is put before the C library: a process with it reads as one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.environment import with_sliced_reads

READ = """
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for size, at in ((3_000_000, 0), (3_000_000, 999_999), (10, 2_999_995), (10, 3_000_000)):
    data = os.pread(fd, size, at)
    print(len(data), hashlib.sha256(data).hexdigest())
print([line.split()[-1] for line in open("/proc/self/maps") if "libpread" in line][:1])
"""


def said(path: Path, env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""  # the dynamic linker only warns of what it cannot preload
    return done.stdout.splitlines()


def test_a_file_is_read_as_without_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    without, found = said(path, plain), said(path, with_sliced_reads(plain))
    assert found[:-1] == without[:-1] and len(found) == 5
    assert without[-1] == "[]" and found[-1].endswith("_native/libpread.so']")


def test_it_comes_last() -> None:
    first, last = with_sliced_reads({"LD_PRELOAD": "/lib/a.so", "A": "b"})["LD_PRELOAD"].split()
    assert first == "/lib/a.so" and last.endswith("libpread.so")


def test_where_the_linker_would_take_its_path_for_two_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.__file__", "/opt/my models/fastserve/__init__.py")
    assert with_sliced_reads({"A": "b"}) == {"A": "b"}
