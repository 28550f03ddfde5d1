"""The memories that a core shares with control: a set for each core, of a size that cannot change."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastserve.control.shared_memory import METRICS, SIZES, SharedMemory, make_memory


def test_a_memory_takes_what_is_touched_and_keeps_its_size() -> None:
    fd = make_memory(METRICS, SIZES[METRICS])
    assert os.fstat(fd).st_size == SIZES[METRICS] and os.fstat(fd).st_blocks == 0
    assert not os.get_inheritable(fd)
    os.pwrite(fd, b"x", SIZES[METRICS] - 1)
    assert 0 < os.fstat(fd).st_blocks * 512 <= 2 << 20  # a page, if need be a huge one
    for size in (0, 2 * SIZES[METRICS]):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)


def test_there_is_one_set_at_a_time() -> None:
    shared = SharedMemory({"a": 4096, "b": 8192})
    assert shared.current("a") is None and shared.generation == 0
    first = shared.renew()
    assert {name: os.fstat(fd).st_size for name, fd in first.items()} == {"a": 4096, "b": 8192}
    assert shared.current("b") == first["b"] and shared.generation == 1
    os.pwrite(first["a"], b"counted", 0)
    second = shared.renew()
    assert shared.generation == 2
    assert os.pread(second["a"], 7, 0) == bytes(7)
    shared.adopt({"a": make_memory("a", 4096)})
    assert shared.generation == 3 and shared.current("b") is None
    fd = shared.current("a")
    assert fd is not None
    shared.close()
    assert shared.current("a") is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_a_new_set_the_old_one_stays() -> None:
    shared = SharedMemory({"small": 4096, "large": 1 << 20})
    first = dict(shared.renew())
    descriptors = len(os.listdir("/proc/self/fd"))
    with files_of_at_most(1 << 16), pytest.raises(OSError, match="File too large"):
        shared.renew()
    assert {name: shared.current(name) for name in first} == first
    assert len(os.listdir("/proc/self/fd")) == descriptors
    shared.close()
