"""Passes tried one after the other, with made-up measurements: what is kept, what is tried again, and that
nothing is left of what was dropped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner

from fastserve.cli import main
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing import command, package
from fastserve.workshop.optimizing.command import Task, _Trying
from fastserve.workshop.optimizing.measuring import OPENINGS, Failed
from fastserve.workshop.optimizing.values import Comparison, PassResult
from fastserve.workshop.optimizing.variables import Variables
from fastserve.workshop.passes.base import Options, Pass


class Graph:
    """As much of one as trying needs. `done`: the passes that changed it."""

    def __init__(self, done: tuple[str, ...] = ()) -> None:
        self.done = done
        self.nodes: dict[str, Any] = {}

    def copy(self) -> Graph:
        return Graph(self.done)


class Package:
    """Writes which passes were done, as the folder's content."""

    def __init__(self) -> None:
        self.kept: tuple[str, ...] = ()

    def write(self, graphs: Mapping[str, Graph], folder: Path, *, linked: bool) -> None:
        folder.mkdir()
        (folder / "done").write_text(",".join(graphs["s"].done))

    def keep(self, graphs: Mapping[str, Graph]) -> None:
        self.kept = graphs["s"].done


class Measuring:
    """`gains`: of a graph, by the passes that it has been through."""

    def __init__(self, gains: Callable[[list[str]], float]) -> None:
        self._gains = gains

    def compare(self, old: Path, new: Path) -> Comparison:
        before, after = (self._gain(path) for path in (old, new))
        return Comparison({"s": (0.0, 0.0, "y")}, {("s", 100): ([(after, before)] * 20,) * OPENINGS})

    def _gain(self, path: Path) -> float:
        done = path / "done"
        return self._gains(done.read_text().split(",") if done.exists() else [])


def a_pass(name: str, changes: Callable[[Graph], int] = lambda _: 1) -> Pass:
    def run(graph: Any, _: Options) -> int:
        found = changes(graph)
        if found:
            graph.done = (*graph.done, name)
        return found

    return Pass(name, f"does {name}", run)


def trying(folder: Path, gains: Callable[[list[str]], float]) -> _Trying:
    task = Task(folder, folder)
    measured, written = cast(Any, Measuring(gains)), cast(Any, Package())
    return _Trying(task, measured, written, folder, folder.parent / "original", cast(Any, {"s": Graph()}))


def done(tried: _Trying) -> tuple[str, ...]:
    return cast(Any, tried.graphs["s"]).done  # type: ignore[no-any-return]


def results(tried: _Trying) -> dict[str, PassResult]:
    return {result.name: result for result in tried.results}


def test_of_folders_only_what_was_kept_last_is_left(tmp_path: Path) -> None:
    tried = trying(tmp_path, lambda done: 1.5 ** len(set(done) & {"a", "c"}))
    for name in "abc":
        tried.attempt(a_pass(name))
        assert len(list(tmp_path.iterdir())) == 1
    assert done(tried) == ("a", "c") and cast(Any, tried._package).kept == ("a", "c")
    assert [each.why for each in tried.results] == ["faster", "within noise", "faster"]


def test_what_only_pays_after_a_later_pass_is_tried_again(tmp_path: Path) -> None:
    """As the user's side after lookups were put together."""

    def gains(done: list[str]) -> float:
        return 1.0 + 0.5 * ("later" in done) + 0.5 * ("later" in done and "early" in done)

    passes = [
        a_pass("early"),
        a_pass("blind", lambda graph: "later" in graph.done),
        a_pass("later"),
    ]
    tried = trying(tmp_path, gains)
    for each in passes:
        tried.attempt(each)
    assert done(tried) == ("later",)
    assert results(tried)["blind"].why == "found nothing to change"
    tried.again(passes)
    assert done(tried) == ("later", "early")
    assert [each.name for each in tried.results] == ["blind", "later", "early"]  # in the order of what is
    assert results(tried)["blind"].why == "within noise"


def test_what_clears_up_does_so_after_later_passes_too(tmp_path: Path) -> None:
    runs: list[str] = []
    clears = replace(a_pass("clears", lambda _: runs.append("clears") or 1), lays_ground=True)
    tried = trying(tmp_path, lambda done: 1.0 + ("later" in done))
    for each in (clears, a_pass("later")):
        tried.attempt(each)
    tried.again([clears, a_pass("later")])
    assert done(tried) == ("clears", "later", "clears") and len(runs) == 2
    assert [each.name for each in tried.results] == ["clears", "later", "clears"]


