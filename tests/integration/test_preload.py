"""The library that is put before the C library: a process with it reads as one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.environment import with_preloaded

READ = """
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for size, at in ((3_000_000, 0), (3_000_000, 999_999), (10, 2_999_995), (10, 3_000_000)):
    data = os.pread(fd, size, at)
    print(len(data), hashlib.sha256(data).hexdigest())
print([line.split()[-1] for line in open("/proc/self/maps") if "libpreload" in line][:1])
"""

# How often a thread leaves its processor of its own accord that one which takes breaks has made: until it
# has done so for a while, or for so many seconds.
WORK = """
import os, resource, sys, threading, time
from fastserve._native.breaks import Breaks
def stops():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
def work():
    before, end = stops(), time.monotonic() + float(sys.argv[1])
    while stops() - before < 20 and time.monotonic() < end:
        pass
    print(stops() - before)
normal = os.getpriority(os.PRIO_PROCESS, 0)
os.setpriority(os.PRIO_PROCESS, 0, normal + 3)
with Breaks(normal):
    thread = threading.Thread(target=work)
    thread.start()
thread.join()
"""
# How many MB of 64 a process still has that has freed them, where the C library keeps what is freed: from a
# thread that takes breaks, and from one that does not.
FREE = """
import ctypes, os, resource, sys
from fastserve._native.breaks import Breaks
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, BYTES = -1, -3, 64 << 20
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def left(breaks):
    block, above = c.malloc(BYTES), c.malloc(100)
    ctypes.memset(block, 1, BYTES)
    if breaks:
        with breaks:
            c.free(block)
    else:
        c.free(block)
    return resident() - before >> 20
c.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
c.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
before = resident()
print(left(Breaks(os.getpriority(os.PRIO_PROCESS, 0))), left(None))
"""
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def said(code: str, argument: str, env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""  # the dynamic linker only warns of what it cannot preload
    return done.stdout.splitlines()


def test_a_file_is_read_as_without_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))
    without, found = said(READ, str(path), PLAIN), said(READ, str(path), with_preloaded(PLAIN))
    assert found[:-1] == without[:-1] and len(found) == 5
    assert without[-1] == "[]" and found[-1].endswith("_native/libpreload.so']")


def test_threads_take_the_breaks_of_those_that_made_them() -> None:
    (found,) = said(WORK, "60", with_preloaded(PLAIN))
    (without,) = said(WORK, "0.5", PLAIN)
    assert int(found) >= 20 > int(without)  # Python, too, has a thread let go of its lock now and then


def test_what_a_thread_with_breaks_frees_is_the_systems_at_once() -> None:
    (found,) = said(FREE, "", with_preloaded(PLAIN))
    with_breaks, without = map(int, found.split())
    assert with_breaks < 8 and without > 56
    assert all(int(left) > 56 for left in said(FREE, "", PLAIN)[0].split())


def test_it_comes_last() -> None:
    first, last = with_preloaded({"LD_PRELOAD": "/lib/a.so", "A": "b"})["LD_PRELOAD"].split()
    assert first == "/lib/a.so" and last.endswith("libpreload.so")


def test_where_the_linker_would_take_its_path_for_two_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.__file__", "/opt/my models/fastserve/__init__.py")
    assert with_preloaded({"A": "b"}) == {"A": "b"}
