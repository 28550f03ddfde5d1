"""The Python halves of examples/plugins: the policy as a table, the source with files that change."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastserve.config import Model
from fastserve.extensions import Action, Aspired, Snapshot, SourceContext, State, Step, VersionPath
from fastserve.log import Log

PLUGINS = Path(__file__).resolve().parents[2] / "examples" / "plugins"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


spare: Callable[[Sequence[Snapshot]], Action | None] = _module(PLUGINS / "spare/fastserve_spare.py").spare
manifest = _module(PLUGINS / "manifest/fastserve_manifest.py")

# ---- the policy: a hot spare ----------------------------------------------------------------

START, LOADING, AVAILABLE, UNLOADING, END = (
    State.START,
    State.LOADING,
    State.AVAILABLE,
    State.UNLOADING,
    State.END,
)


def load(version: int) -> Action:
    return Action(Step.LOAD, version)


def unload(version: int) -> Action:
    return Action(Step.UNLOAD, version)


@pytest.mark.parametrize(
    ("versions", "action"),  # (version, state, aspired)
    [
        pytest.param([], None, id="no version"),
        pytest.param([(1, START, True)], load(1), id="the first"),
        pytest.param([(1, LOADING, True)], None, id="which takes its time"),
        pytest.param(
            [(1, AVAILABLE, False), (2, START, True)], load(2), id="the next, before the old one goes"
        ),
        pytest.param([(1, AVAILABLE, False), (2, LOADING, True)], None, id="which serves meanwhile"),
        pytest.param([(1, AVAILABLE, False), (2, AVAILABLE, True)], None, id="and stays as a spare"),
        pytest.param(
            [(1, AVAILABLE, False), (2, AVAILABLE, False), (3, START, True)],
            unload(1),
            id="until the next comes",
        ),
        pytest.param(
            [(1, UNLOADING, False), (2, AVAILABLE, False), (3, START, True)],
            load(3),
            id="which is loaded then",
        ),
        pytest.param([(2, AVAILABLE, False), (3, END, True)], None, id="one that fails takes nothing away"),
        pytest.param(
            [(2, AVAILABLE, True), (3, AVAILABLE, False)], unload(3), id="back: the spare serves at once"
        ),
        pytest.param([(2, START, True), (3, AVAILABLE, False)], load(2), id="back to one that is gone"),
        pytest.param(
            [(1, AVAILABLE, False), (2, AVAILABLE, True), (3, AVAILABLE, False)],
            unload(3),
            id="back past a spare",
        ),
        pytest.param([(1, AVAILABLE, False), (2, AVAILABLE, False)], unload(1), id="nothing shall be served"),
        pytest.param([(2, AVAILABLE, False)], unload(2), id="nothing at all"),
        pytest.param([(4, START, True), (5, START, True)], load(5), id="of several the newest first"),
        pytest.param(
            [(1, AVAILABLE, False), (2, AVAILABLE, True), (3, AVAILABLE, True)], None, id="a spare beside two"
        ),
    ],
)
def test_what_the_spare_policy_does_next(
    versions: list[tuple[int, State, bool]], action: Action | None
) -> None:
    snapshots = [Snapshot(version, state, aspired) for version, state, aspired in versions]
    assert spare(snapshots) == action
    assert spare(snapshots[::-1]) == action


def test_there_is_always_a_version_and_never_more_than_one_spare() -> None:
    """Ten releases, the policy's actions done one after the other; every third goes back by one."""
    states: dict[int, State] = {}
    aspired = 0
    for release in range(1, 11):
        aspired = release if release % 3 else release - 1
        states.setdefault(aspired, START)
        if states[aspired] is END:
            states[aspired] = START
        for _ in range(10):
            action = spare([Snapshot(v, s, v == aspired) for v, s in states.items()])
            if action is None:
                break
            states[action.version] = AVAILABLE if action.step is Step.LOAD else END
            available = [v for v, s in states.items() if s is AVAILABLE]
            assert available
            assert len(available) <= 2
        assert max(v for v, s in states.items() if s is AVAILABLE) == aspired


# ---- the source: a manifest -----------------------------------------------------------------