def test_where_nothing_was_kept_since_nothing_is_tried_again(tmp_path: Path) -> None:
    runs: list[str] = []
    passes = [a_pass("a"), a_pass("b", lambda _: runs.append("b") or 1)]
    tried = trying(tmp_path, lambda done: 1.0 + ("a" in done))
    for each in passes:
        tried.attempt(each)
    tried.again(passes)
    assert runs == ["b"]


def test_a_pass_that_fails_is_noted_and_left_out(tmp_path: Path) -> None:
    def fails(_: Graph) -> int:
        raise ValueError("no such shape\nmore of it")

    tried = trying(tmp_path, lambda done: 1.5 ** len(done))
    for each in (a_pass("a"), a_pass("bad", fails), a_pass("c")):
        tried.attempt(each)
    assert done(tried) == ("a", "c")
    assert results(tried)["bad"].why == "could not be tried: no such shape" and not results(tried)["bad"].kept


def test_a_pass_whose_graph_cannot_be_written_or_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = trying(tmp_path, lambda done: 1.5 ** len(done))

    def refuse(*_: object, **__: object) -> None:
        raise KeyError("a node")

    with monkeypatch.context() as patch:
        patch.setattr(tried._package, "write", refuse)
        tried.attempt(a_pass("unwritten"))

    def fail(*_: object) -> Comparison:
        raise Failed("no kernel")

    with monkeypatch.context() as patch:
        patch.setattr(tried._measuring, "compare", fail)
        tried.attempt(a_pass("unrun"))
    tried.attempt(a_pass("good"))
    assert done(tried) == ("good",)
    assert results(tried)["unwritten"].why.startswith("could not be tried: ")
    assert results(tried)["unrun"].why == "does not run: no kernel"


def test_where_there_is_no_room_all_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trying(tmp_path, lambda done: 1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(tried._package, "write", full)
    with pytest.raises(OSError, match="No space"):
        tried.attempt(a_pass("a"))


def test_what_the_system_refuses_is_said_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/models/out/1")

    monkeypatch.setattr(command, "_run", refuse)
    with pytest.raises(WorkshopError, match=r"^/models/out/1: Permission denied$"):
        command.run(Task(tmp_path, tmp_path), lambda _: None)


def test_the_command_takes_tensorflows_settings_from_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow")
    seen: list[Task] = []

    def run(task: Task, _: object) -> None:
        seen.append(task)
        raise WorkshopError("enough")

    monkeypatch.setattr(command, "run", run)
    config = tmp_path / "config.toml"
    config.write_text('[tensorflow]\nintra_op_threads = 3\n\n[[models]]\nname = "m"\nbase_path = "/m"\n')
    said = CliRunner().invoke(
        main, ["optimize", str(tmp_path), str(tmp_path / "out"), "--config", str(config)]
    )
    assert "enough" in said.output or "enough" in str(said.exception)
    assert seen[0].settings.intra_op_threads == 3


# ---- files -----------------------------------------------------------------------------------------


def test_where_links_are_refused_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    there = tmp_path / "there"
    there.write_bytes(b"values")
    package._link_or_copy(there, tmp_path / "linked")
    assert (tmp_path / "linked").stat().st_ino == there.stat().st_ino
    monkeypatch.setattr(os, "link", refuse)
    package._link_or_copy(there, tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"values"
    assert (tmp_path / "copied").stat().st_ino != there.stat().st_ino
    assert package._linked(tmp_path, tmp_path / "again")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert not package._linked(tmp_path, tmp_path / "not")


def test_values_that_nobody_uses_any_more_are_forgotten_and_their_names_stay_taken() -> None:
    variables = Variables("checkpoint", [])
    for name in ("kept", "dropped"):
        variables.add(name, np.ones(3, np.float32), 1)
    variables.keep(["kept"])
    assert variables.value("kept").tolist() == [1.0, 1.0, 1.0]
    assert "dropped" in variables  # a node may not have its name
    with pytest.raises(KeyError):
        variables["dropped"]
