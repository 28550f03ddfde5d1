"""bench/servers.py and bench/process.py: counters that hide no failure, figures as the kernel has them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from program_file import program_file


@pytest.fixture(scope="module")
def servers() -> ModuleType:
    return program_file("bench/servers.py")


@pytest.fixture(scope="module")
def process() -> ModuleType:
    return program_file("bench/process.py")


def test_counters_between_two_readings_are_differences(servers: ModuleType) -> None:
    before = servers.Counters(ok=10, failed=1, cancelled=1, rows=20, batches=4, system_allocs=7)
    after = servers.Counters(ok=110, failed=2, cancelled=2, rows=420, batches=14, system_allocs=7)
    got = after - before
    assert got == servers.Counters(ok=100, failed=1, cancelled=1, rows=400, batches=10, system_allocs=0)
    assert got.mean_batch == 40.0


@pytest.mark.parametrize(("ok", "failed", "cancelled"), [(99, 0, 0), (100, 1, 0), (100, 1, 1)])
def test_failed_lost_and_missing_calls_are_refused(
    servers: ModuleType, ok: int, failed: int, cancelled: int
) -> None:
    counters = servers.Counters(ok, failed, cancelled, rows=100, batches=1, system_allocs=0)
    with pytest.raises(servers.ServerError, match="the client counted 100 good calls"):
        counters.check(100)


def test_more_good_calls_than_the_window_had_are_accepted(servers: ModuleType) -> None:
    """Those of the warm-up."""
    servers.Counters(ok=120, failed=0, cancelled=0, rows=120, batches=1, system_allocs=0).check(100)


def test_models_and_keys_become_a_configuration(servers: ModuleType, tmp_path: Path) -> None:
    from fastserve.config_read import parse_config

    options = {"reserved_executors": 1, "batching": {"max_batch_size": 64}}
    models = [servers.ServedModel("m", "/models/m", options), servers.ServedModel("n", "/models/n")]
    tables = {"executor": {"spin_us": 300, "threads": 2}, "server": {"io_threads": 1}}
    text = servers.config_text(models, tables, tmp_path / "state", tmp_path / "admin.sock")
    config = parse_config(text, str(tmp_path / "config.toml"))
    assert (config.executor.spin_us, config.models[0].reserved_executors) == (300, 1)
    assert config.models[0].batching.max_batch_size == 64
    assert config.models[1].name == "n"
    assert (config.server.io_threads, config.server.admin_socket) == (1, str(tmp_path / "admin.sock"))


def test_resident_memory_is_seen_to_grow(process: ModuleType) -> None:
    before = process.rss_bytes(os.getpid())
    held = bytearray(os.urandom(1 << 20)) * 64
    grown = process.rss_bytes(os.getpid()) - before
    assert len(held) == 64 << 20 and grown > 48 << 20
    assert process.peak_rss_bytes(os.getpid()) >= before + grown


def test_cpu_time_is_counted_per_thread_name(process: ModuleType) -> None:
    before = process.thread_cpu_us(os.getpid())["main"]
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    assert process.thread_cpu_us(os.getpid())["main"] - before > 25_000


def test_threads_that_differ_in_a_number_are_one(process: ModuleType) -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        Path("/proc/thread-self/comm").write_text(f"fs-test-{number}")
        stop.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 10.0
        while "fs-test" not in process.thread_cpu_us(os.getpid()) and time.monotonic() < deadline:
            pass
        names = process.thread_cpu_us(os.getpid())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "fs-test" in names
    assert not any(name.startswith("fs-test-") for name in names)


def test_reading_until_it_settles_gives_up_in_the_end(process: ModuleType) -> None:
    falling = iter([5.0, 4.0, 3.0, 2.0])
    assert process.settled(lambda: next(falling), 3.0, 10.0) == 3.0
    assert process.settled(lambda: 9.0, 3.0, 0.0) == 9.0
