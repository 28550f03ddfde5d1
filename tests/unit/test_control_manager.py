"""The manager: one failure concerns one model; a core that dies is filled again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from unit import fake_trial
from unit.fake_core import Died, FakeCores

from fastserve.config import Batching, Loading, Model, TensorFlow, Versions, Warmup
from fastserve.control import manager as manager_module
from fastserve.control.manager import Manager, summary
from fastserve.control.memory import MemoryBudget
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.trial_runner import TrialRunner
from fastserve.control.work import VersionWork
from fastserve.extensions import Aspire, Aspired, SourceContext, State
from fastserve.log import Log


class World:
    """A manager with models on disk, a made-up core and made-up trials."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = Log(os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), json_lines=True)
        self.cores = FakeCores()
        self.core = CoreSupervisor(self.cores.spawn, {"listeners": []}, [], self.log, sleep=self._no_sleep)
        self.state = StateDir(str(root / "state"), self.log)
        self.models: list[Model] = []
        self.managers: list[Manager] = []
        self.loading = Loading(retries=0, poll_s=0.01)

    @staticmethod
    async def _no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    def model(self, name: str, versions: dict[str, dict[str, Any]], **options: Any) -> None:
        base = self.root / name
        base.mkdir()
        for version, orders in versions.items():
            (base / version).mkdir()
            (base / version / "trial.json").write_text(json.dumps(orders))
        options.setdefault("batching", Batching(allowed_batch_sizes=(1, 2, 4)))
        options.setdefault("versions", Versions(complete_marker="trial.json"))
        self.models.append(Model(name=name, base_path=str(base), **options))

    async def load(self) -> Manager:
        trials = TrialRunner([sys.executable, fake_trial.__file__], os.environ, self.log)
        memory = MemoryBudget(0, lambda: None)
        work = VersionWork(TensorFlow(), self.loading, self.core, trials, self.state, memory, None, self.log)
        manager = Manager(self.loading, self.core, work, self.log)
        self.managers.append(manager)
        await self.core.start(manager.recover)
        manager.start(self.models)
        await manager.settled()
        return manager


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    world = World(tmp_path)
    yield world
    for manager in world.managers:
        await manager.close()
    await world.core.kill()


async def test_the_newest_version_is_tried_loaded_and_published(world: World) -> None:
    world.model(
        "m",
        {"1": {"error": "old"}, "12": {}, "3": {"error": "old"}},
        shed_predicted=True,
        warmup=Warmup(iterations=4),
    )
    manager = await world.load()
    assert world.cores.now.ops() == ["configure", "load m:12", "publish m:12"]
    servable = world.cores.now.commands[1]["servable"]
    assert servable["path"] == str(world.root / "m" / "12")
    assert (servable["shed_predicted"], servable["warmup"]) == (True, {"iterations": 4})
    (version,) = manager.available
    assert version.state is State.AVAILABLE and str(version) == "m:12"
    assert summary(version) == "m:12 (batched, XLA, 3 buckets)"


async def test_one_failure_concerns_one_model(world: World) -> None:
    world.model("bad", {"1": {"error": "no variables"}})
    world.model("good", {"1": {}})
    world.model("none", {})
    manager = await world.load()
    assert [str(version) for version in manager.available] == ["good:1"]
    assert manager.failed["bad:1"] == "no variables"
    assert "has no version" in manager.failed["none"]
    (bad,) = manager.named("bad").stream.versions
    assert bad.state is State.END and bad.failed


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("no disk"), "RuntimeError: no disk"), (asyncio.CancelledError(), "CancelledError: ")],
)
async def test_a_source_that_ends_by_itself_is_told_and_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    """What a library cancels inside a source looks like the cancelling of the source, and is none."""
    world.model("m", {"1": {}})
    real, problems, again = manager_module.make_source, [], asyncio.Event()

    class Failing:
        def __init__(self, context: SourceContext) -> None:
            self.real = real(context)
            self.errors = [error]

        async def run(self, aspire: Aspire) -> None:
            if self.errors:
                raise self.errors.pop()
            problems.append(world.managers[0].named("m").stream.problem)

            def aspired(aspired: Aspired) -> None:
                aspire(aspired)
                again.set()

            await self.real.run(aspired)

    monkeypatch.setattr(manager_module, "make_source", Failing)
    monkeypatch.setattr(manager_module, "_SOURCE_RESTART_S", 0.0)
    async with asyncio.timeout(30):
        manager = await world.load()
        await again.wait()
        await manager.settled()
    assert [str(version) for version in manager.available] == ["m:1"]
    assert problems == [f"its source failed: {told}"]
    assert manager.named("m").stream.problem == ""


async def test_a_version_that_the_core_refuses(world: World) -> None:
    world.model("m", {"1": {}})
    world.cores.answers["load"] = lambda command: {"ok": False, "code": "INTERNAL", "error": "no memory"}
    manager = await world.load()
    assert manager.failed == {"m:1": "no memory"}
    assert "publish m:1" not in world.cores.now.ops()


async def test_a_version_that_the_core_never_finishes(world: World) -> None:
    world.model("m", {"1": {}}, trial_timeout_s=3.0)
    world.cores.answers["load"] = lambda command: asyncio.sleep(3600)
    manager = await world.load()
    assert manager.failed == {"m:1": "the core did not load it within trial_timeout_s = 3"}


