"""The file source: a version counts when it is whole and at rest, and what has counted stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from unit.saved_model_files import simple, write

from fastserve.config import Model, Versions
from fastserve.control.source import Choice
from fastserve.control.source_files import FileSource
from fastserve.extensions import Aspired, SourceContext
from fastserve.log import Log


class Clock:
    """A minute from now: whatever the test has written before is at rest."""

    def __init__(self) -> None:
        self.time = time.time() + 60

    def __call__(self) -> float:
        return self.time


class Place:
    """A base path, and a source that looks at it."""

    def __init__(self, root: Path, **versions: object) -> None:
        self.base = root / "m"
        self.base.mkdir()
        self.clock = Clock()
        settings = Versions(**versions)  # type: ignore[arg-type]
        self.model = Model(name="m", base_path=str(self.base), versions=settings)
        self.choice = Choice(settings)
        context = SourceContext(self.model, self.choice, 1.0, str(root / "cache"), Log(level="error"))
        self.source = FileSource(context, now=self.clock)

    def write(self, name: str, *, where: Path | None = None) -> Path:
        path = (where or self.base) / name
        path.mkdir()
        write(path, simple())
        return path

    def look(self) -> Aspired:
        """The next look, a second later; the source keeps what it said."""
        self.clock.time += 1
        self.source._told = self.source.look()
        return self.source._told

    def versions(self) -> list[int]:
        return [path.version for path in self.look().versions]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_was_there_before_counts_at_once(place: Place) -> None:
    place.write("3")
    place.write("12")
    aspired = place.look()
    assert [(p.version, p.path) for p in aspired.versions] == [(12, str(place.base / "12"))]
    assert [p.version for p in aspired.spares] == [3]
    assert aspired.problem == ""


def test_a_version_that_is_being_written_waits_until_nothing_changed_over_one_poll(place: Place) -> None:
    place.write("1")
    assert place.versions() == [1]
    place.clock.time = time.time() - 60  # what is written from here on is younger than the last look
    place.look()
    path = place.write("2")
    assert place.versions() == [1]
    (path / "saved_model.pb").touch()
    os.utime(path / "saved_model.pb", ns=(1, 1))
    assert place.versions() == [1]
    assert place.versions() == [2]


def test_a_version_that_was_renamed_into_place_counts_at_once(place: Place, tmp_path: Path) -> None:
    place.write("1")
    assert place.versions() == [1]
    made = place.write("made", where=tmp_path)
    place.clock.time += 60
    place.look()
    made.rename(place.base / "2")
    assert place.versions() == [2]


def test_an_incomplete_version_does_not_displace_the_one_before_and_is_told(place: Place) -> None:
    place.write("1")
    assert place.versions() == [1]
    (place.base / "2").mkdir()
    for _ in range(3):
        aspired = place.look()
        assert [p.version for p in aspired.versions] == [1]
        assert "version 2 does not count" in aspired.problem and "saved_model.pb" in aspired.problem
    write(place.base / "2", simple())
    place.look()
    assert place.versions() == [2]


def test_a_version_counts_when_its_marker_is_there_and_not_before(tmp_path: Path) -> None:
    place = Place(tmp_path, complete_marker="_SUCCESS")
    path = place.write("1")
    assert place.versions() == []
    (path / "_SUCCESS").touch()
    assert place.versions() == [1]


def test_a_base_path_that_is_gone_or_empty_changes_nothing(place: Place) -> None:
    place.write("1")
    assert place.versions() == [1]
    away = place.base.rename(place.base.with_name("away"))
    aspired = place.look()
    assert [p.version for p in aspired.versions] == [1]
    assert aspired.problem == f"there is no directory {place.base}"
    place.base.mkdir()
    aspired = place.look()
    assert [p.version for p in aspired.versions] == [1] and "has no version" in aspired.problem
    place.base.rmdir()
    away.rename(place.base)
    assert place.look() == Aspired(aspired.versions)


def test_a_version_that_has_counted_stays_while_its_directory_does(place: Place) -> None:
    place.write("1")
    path = place.write("2")
    assert place.versions() == [2]
    (path / "saved_model.pb").unlink()
    assert place.versions() == [2]
    shutil.rmtree(path)
    assert place.versions() == [1]


def test_new_content_has_a_new_fingerprint_once_it_is_at_rest(place: Place) -> None:
    path = place.write("1")
    (first,) = place.look().versions
    (path / "saved_model.pb").write_bytes(b"")
    (same,) = place.look().versions
    assert same.fingerprint == first.fingerprint
    (other,) = place.look().versions
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [9]),
        ({"num_versions": 2}, [3, 9]),
        ({"num_versions": 9}, [1, 2, 3, 9]),
        ({"policy": "all"}, [1, 2, 3, 9]),
        ({"policy": "specific", "specific": (2, 7)}, [2]),
    ],
)
def test_the_policy_chooses(tmp_path: Path, settings: dict[str, object], wanted: list[int]) -> None:
    place = Place(tmp_path, **settings)
    for name in ("1", "2", "3", "9"):
        place.write(name)
    assert place.versions() == wanted


def test_an_operator_adds_and_takes_away(place: Place) -> None:
    for name in ("1", "2", "3"):
        place.write(name)
    place.choice.loaded = frozenset({1})
    assert place.versions() == [1, 3]
    place.choice.unloaded = frozenset({3})
    assert place.versions() == [1, 2]
    place.choice.paused = True
    assert place.versions() == []


async def test_it_speaks_when_something_has_changed_and_only_then(place: Place) -> None:
    place.write("1")
    told: asyncio.Queue[Aspired] = asyncio.Queue()
    place.source._poll_s = 0.001
    running = asyncio.create_task(place.source.run(told.put_nowait))
    try:
        async with asyncio.timeout(10):
            assert [p.version for p in (await told.get()).versions] == [1]
            place.write("2")
            while [p.version for p in (await told.get()).versions] != [2]:
                pass
        assert told.empty()
    finally:
        running.cancel()


async def test_the_first_word_waits_for_a_version_that_was_written_just_now(place: Place) -> None:
    place.write("1")
    place.clock.time = time.time()
    place.source._last_look = place.clock.time - 1
    place.source._poll_s = 0.001
    told: asyncio.Queue[Aspired] = asyncio.Queue()
    running = asyncio.create_task(place.source.run(told.put_nowait))
    try:
        first = await asyncio.wait_for(told.get(), 30)
    finally:
        running.cancel()
    assert [path.version for path in first.versions] == [1]
