"""Trials forked from a process that has TensorFlow's library open, against those that open it themselves."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exported_models import exported_models
from lifecycle import children_of, command, exported
from msgspec.structs import replace

from fastserve.config import Batching, Model, TensorFlow
from fastserve.control.trial_forks import TrialForks
from fastserve.control.trial_runner import Trial, TrialRunner, trial_request
from fastserve.control.xla_cache import XlaCache, open_cache
from fastserve.environment import child_argv, child_environment, tensorflow_dir
from fastserve.errors import ModelError
from fastserve.extensions import VersionPath
from fastserve.log import Log

TIMEOUT_S = 180
# Times, and what the process has touched of its libraries' files.
VARYING = {"seconds", "peak_bytes", "memory_bytes", "cache"}
MEASURED = {"costs_us", "compiled_us", "plain_us", "compile_s", "warm_s"}


class Bench:
    """A runner that forks, and one that does not, each with a compile cache of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = replace(TensorFlow(), library_dir=tensorflow_dir(TensorFlow()))
        self.env = child_environment(self.settings)
        self.log = os.open(directory / "log", os.O_RDWR | os.O_CREAT)
        log = Log(self.log)
        self.forks = TrialForks(self.settings.library_dir, self.env, log)
        self.caches: list[XlaCache] = []
        for name in ("forked", "started"):
            cache = open_cache(directory / name, self.settings, self.env, log)
            assert cache is not None
            self.caches.append(cache)
        self.forking = TrialRunner(
            ["/no/such/program"], self.env, log, cache=self.caches[0], forks=self.forks
        )
        argv = child_argv("fastserve.control.trial")
        self.starting = TrialRunner(argv, self.env, log, cache=self.caches[1])

    async def trial(
        self, runner: TrialRunner, path: Path, timeout_s: float = TIMEOUT_S, **options: Any
    ) -> Trial:
        model = Model(name="m", base_path="/m", batching=Batching(max_batch_size=4), **options)
        request = trial_request(
            model,
            VersionPath(1, str(path)),
            self.settings,
            previous_choice=None,
            prepared_dir=str(self.directory / "prepared"),
        )
        return await runner.run(request, timeout_s, lambda stage: None)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.forks.close()
    os.close(bench.log)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if "on purpose" not in line] == []


def without(what: set[str], found: Any) -> Any:
    """A report or a servable without what differs between any two trials."""
    if isinstance(found, dict):
        return {key: without(what, value) for key, value in found.items() if key not in what}
    return [without(what, value) for value in found] if isinstance(found, list) else found


def private_kb(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.parametrize(("name", "xla"), [("half_plus_two", "off"), ("ranker", "off"), ("ranker", "full")])
async def test_both_find_the_same(bench: Bench, name: str, xla: str) -> None:
    path = exported_models() / name / "1"
    forked = await bench.trial(bench.forking, path, xla=xla)
    started = await bench.trial(bench.starting, path, xla=xla)
    assert bench.forks.pid is not None
    varying = VARYING | MEASURED | {"xla_cache"}
    assert without(varying, forked.servable) == without(varying, started.servable)
    assert without(varying, forked.report) == without(varying, started.report)
    assert forked.report["seconds"].keys() == started.report["seconds"].keys()
    mine, theirs = forked.report["memory_bytes"], started.report["memory_bytes"]
    assert abs(mine - theirs) <= max(2 << 20, 0.05 * theirs), (mine, theirs)


async def test_the_server_has_one_thread_and_little_memory_of_its_own(bench: Bench) -> None:
    path = exported_models() / "half_plus_two" / "1"
    for _ in range(2):
        await bench.trial(bench.forking, path)
        assert len(os.listdir(f"/proc/{bench.forks.pid}/task")) == 1
    private = private_kb(bench.forks.pid)
    assert private < 100 << 10, f"{private} kB: let it end when it has nothing to do"


async def test_flags_of_one_trial_alone_are_heard(bench: Bench) -> None:
    """TensorFlow reads them at its first session, and not when its library is opened."""
    path = exported_models() / "ranker" / "1"
    first = await bench.trial(bench.forking, path, xla="full")
    entries = first.report["cache"]["compiled"]
    assert entries > 0
    assert set(os.listdir(bench.caches[0].directory)) == set(first.servable["xla_cache"])
    again = await bench.trial(bench.forking, path, xla="full")
    assert again.report["cache"] == {"hits": entries, "compiled": 0}
    await bench.trial(bench.forking, path, xla="off")


async def test_clusters_are_made_as_ever(bench: Bench) -> None:
    path = exported_models() / "ranker" / "1"
    forked = await bench.trial(bench.forking, path, xla="cluster")
    started = await bench.trial(bench.starting, path, xla="cluster")
    assert forked.report["cache"]["compiled"] == started.report["cache"]["compiled"] > 0
    assert forked.servable["xla_cache"].keys() == started.servable["xla_cache"].keys()


async def test_a_crash_is_told_as_ever_and_the_next_trial_forked(bench: Bench) -> None:
    words = []
    for runner in (bench.forking, bench.starting):
        with pytest.raises(ModelError) as caught:
            await bench.trial(runner, exported("crashing"))
        words.append(str(caught.value))
    assert words[0].startswith("the trial ended with SIGABRT; it wrote: ")
    # But for when, by whom and at which addresses.
    forked, started = (re.sub(r"[IWEF]\d{4} \S+ +\d+ |0x[0-9a-f]+", "", text) for text in words)
    assert forked == started
    server = bench.forks.pid
    await bench.trial(bench.forking, exported("half"))
    assert bench.forks.pid == server


async def test_one_that_hangs_is_killed(bench: Bench) -> None:
    await bench.trial(bench.forking, exported("half"))
    with pytest.raises(ModelError, match="the trial was not done within trial_timeout_s = 5"):
        await bench.trial(bench.forking, exported("hanging"), 5.0)
    children = children_of(os.getpid())
    assert bench.forks.pid in children
    assert not any("fastserve.control.trial" in command(pid) for pid in children)


async def test_a_refusal_is_told_as_ever(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = []
    for runner in (bench.forking, bench.starting):
        with pytest.raises(ModelError) as caught:
            await bench.trial(runner, tmp_path / "empty")
        words.append(str(caught.value))
    assert words[0] == words[1]