async def test_a_core_that_dies_during_a_load_gets_a_second_chance(world: World) -> None:
    deaths = [Died(-9)]

    def load(command: dict[str, Any]) -> None:
        if deaths:
            raise deaths.pop()

    world.model("m", {"1": {}})
    world.cores.answers["load"] = load
    manager = await world.load()
    assert [str(version) for version in manager.available] == ["m:1"]
    assert [core.ops() for core in world.cores.lives] == [
        ["configure", "load m:1"],
        ["configure", "load m:1", "publish m:1"],
    ]


async def test_a_version_that_kills_the_core_twice_is_given_up(world: World) -> None:
    def load(command: dict[str, Any]) -> None:
        if command["servable"]["model"] == "deadly":
            raise Died(-6)

    world.model("deadly", {"1": {}})
    world.model("good", {"1": {}})
    world.cores.answers["load"] = load
    manager = await world.load()
    assert manager.failed == {"deadly:1": "the core died twice while it loaded this version"}
    assert [str(version) for version in manager.available] == ["good:1"]
    # The good one is there again in the core that lives, once that is back.
    async with asyncio.timeout(20):
        while "publish good:1" not in world.cores.now.ops():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_recovery_loads_what_was_served_without_a_trial(world: World) -> None:
    world.model("a", {"1": {}})
    world.model("b", {"2": {}})
    world.model("bad", {"1": {"error": "x"}})
    await world.load()
    for name in ("a", "b"):
        # A trial now would fail.
        (world.root / name / "1" / "trial.json").unlink(missing_ok=True)
    await world.core.serve()
    world.cores.now.die(-11)
    async with asyncio.timeout(10):
        while world.core.restarts == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
    ops = world.cores.now.ops()
    assert sorted(ops[1:-1]) == ["load a:1", "load b:2", "publish a:1", "publish b:2"]
    assert (ops[0], ops[-1]) == ("configure", "serve")


async def test_a_version_that_does_not_come_back_leaves_the_others_alone(world: World) -> None:
    world.model("a", {"1": {}})
    world.model("b", {"1": {}})
    manager = await world.load()

    def load(command: dict[str, Any]) -> Any:
        bad = command["servable"]["model"] == "a"
        return {"ok": False, "code": "NOT_FOUND", "error": "the directory is gone"} if bad else {}

    world.cores.answers["load"] = load
    world.cores.now.die(-11)
    async with asyncio.timeout(10):
        while world.core.restarts == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert [str(version) for version in manager.available] == ["b:1"]
    async with asyncio.timeout(20):
        while manager.failed != {"a:1": "the directory is gone"}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # It was tried once more, as a version that has just been found: as compiled, compiled anew, and plain.
    assert world.cores.now.ops().count("load a:1") == 4


async def test_the_choice_of_auto_is_kept_for_later_versions(world: World) -> None:
    world.model("m", {"1": {"report": {"xla_choice": "full"}}}, xla="auto")
    world.model("off", {"1": {"report": {"xla_choice": "full"}}})
    await world.load()
    requests = {
        c["servable"]["model"]: c["servable"]["request"] for c in world.cores.now.commands if "servable" in c
    }
    assert requests["m"]["model"]["previous_choice"] is None
    remembered = json.loads((world.root / "state" / "state.json").read_text())["models"]
    assert remembered == {"m": {"base_path": str(world.root / "m"), "xla": "full"}}

    version = world.root / "m" / "2"
    version.mkdir()
    (version / "trial.json").write_text(json.dumps({"report": {"xla_choice": "full"}}))
    await world.core.kill()
    world.core = CoreSupervisor(world.cores.spawn, {"listeners": []}, [], world.log)
    await world.load()
    requests = {
        c["servable"]["model"]: c["servable"]["request"] for c in world.cores.now.commands if "servable" in c
    }
    assert requests["m"]["model"]["previous_choice"] == "full"
    assert requests["off"]["model"]["previous_choice"] is None


async def test_what_a_trial_found_is_told_with_reasons(world: World) -> None:
    signatures = [
        {"name": "__saved_model_init_op", "batched": False, "why": "no inputs", "compiled": False},
        {"name": "a", "batched": False, "why": "rows differ", "compiled": False, "compiled_why": "op Where"},
        {"name": "b", "batched": True, "compiled": True, "buckets": [1]},
    ]
    world.model("m", {"1": {"signatures": signatures, "report": {"memory_bytes": 77}}}, xla="full")
    world.model("off", {"1": {"signatures": signatures}}, row_wise=False)
    await world.load()
    told = [json.loads(line) for line in (world.root / "log").read_text().splitlines()]
    facts = [
        (line["event"], line["servable"], line["signature"], line["why"])
        for line in told
        if "signature" in line
    ]
    assert facts == [
        ("not batched", "m:1", "a", "rows differ"),
        ("runs without XLA", "m:1", "a", "op Where"),
    ]
    passed = {line["servable"]: line["memory_bytes"] for line in told if line["event"] == "trial passed"}
    assert passed == {"m:1": 77, "off:1": None}


def test_summaries() -> None:
    from fastserve.control.stream import Harness
    from fastserve.extensions import VersionPath

    def words(*signatures: dict[str, Any]) -> str:
        version = Harness(Model(name="m", base_path="/m"), VersionPath(3, "/m/3"))
        version.servable = {"signatures": list(signatures)}
        return summary(version)

    assert words() == "m:3"
    assert words({"name": "x", "batched": True, "compiled": False, "buckets": [1]}) == "m:3 (batched)"
    assert words({"name": "x", "batched": False, "compiled": True}) == "m:3 (XLA)"
    assert (
        words(
            {"name": "a"}, {"name": "serving_default", "batched": True, "compiled": True, "buckets": [1, 2]}
        )
        == "m:3 (batched, XLA, 2 buckets)"
    )
