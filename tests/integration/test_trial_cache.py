"""The compile cache with real trials: who finds what, and what happens when it is damaged, full or gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from exported_models import exported_models
from msgspec.structs import replace

from fastserve.config import Batching, Model, TensorFlow
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.xla_cache import XlaCache, entries_of, open_cache
from fastserve.environment import child_argv, child_environment, tensorflow_dir, with_xla_cache
from fastserve.extensions import VersionPath
from fastserve.log import Log

TIMEOUT_S = 180
# What the ranker's two signatures compile: one at three batch sizes, the other until its answers differ.
ENTRIES = 4

# The core's part: opens servables one after the other and runs their batch sizes. Says what it did in the
# cache.
CORE = """
import json, sys
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime
from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir
from fastserve.control.trial_cache import CacheWatch

directory, *servables = json.load(sys.stdin)
watch = CacheWatch(directory) if directory else None
runtime = Runtime("tensorflow", library_dir=tensorflow_dir(TensorFlow()))
found = []
for servable in servables:
    model = runtime.open(ModelSpec(servable))
    for rows in (1, 2, 4):
        inputs = [(1, (rows, 13), bytes(rows * 13 * 4)), (9, (rows, 8), bytes(rows * 8 * 8))]
        model.run("serving_default", inputs, compiled=True)
    if watch:
        watch.entries.clear()
        found.append(len(watch.take()))
print(json.dumps([found, watch.compiled if watch else 0]))
"""


class Bench:
    """A runner with a cache below `state`."""

    def __init__(self, state: Path, xla: str = "full", argv: list[str] | None = None) -> None:
        self.state = state
        self.model = Model(name="m", base_path="/m", xla=xla, batching=Batching(max_batch_size=4))  # type: ignore[arg-type]
        self.settings = replace(TensorFlow(), library_dir=tensorflow_dir(TensorFlow()))
        self.env = child_environment(self.settings)
        log = Log(level="error")
        cache = open_cache(state, self.settings, self.env, log)
        assert cache is not None
        self.cache: XlaCache = cache
        self.runner = TrialRunner(argv or child_argv("fastserve.control.trial"), self.env, log, cache=cache)

    async def trial(self, name: str = "ranker") -> Trial:
        request = trial_request(
            self.model,
            VersionPath(1, str(exported_models() / name / "1")),
            self.settings,
            previous_choice=None,
            prepared_dir=str(self.state / "prepared" / name),
        )
        return await self.runner.run(request, TIMEOUT_S, lambda stage: None)

    def core(self, *trials: Trial) -> tuple[list[int], int]:
        """For each servable how many entries were read, and how many were written in all."""
        directory = str(self.cache.directory)
        ran = subprocess.run(
            [sys.executable, "-c", CORE],
            input=json.dumps([directory, *(trial.servable for trial in trials)]).encode(),
            env=with_xla_cache(self.env, directory, read_only=True)
            | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        assert ran.stderr == b"", "TensorFlow has something to say about what it finds"
        read, written = json.loads(ran.stdout)
        return read, written

    @property
    def entries(self) -> set[str]:
        return set(os.listdir(self.cache.directory))


def compiled(trial: Trial) -> list[str]:
    return [s["name"] for s in trial.servable["signatures"] if s["compiled"]]


async def test_later_trials_a_retrained_version_and_the_core_compile_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a directory")
    first = await bench.trial()
    assert first.report["cache"] == {"hits": 0, "compiled": ENTRIES}
    assert set(entries_of(first.servable)) == bench.entries
    again = await bench.trial()
    retrained = await bench.trial("ranker_retrained")
    for trial in (again, retrained):
        assert trial.report["cache"] == {"hits": ENTRIES, "compiled": 0}
        assert entries_of(trial.servable) == entries_of(first.servable)
        assert bench.cache.verify(trial.servable) == []
    assert bench.core(first, retrained) == ([3, 3], 0)


async def test_clusters_are_found_by_the_core_for_each_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path, xla="cluster")
    first, retrained = await bench.trial(), await bench.trial("ranker_retrained")
    assert compiled(first) == compiled(retrained) == ["serving_default"]
    assert first.report["cache"]["compiled"] >= 3
    again = await bench.trial()
    assert again.report["cache"] == {"hits": first.report["cache"]["compiled"], "compiled": 0}
    assert bench.core(first, retrained) == ([3, 3], 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, empty, cut])
async def test_a_damaged_entry_is_compiled_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    bench = Bench(tmp_path)
    first = await bench.trial()
    damaged = bench.cache.directory / next(iter(entries_of(first.servable)))
    damaged.chmod(0o600)
    damage(damaged)
    assert bench.cache.verify(first.servable) == [damaged.name]
    again = await bench.trial()
    assert again.report["cache"] == {"hits": ENTRIES - 1, "compiled": 1}
    assert bench.cache.verify(again.servable) == []
    assert compiled(again) == ["serving_default"]


async def test_entries_that_only_tensorflow_knows_to_be_bad_are_compiled_again(tmp_path: Path) -> None:
    """With checksums that are right: they were damaged before anyone took them."""
    bench = Bench(tmp_path)
    first = await bench.trial()
    names = list(entries_of(first.servable))
    for name in names:
        (bench.cache.directory / name).chmod(0o600)
        cut(bench.cache.directory / name)
    digests = {name: sha256((bench.cache.directory / name).read_bytes()).hexdigest() for name in names}
    bench.cache.record(digests)
    again = await bench.trial()
    assert compiled(again) == ["serving_default"]
    # The first that failed went, and so did the trial's trust in the rest.
    assert bench.cache.verify(again.servable) == []


async def test_a_disk_that_fills_up_costs_the_cache_and_not_the_version(tmp_path: Path) -> None:
    """No file of the trial's may grow beyond 51,000 bytes: the prepared model does not, some entry does."""
    limited = (
        "import resource, runpy\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (51_000, 51_000))\n"
        "runpy.run_module('fastserve.control.trial', run_name='__main__')"
    )
    bench = Bench(tmp_path, argv=[sys.executable, "-c", limited])
    trial = await bench.trial()
    assert compiled(trial) == ["serving_default"]
    assert trial.report["cache"] == {"hits": 0, "compiled": 0}
    assert entries_of(trial.servable) == {}


async def test_a_directory_that_cannot_be_made_costs_the_cache_and_not_the_version(tmp_path: Path) -> None:
    (tmp_path / "xla").touch()
    trial = await Bench(tmp_path).trial()
    assert compiled(trial) == ["serving_default"]
    assert entries_of(trial.servable) == {}


async def test_a_core_whose_directory_is_gone_compiles_for_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    trial = await bench.trial()
    for name in bench.entries:
        (bench.cache.directory / name).unlink()
    assert bench.core(trial) == ([0], 0)
    assert bench.entries == set(), "and leaves nothing there"