class Watched:
    """A manifest source that runs, and what it has said."""

    def __init__(
        self, path: Path, choose: Callable[..., Sequence[int]] = sorted, poll_s: float = 0.01
    ) -> None:
        self.said: list[Aspired] = []
        self._news = asyncio.Event()
        model = Model(name="m", base_path=str(path))
        self.source = manifest.ManifestSource(
            SourceContext(model, choose, poll_s, str(path.parent), Log(os.open(os.devnull, os.O_WRONLY)))
        )
        self.start()

    def start(self) -> None:
        self.task = asyncio.create_task(self.source.run(self._aspire))

    def _aspire(self, aspired: Aspired) -> None:
        self.said.append(aspired)
        self._news.set()

    async def next(self) -> Aspired:
        """What it says next."""
        async with asyncio.timeout(20):
            await self._news.wait()
        self._news.clear()
        return self.said[-1]

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def write(path: Path, versions: list[tuple[int, str]]) -> None:
    entries = [{"version": version, "path": place} for version, place in versions]
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"versions": entries}))
    part.rename(path)


async def test_a_source_says_what_the_manifest_lists_and_what_changes(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    (tmp_path / "old").mkdir()
    write(path, [(8, "/models/new"), (7, "old")])
    watched = Watched(path)
    first = await watched.next()
    assert first == Aspired((VersionPath(7, str(tmp_path / "old")), VersionPath(8, "/models/new")))
    assert all(version.fingerprint for version in first.versions)
    write(path, [(8, "/models/new")])
    assert (await watched.next()).versions == (VersionPath(8, "/models/new"),)
    await watched.end()


async def test_a_source_keeps_to_the_versions_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write(path, [(version, "/m") for version in (3, 1, 2)])
    watched = Watched(path, choose=lambda versions: sorted(versions)[-2:])
    assert [version.version for version in (await watched.next()).versions] == [2, 3]
    await watched.end()


async def test_a_manifest_that_goes_bad_changes_nothing_of_what_is_served(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write(path, [(7, "/m")])
    watched = Watched(path)
    served = (await watched.next()).versions
    path.write_text('{"versions": [{"ver')
    broken = await watched.next()
    assert broken.versions == served
    assert "manifest.json: expected" in broken.problem
    path.unlink()
    gone = await watched.next()
    assert gone.versions == served
    assert "No such file" in gone.problem
    write(path, [(7, "/m")])
    assert await watched.next() == Aspired(served)
    await watched.end()


async def test_a_source_that_is_run_again_still_knows_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write(path, [(7, "/m")])
    watched = Watched(path)
    served = (await watched.next()).versions
    await watched.end()
    path.unlink()
    watched.start()
    again = await watched.next()
    assert again.versions == served
    assert again.problem
    await watched.end()


async def test_a_version_whose_content_changes_gets_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write(path, [(7, "seven")])
    watched = Watched(path)
    before = (await watched.next()).versions[0].fingerprint
    (tmp_path / "seven").mkdir()
    assert (await watched.next()).versions[0].fingerprint != before
    await watched.end()


async def test_a_source_that_shall_not_poll_looks_once(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write(path, [(7, "/m")])
    watched = Watched(path, poll_s=0)
    await watched.next()
    write(path, [(8, "/m")])
    done, _ = await asyncio.wait([watched.task], timeout=0.1)
    assert not done
    assert len(watched.said) == 1
    await watched.end()


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"versions": 3}', '{"versions": [7]}', '{"versions": [{"version": 7}]}',
        '{"versions": [{"version": "7", "path": "/m"}]}', '{"versions": [{"version": true, "path": "/m"}]}',
        '{"versions": [{"version": -1, "path": "/m"}]}', '{"versions": [{"version": 7, "path": 7}]}',
        '{"versions": [{"version": 9223372036854775808, "path": "/m"}]}',
        '{"versions": [{"version": 7, "path": "/a"}, {"version": 7, "path": "/b"}]}',
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(manifest.ManifestError, match=r"manifest\.json: "):
        manifest.read_manifest(str(path))


def test_every_example_is_registered_under_its_name() -> None:
    import tomllib

    found: dict[str, Any] = {}
    for path in sorted(PLUGINS.glob("*/pyproject.toml")):
        found |= tomllib.loads(path.read_text())["project"]["entry-points"]
    assert {group: list(names) for group, names in found.items()} == {
        "fastserve.loaders": ["lookup"],
        "fastserve.runtimes": ["lookup"],
        "fastserve.sources": ["manifest"],
        "fastserve.policies": ["spare"],
        "fastserve.batchers": ["priority"],
    }
